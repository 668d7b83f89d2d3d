//! tar's work for a small file system, in the process that CRIU has made for tar.
//!
//! Whatever is not small and plain is left to tar: nothing has been written then, or what has been made is what tar would
//! make anew.

#![expect(
    unsafe_code,
    reason = "functions of C, for a library without the standard library"
)]

use core::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};

use super::archive::{Entry, Kind, MAX_BYTES, MAX_NAME, Writer, entries};

const AT_SYMLINK_NOFOLLOW: c_int = 0x100;
const AT_EMPTY_PATH: c_int = 0x1000;
const STATX_BASIC_STATS: c_uint = 0x7ff;
const O_DIRECTORY_RDONLY: c_int = DIRECTORY | NOFOLLOW | 0o2_000_000;
const O_NEW: c_int = 0o1 | 0o100 | 0o200 | 0o2_000_000;
const SEEK_SET: c_int = 0;
const SEEK_CUR: c_int = 1;
const UTIME_OMIT: i64 = (1 << 30) - 2;

#[cfg(target_arch = "x86_64")]
const DIRECTORY: c_int = 0o200_000;
#[cfg(target_arch = "x86_64")]
const NOFOLLOW: c_int = 0o400_000;
#[cfg(target_arch = "aarch64")]
const DIRECTORY: c_int = 0o40_000;
#[cfg(target_arch = "aarch64")]
const NOFOLLOW: c_int = 0o100_000;
#[cfg(target_arch = "x86_64")]
const GETDENTS64: c_long = 217;
#[cfg(target_arch = "aarch64")]
const GETDENTS64: c_long = 61;

/// Of `struct linux_dirent64`: where the length of a record is, and its name.
const RECORD_LENGTH: usize = 16;
const RECORD_NAME: usize = 19;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn read(descriptor: c_int, into: *mut c_void, size: usize) -> isize;
    fn write(descriptor: c_int, from: *const c_void, size: usize) -> isize;
    fn lseek(descriptor: c_int, to: i64, from: c_int) -> i64;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn openat(directory: c_int, name: *const c_char, flags: c_int, ...) -> c_int;
    fn close(descriptor: c_int) -> c_int;
    fn mkdirat(directory: c_int, name: *const c_char, mode: c_uint) -> c_int;
    fn symlinkat(target: *const c_char, directory: c_int, name: *const c_char) -> c_int;
    fn readlinkat(directory: c_int, name: *const c_char, into: *mut c_char, size: usize) -> isize;
    fn fchownat(directory: c_int, name: *const c_char, owner: c_uint, group: c_uint, flags: c_int) -> c_int;
    fn fchmodat(directory: c_int, name: *const c_char, mode: c_uint, flags: c_int) -> c_int;
    fn utimensat(directory: c_int, name: *const c_char, times: *const [[i64; 2]; 2], flags: c_int) -> c_int;
    fn statx(directory: c_int, name: *const c_char, flags: c_int, mask: c_uint, into: *mut Status) -> c_int;
}

/// The kernel's `struct statx`, as far as it is read.
#[repr(C)]
struct Status {
    mask: u32,
    block_size: u32,
    attributes: u64,
    links: u32,
    owner: u32,
    group: u32,
    mode: u16,
    spare: u16,
    inode: u64,
    size: u64,
    blocks: u64,
    attributes_mask: u64,
    accessed: [u64; 2],
    born: [u64; 2],
    changed: [u64; 2],
    modified: [u64; 2],
    special_device: [u32; 2],
    device: [u32; 2],
    rest: [u64; 14],
}

const _: () = assert!(size_of::<Status>() == 256);

/// Writes the archive of `directory` to `output`; false, and nothing is written, where tar must do it.
#[must_use]
pub fn save(directory: c_int, output: c_int) -> bool {
    let mut buffer = [0; MAX_BYTES];
    let mut writer = Writer::new(&mut buffer);
    if collect(directory, &mut writer).is_none() {
        return false;
    }
    let Some(file) = writer.finish() else { return false };
    // SAFETY: the buffer has that many bytes.
    let written = unsafe { write(output, file.as_ptr().cast(), file.len()) };
    usize::try_from(written) == Ok(file.len())
}

