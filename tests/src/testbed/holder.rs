//! The process that is a host: pid 1 of its namespaces.
//!
//! `testbed __unshare NAME DIR` (started in new namespaces by unshare(1)) starts `testbed __hold NAME DIR` and goes away; the
//! latter arranges the mounts, says that it is ready and then only reaps. Killing it ends everything on that host.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
    mount_bind_recursive, mount_change, mount_move, move_mount, open_tree, unmount,
};
use rustix::process::{Pid, Signal, WaitOptions};

use super::layout::{Layout, OF_THE_KERNEL};
use crate::command;
use crate::programs;

/// First argument of the process that starts a holder.
pub const UNSHARE: &str = "__unshare";
/// First argument of a holder; with the two that follow it is how one is found.
pub const HOLD: &str = "__hold";

const READY: &str = "ready";

/// A running holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Which namespace set it holds.
    pub name: String,
    /// Its pid, as the machine numbers it.
    pub pid: i32,
}

impl Holder {
    /// Starts a holder and waits until its namespaces are in order.
    ///
    /// # Errors
    /// The kernel refuses the namespaces or a mount; the message is the holder's.
    pub fn start(layout: &Layout, name: &str) -> Result<Self> {
        let program = programs::find("testbed")?;
        let mut unshare = command::command("unshare", ["--mount", "--net", "--pid", "--ipc", "--uts", "--"]);
        unshare.arg(program).arg(UNSHARE).arg(name).arg(layout.dir());
        command::succeed(&mut unshare, command::SHORT).with_context(|| format!("cannot make host {name}"))?;
        Self::find(layout)?
            .into_iter()
            .find(|holder| holder.name == name)
            .with_context(|| format!("the holder of host {name} went away as soon as it was there"))
    }

