//! Who a container's process is: `USER[:GROUP]` looked up in the container's own `/etc/passwd` and `/etc/group`.
//!
//! The container's root filesystem is not trusted: its files are opened with every symlink resolved inside of it, must be
//! regular, and are read up to a bound.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use super::error::SpecError;

/// Longest user database that is read; the rest is ignored. A line of a million users fits.
const MAX_DATABASE_BYTES: u64 = 64 << 20;

/// Who a process is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User id in the container.
    pub uid: u32,
    /// Group id in the container.
    pub gid: u32,
    /// Supplementary groups: always the group itself, so that a set-group-id program cannot shed a group that files are denied
    /// to; the others of the user unless a group was asked for.
    pub additional_gids: Vec<u32>,
}

impl User {
    /// Looks `wanted` (`USER[:GROUP]`, empty is root) up in the tree at `rootfs`. A number that nobody has is taken as it is, with
    /// group 0, as in Docker.
    ///
    /// # Errors
    /// A name is unknown, or a database is there and cannot be read.
    pub fn resolve(wanted: &str, rootfs: &Path) -> Result<Self, SpecError> {
        let passwd = read_database(rootfs, "/etc/passwd")?;
        let group = read_database(rootfs, "/etc/group")?;
        find(wanted, &passwd, &group)
    }

    /// Every id of this user.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        [self.uid, self.gid]
            .into_iter()
            .chain(self.additional_gids.iter().copied())
    }
}

fn find(wanted: &str, passwd: &str, group: &str) -> Result<User, SpecError> {
    let (user, wanted_group) = wanted.split_once(':').unwrap_or((wanted, ""));
    let user = if user.is_empty() { "0" } else { user };
    let entry = passwd
        .lines()
        .filter_map(PasswdEntry::parse)
        .find(|entry| entry.is(user));
    let uid = entry
        .as_ref()
        .map(|entry| entry.uid)
        .or_else(|| user.parse().ok());
    let uid = uid.ok_or_else(|| SpecError::UnknownUser(user.to_owned()))?;
    let groups = || group.lines().filter_map(GroupEntry::parse);
    if wanted_group.is_empty() {
        let gid = entry.as_ref().map_or(0, |entry| entry.gid);
        let is_member = |group: &GroupEntry<'_>| entry.as_ref().is_some_and(|entry| group.has(entry.name));
        let others = groups()
            .filter(is_member)
            .map(|group| group.gid)
            .filter(|&other| other != gid);
        let additional_gids = [gid].into_iter().chain(others).collect();
        return Ok(User {
            uid,
            gid,
            additional_gids,
        });
    }
    let found = groups()
        .find(|group| group.is(wanted_group))
        .map(|group| group.gid);
    let gid = found.or_else(|| wanted_group.parse().ok());
    let gid = gid.ok_or_else(|| SpecError::UnknownGroup(wanted_group.to_owned()))?;
    Ok(User {
        uid,
        gid,
        additional_gids: vec![gid],
    })
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

impl<'a> PasswdEntry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        Some(Self {
            name,
            uid,
            gid: fields.next()?.parse().ok()?,
        })
    }

    fn is(&self, wanted: &str) -> bool {
        self.name == wanted || wanted.parse() == Ok(self.uid)
    }
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> GroupEntry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Self {
            name,
            gid,
            members: fields.next().unwrap_or_default().trim_end(),
        })
    }

    fn is(&self, wanted: &str) -> bool {
        self.name == wanted || wanted.parse() == Ok(self.gid)
    }

    fn has(&self, member: &str) -> bool {
        self.members.split(',').any(|name| name == member)
    }
}

fn read_database(rootfs: &Path, path: &'static str) -> Result<String, SpecError> {
    let failed = |source| SpecError::Database {
        path,
        rootfs: rootfs.to_owned(),
        source,
    };
    let file = match open_in_root(rootfs, path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_DATABASE_BYTES)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Opens a regular file for reading as a process whose root directory is `rootfs` would.
fn open_in_root(rootfs: &Path, path: &str) -> io::Result<File> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(rootfs, directory, Mode::empty())?;
    // Not blocking: a fifo in place of the file must not hold the daemon.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file: OwnedFd = rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve)?;
    match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
        FileType::RegularFile => Ok(File::from(file)),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\n# note\nbroken\npostgres:x:70:71:Pg:/var/lib/pg:/bin/sh\n";
    const GROUP: &str = "root:x:0:\npostgres:x:71:\nssl:x:101:web,postgres\nmail:x:8:postgres\n";

    fn user(uid: u32, gid: u32, additional_gids: &[u32]) -> User {
        User {
            uid,
            gid,
            additional_gids: additional_gids.to_vec(),
        }
    }

    #[test]
    fn a_name_brings_its_groups_and_a_group_of_ones_own_does_not() {
        assert_eq!(
            find("postgres", PASSWD, GROUP).unwrap(),
            user(70, 71, &[71, 101, 8])
        );
        assert_eq!(find("70", PASSWD, GROUP).unwrap(), user(70, 71, &[71, 101, 8]));
        assert_eq!(find("postgres:mail", PASSWD, GROUP).unwrap(), user(70, 8, &[8]));
        assert_eq!(find("postgres:7", PASSWD, GROUP).unwrap(), user(70, 7, &[7]));
    }

    #[test]
    fn numbers_nobody_has_are_taken_and_names_are_not() {
        assert_eq!(find("1234", PASSWD, GROUP).unwrap(), user(1234, 0, &[0]));
        assert_eq!(find("1234:55", "", "").unwrap(), user(1234, 55, &[55]));
        assert_eq!(find("", "", "").unwrap(), user(0, 0, &[0]));
        assert_eq!(find(":mail", PASSWD, GROUP).unwrap(), user(0, 8, &[8]));
        assert!(matches!(
            find("nobody", PASSWD, GROUP),
            Err(SpecError::UnknownUser(_))
        ));
        assert!(matches!(
            find("root:wheel", PASSWD, GROUP),
            Err(SpecError::UnknownGroup(_))
        ));
        assert!(matches!(
            find("-1", PASSWD, GROUP),
            Err(SpecError::UnknownUser(_))
        ));
    }

    #[test]
    fn a_link_out_of_the_root_ends_inside_of_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("inner"), "inner:x:9:9::/:\n").unwrap();
        symlink("/../../inner", dir.path().join("etc/passwd")).unwrap();
        assert_eq!(User::resolve("inner", dir.path()).unwrap(), user(9, 9, &[9]));
        // The machine's own file of that name is not what is seen.
        std::fs::remove_file(dir.path().join("etc/passwd")).unwrap();
        symlink("/etc/hostname", dir.path().join("etc/passwd")).unwrap();
        assert!(matches!(
            User::resolve("inner", dir.path()),
            Err(SpecError::UnknownUser(_))
        ));
    }

    #[test]
    fn a_fifo_in_place_of_a_database_is_an_error_and_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("etc/passwd"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(
            User::resolve("root", dir.path()),
            Err(SpecError::Database { .. })
        ));
    }
}