fn collect(directory: c_int, writer: &mut Writer<'_>) -> Option<()> {
    let root = status(directory, c"")?;
    add(writer, &root, b"", b"")?;
    each_name(directory, |name| {
        let found = status(directory, name)?;
        // What is mounted in there is no part of it.
        if found.device != root.device {
            return None;
        }
        let mut target = [0; MAX_NAME];
        let length = match found.mode & 0o170_000 {
            0o040_000 => is_empty(directory, name).then_some(0)?,
            0o100_000 => (found.size == 0 && found.links == 1).then_some(0)?,
            // SAFETY: the name ends with a zero byte, and there is that much room.
            0o120_000 => unsafe {
                let read = readlinkat(directory, name.as_ptr(), target.as_mut_ptr().cast(), target.len());
                // One that fills the room may be longer.
                usize::try_from(read)
                    .ok()
                    .filter(|length| *length < target.len())?
            },
            _ => return None,
        };
        add(writer, &found, name.to_bytes(), target.get(..length)?)
    })
}

fn add(writer: &mut Writer<'_>, status: &Status, name: &[u8], target: &[u8]) -> Option<()> {
    let kind = match status.mode & 0o170_000 {
        0o040_000 => Kind::Directory,
        0o100_000 => Kind::Empty,
        _ => Kind::Link,
    };
    let [time, _] = status.modified;
    writer.add(&Entry {
        kind,
        name,
        target,
        mode: u32::from(status.mode & 0o7777),
        owner: status.owner,
        group: status.group,
        time,
    })
}

/// Calls `visit` for each name but `.` and `..`, until it gives nothing.
fn each_name(directory: c_int, mut visit: impl FnMut(&CStr) -> Option<()>) -> Option<()> {
    let mut records = [0_u8; 4096];
    loop {
        // SAFETY: the kernel writes no more than there is room for.
        let length = unsafe { syscall(GETDENTS64, directory, records.as_mut_ptr(), records.len()) };
        let length = usize::try_from(length).ok()?;
        let mut rest = records.get(..length)?;
        if rest.is_empty() {
            return Some(());
        }
        while !rest.is_empty() {
            let bytes = rest.get(RECORD_LENGTH..RECORD_LENGTH + 2)?;
            let record = u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]);
            let (this, others) = rest.split_at_checked(usize::from(record))?;
            let name = CStr::from_bytes_until_nul(this.get(RECORD_NAME..)?).ok()?;
            if name != c"." && name != c".." {
                visit(name)?;
            }
            rest = others;
        }
    }
}

fn is_empty(directory: c_int, name: &CStr) -> bool {
    // SAFETY: the name ends with a zero byte; the descriptor is closed once.
    unsafe {
        let inner = openat(directory, name.as_ptr(), O_DIRECTORY_RDONLY);
        if inner < 0 {
            return false;
        }
        let empty = each_name(inner, |_| None).is_some();
        close(inner);
        empty
    }
}

fn status(directory: c_int, name: &CStr) -> Option<Status> {
    let mut status = core::mem::MaybeUninit::<Status>::zeroed();
    let flags = AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH;
    // SAFETY: the name ends with a zero byte; the structure is the kernel's, and zeros are a value of it.
    unsafe {
        let done = statx(
            directory,
            name.as_ptr(),
            flags,
            STATX_BASIC_STATS,
            status.as_mut_ptr(),
        );
        (done == 0).then(|| status.assume_init())
    }
}

/// Fills the empty directory at `path` from the archive that `input` is at; false where tar must do it, and then `input` is where
/// it was.
///
/// # Safety
/// `path` ends with a zero byte.
#[must_use]
pub unsafe fn load(input: c_int, path: *const c_char) -> bool {
    let mut buffer = [0_u8; MAX_BYTES + 1];
    // SAFETY: plain calls; no more is read than there is room for; the caller promises the path.
    let (began, length, directory) = unsafe {
        let began = lseek(input, 0, SEEK_CUR);
        let length = read(input, buffer.as_mut_ptr().cast(), buffer.len());
        (began, length, open(path, O_DIRECTORY_RDONLY))
    };
    let file = usize::try_from(length)
        .ok()
        .and_then(|length| buffer.get(..length));
    let done = directory >= 0 && file.and_then(|file| make_all(directory, file)).is_some();
    if !done {
        // SAFETY: a plain call.
        unsafe { lseek(input, began, SEEK_SET) };
    }
    done
}

fn make_all(directory: c_int, file: &[u8]) -> Option<()> {
    let mut archive = entries(file)?;
    let root = archive.read()?.filter(|entry| entry.name.is_empty())?;
    while let Some(entry) = archive.read()? {
        make(directory, &entry)?;
    }
    // Last: what was made in it has changed its time.
    dress(directory, c".", &root)
}