    /// All holders of the testbed in this directory.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn find(layout: &Layout) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").context("cannot read /proc")? {
            let file_name = entry?.file_name();
            let Some(pid) = file_name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            if let Some(name) = held_by(pid, layout.dir()) {
                found.push(Self { name, pid });
            }
        }
        found.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(found)
    }

    /// A path of the host, as the machine's own processes can reach it.
    #[must_use]
    pub fn path(&self, inside: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.pid));
        root.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// A command that runs a program in all of the host's namespaces, in its root directory.
    #[must_use]
    pub fn enter(&self) -> Command {
        let target = self.pid.to_string();
        command::command(
            "nsenter",
            ["-t", &target, "--mount", "--net", "--pid", "--ipc", "--uts", "--"],
        )
    }

    /// A command that runs a program in the network namespace alone.
    #[must_use]
    pub fn enter_network(&self) -> Command {
        command::command("nsenter", ["-t", &self.pid.to_string(), "--net", "--"])
    }

    /// Kills the holder, and with it everything on the host, and waits for the end of it.
    ///
    /// # Errors
    /// It is still there after `deadline`.
    pub fn kill(&self, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        let pid = Pid::from_raw(self.pid).context("a holder has a pid")?;
        match rustix::process::kill_process(pid, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => bail!(
                "cannot kill the holder of {} (pid {}): {error}",
                self.name,
                self.pid
            ),
        }
        while is_alive(self.pid) {
            if Instant::now() >= end {
                bail!(
                    "host {} (pid {}) is still there {deadline:?} after SIGKILL",
                    self.name,
                    self.pid
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// Name in the command line of a holder for `dir`, if the process is one.
fn held_by(pid: i32, dir: &Path) -> Option<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let program = words.next()?;
    let is_testbed = Path::new(program.as_ref()).file_name()?.to_str()? == "testbed";
    let (verb, name, held) = (words.next()?, words.next()?, words.next()?);
    (is_testbed && verb == HOLD && Path::new(held.as_ref()) == dir).then(|| name.into_owned())
}

/// False for a process that is gone or a zombie: nothing of its namespaces is left then.
fn is_alive(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // The state follows the name, which is in parentheses and may hold anything.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

/// Body of `testbed __unshare`: starts the holder in a session of its own and waits for its word.
///
/// # Errors
/// The holder cannot be started, or says something else than that it is ready.
pub fn unshare_main(name: &str, dir: &Path) -> Result<()> {
    let mut holder = Command::new(std::env::current_exe()?);
    // A process group of its own keeps a terminal's Ctrl-C from ending the host.
    holder
        .arg(HOLD)
        .arg(name)
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0);
    let mut child = holder.spawn().context("cannot start the holder")?;
    let mut answer = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut answer)?;
    }
    if answer.trim() != READY {
        let status = child.wait()?;
        bail!("the holder of {name} did not get ready ({status})");
    }
    Ok(())
}

/// Body of `testbed __hold`: arranges the host and reaps for ever.
///
/// # Errors
/// A mount or the host name fails.
pub fn hold_main(name: &str) -> Result<()> {
    if std::process::id() != 1 {
        bail!("`testbed {HOLD}` is started by `testbed up` only");
    }
    std::env::set_current_dir("/")?;
    arrange_mounts()?;
    rustix::system::sethostname(name.as_bytes()).context("cannot set the host name")?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{READY}")?;
    stdout.flush()?;
    let null = fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    loop {
        // Blocks while there is a child; an orphan of the host becomes one.
        if let Err(Errno::CHILD) = rustix::process::wait(WaitOptions::empty()) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Own `/proc`, `/sys` (with the machine's cgroups) and `/run`, none of which the machine sees.
fn arrange_mounts() -> Result<()> {
    let none = MountFlags::empty();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("cannot make the mounts private")?;
    drop_foreign_mounts()?;
    fs::create_dir_all(OF_THE_KERNEL)?;
    let shared = open_tree(
        rustix::fs::CWD,
        OF_THE_KERNEL,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
    .with_context(|| format!("cannot take {OF_THE_KERNEL} along"))?;
    mount("tranship-tb", "/run", "tmpfs", none, c"mode=0755").context("cannot mount a tmpfs on /run")?;
    fs::create_dir_all("/run/lock")?;
    fs::create_dir(OF_THE_KERNEL)?;
    let whole = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&shared, "", rustix::fs::CWD, OF_THE_KERNEL, whole)
        .with_context(|| format!("cannot put {OF_THE_KERNEL} in its place"))?;
    unmount("/proc", UnmountFlags::DETACH).context("cannot unmount /proc")?;
    mount("proc", "/proc", "proc", none, None).context("cannot mount /proc")?;

    let aside = "/run/cgroup";
    fs::create_dir(aside)?;
    mount_bind_recursive("/sys/fs/cgroup", aside).context("cannot put the cgroups aside")?;
    unmount("/sys", UnmountFlags::DETACH).context("cannot unmount /sys")?;
    mount("sysfs", "/sys", "sysfs", none, None).context("cannot mount /sys")?;
    mount_move(aside, "/sys/fs/cgroup").context("cannot put the cgroups back")?;
    fs::remove_dir(aside)?;
    Ok(())
}

/// A copy of somebody's mount would keep it busy after he has unmounted it. So those in places where programs keep theirs
/// are let go.
fn drop_foreign_mounts() -> Result<()> {
    let own = std::env::current_exe()?;
    let places = ["/run/", "/tmp/", "/var/tmp/", "/var/lib/"];
    let table = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    // The newest first: what lies on top of another goes before it.
    for line in table.lines().rev() {
        let Some(point) = line.split(' ').nth(4) else {
            continue;
        };
        if places.iter().any(|place| point.starts_with(place)) && !own.starts_with(point) {
            // Gone with the one below it, or a name with escaped blanks: either way nothing that hinders a host.
            let _ = unmount(point, UnmountFlags::DETACH);
        }
    }
    Ok(())
}
