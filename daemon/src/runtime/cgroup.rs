//! The few files of a container's cgroup that are read or written without runc. Version 2 where `/sys/fs/cgroup` is one
//! tree, else version 1 with a tree a controller; runc decides by the same test.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// `CGROUP2_SUPER_MAGIC`, as `statfs` gives it.
const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// A cgroup of a container or a monitor, on whichever version this machine has.
#[derive(Clone, Debug)]
pub(crate) struct Cgroup {
    unified: bool,
    path: String,
}

impl Cgroup {
    /// The cgroup at `path`, such as `/tranship/ID`; it need not exist.
    pub(crate) fn at(path: &str) -> Self {
        let unified = rustix::fs::statfs(ROOT).is_ok_and(|fs| fs.f_type == CGROUP2_MAGIC);
        Self {
            unified,
            path: path.trim_start_matches('/').to_owned(),
        }
    }

    fn directory(&self, controller: &str) -> PathBuf {
        let root = Path::new(ROOT);
        let hierarchy = if self.unified {
            root.to_owned()
        } else {
            root.join(controller)
        };
        hierarchy.join(&self.path)
    }

    /// Whether its freezer holds its tasks.
    pub(crate) fn is_frozen(&self) -> bool {
        let freezer = self.directory("freezer");
        if self.unified {
            let events = fs::read_to_string(freezer.join("cgroup.events")).unwrap_or_default();
            events.lines().any(|line| line == "frozen 1")
        } else {
            let state = fs::read_to_string(freezer.join("freezer.state")).unwrap_or_default();
            matches!(state.trim(), "FROZEN" | "FREEZING")
        }
    }

    /// Whether the kernel has killed one of its tasks for its memory limit.
    pub(crate) fn was_oom_killed(&self) -> bool {
        let file = if self.unified {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let text = fs::read_to_string(self.directory("memory").join(file)).unwrap_or_default();
        let count = text
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok());
        count.is_some_and(|count| count > 0)
    }

    /// The processes in it and in its children, as the host numbers them; none if there is no such cgroup.
    pub(crate) fn processes(&self) -> io::Result<Vec<i32>> {
        let mut pids = Vec::new();
        collect_processes(&self.directory("freezer"), &mut pids)?;
        Ok(pids)
    }

    /// Has every process end without letting any run on: the signal is pending on each before a version 1 freezer lets go.
    pub(crate) fn kill_all(&self) -> Result<(), (PathBuf, io::Error)> {
        let directory = self.directory("freezer");
        if self.unified {
            return write_if_there(directory.join("cgroup.kill"), "1");
        }
        for pid in self
            .processes()
            .map_err(|error| (directory.join("cgroup.procs"), error))?
        {
            let pid = nix::unistd::Pid::from_raw(pid);
            // One that has ended meanwhile is what is wanted.
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
        }
        write_if_there(directory.join("freezer.state"), "THAWED")
    }

    /// Moves the calling process into it, where service managers look for the processes of a service.
    pub(crate) fn enter(&self) -> io::Result<()> {
        let directory = self.directory("systemd");
        if !self.hierarchy_exists() {
            return Ok(());
        }
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("cgroup.procs"), "0")
    }

    /// Takes the calling process out of it, and removes it.
    pub(crate) fn leave(&self) -> io::Result<()> {
        if !self.hierarchy_exists() {
            return Ok(());
        }
        let root = Self {
            unified: self.unified,
            path: String::new(),
        };
        fs::write(root.directory("systemd").join("cgroup.procs"), "0")?;
        self.remove()
    }

    /// Removes the directory that [`Cgroup::enter`] made; nothing happens if it is not there.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir(self.directory("systemd")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes its directories in every hierarchy, where there are any: what is left when runc was ended in the middle.
    pub(crate) fn remove_everywhere(&self) -> io::Result<()> {
        let root = Path::new(ROOT);
        let mut directories = vec![root.join(&self.path)];
        for hierarchy in fs::read_dir(root)? {
            directories.push(hierarchy?.path().join(&self.path));
        }
        for directory in directories {
            match fs::remove_dir(&directory) {
                Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn hierarchy_exists(&self) -> bool {
        let root = Self {
            unified: self.unified,
            path: String::new(),
        };
        root.directory("systemd").join("cgroup.procs").exists()
    }
}

fn collect_processes(directory: &Path, pids: &mut Vec<i32>) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect_processes(&entry.path(), pids)?;
        }
    }
    match fs::read_to_string(directory.join("cgroup.procs")) {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
        // Removed, or its last process went, while we looked.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

fn write_if_there(path: PathBuf, value: &str) -> Result<(), (PathBuf, io::Error)> {
    match fs::write(&path, value) {
        Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
            Err((path, error))
        }
        _ => Ok(()),
    }
}