fn make(directory: c_int, entry: &Entry<'_>) -> Option<()> {
    let (mut name, mut target) = ([0; MAX_NAME + 1], [0; MAX_NAME + 1]);
    let name = terminated(&mut name, entry.name)?;
    let target = terminated(&mut target, entry.target)?;
    // SAFETY: all names end with a zero byte; the descriptor is closed once.
    let made = unsafe {
        match entry.kind {
            Kind::Directory => mkdirat(directory, name.as_ptr(), 0o700),
            Kind::Link => symlinkat(target.as_ptr(), directory, name.as_ptr()),
            Kind::Empty => match openat(directory, name.as_ptr(), O_NEW, 0o600) {
                file @ 0.. => close(file),
                failed => failed,
            },
        }
    };
    (made == 0).then_some(())?;
    dress(directory, name, entry)
}

/// Owner, mode and time, in the order in which they stay.
fn dress(directory: c_int, name: &CStr, entry: &Entry<'_>) -> Option<()> {
    let seconds = i64::try_from(entry.time).ok()?;
    let times = [[0, UTIME_OMIT], [seconds, 0]];
    let name = name.as_ptr();
    // SAFETY: the name ends with a zero byte; the times are two `struct timespec`.
    let dressed = unsafe {
        fchownat(directory, name, entry.owner, entry.group, AT_SYMLINK_NOFOLLOW) == 0
            && (entry.kind == Kind::Link || fchmodat(directory, name, entry.mode, 0) == 0)
            && utimensat(directory, name, &raw const times, AT_SYMLINK_NOFOLLOW) == 0
    };
    dressed.then_some(())
}

fn terminated<'a>(buffer: &'a mut [u8], bytes: &[u8]) -> Option<&'a CStr> {
    buffer.get_mut(..bytes.len())?.copy_from_slice(bytes);
    CStr::from_bytes_until_nul(buffer)
        .ok()
        .filter(|text| text.to_bytes().len() == bytes.len())
}

#[cfg(test)]
mod tests {
    use super::{load, save};
    use std::ffi::CString;
    use std::fs::{self, File, Permissions};
    use std::io::{Read, Seek};
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
    use std::path::Path;

    fn saved(directory: &Path) -> Option<File> {
        let (directory, mut file) = (File::open(directory).unwrap(), tempfile::tempfile().unwrap());
        save(directory.as_raw_fd(), file.as_raw_fd()).then(|| {
            file.rewind().unwrap();
            file
        })
    }

    fn loaded(file: &File, directory: &Path) -> bool {
        let path = CString::new(directory.as_os_str().as_bytes()).unwrap();
        // SAFETY: the path ends with a zero byte.
        unsafe { load(file.as_raw_fd(), path.as_ptr()) }
    }

    #[test]
    fn a_device_directory_comes_back_as_it_was() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink("/proc/kcore", from.path().join("core")).unwrap();
        fs::write(from.path().join("null"), "").unwrap();
        chown(from.path().join("null"), Some(5), Some(6)).unwrap();
        fs::create_dir(from.path().join("shm")).unwrap();
        fs::set_permissions(from.path().join("shm"), Permissions::from_mode(0o1777)).unwrap();
        fs::set_permissions(from.path(), Permissions::from_mode(0o751)).unwrap();
        assert!(loaded(&saved(from.path()).unwrap(), to.path()));
        assert_eq!(
            fs::read_link(to.path().join("core")).unwrap(),
            Path::new("/proc/kcore")
        );
        for name in ["", "core", "null", "shm"] {
            let seen = |root: &Path| {
                let found = fs::symlink_metadata(root.join(name)).unwrap();
                (found.mode(), found.uid(), found.gid(), found.mtime(), found.len())
            };
            assert_eq!(seen(from.path()), seen(to.path()), "{name:?}");
        }
    }

    #[test]
    fn what_is_not_plain_is_left_to_tar() {
        let plain = tempfile::tempdir().unwrap();
        let full = plain.path().join("full");
        fs::create_dir(&full).unwrap();
        assert!(saved(plain.path()).is_some());
        fs::write(full.join("inside"), "").unwrap();
        assert!(saved(plain.path()).is_none());
        let content = tempfile::tempdir().unwrap();
        fs::write(content.path().join("file"), "x").unwrap();
        assert!(saved(content.path()).is_none());
        let twice = tempfile::tempdir().unwrap();
        fs::write(twice.path().join("file"), "").unwrap();
        fs::hard_link(twice.path().join("file"), twice.path().join("other")).unwrap();
        assert!(saved(twice.path()).is_none());
    }

    #[test]
    fn an_archive_of_somebody_elses_is_left_where_it_was() {
        let to = tempfile::tempdir().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, b"??\x1f\x8b\x08\x00 of another").unwrap();
        file.seek(std::io::SeekFrom::Start(2)).unwrap();
        assert!(!loaded(&file, to.path()));
        let mut rest = Vec::new();
        file.read_to_end(&mut rest).unwrap();
        assert!(rest.starts_with(b"\x1f\x8b"));
    }
}
