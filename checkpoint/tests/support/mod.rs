//! Real containers for the tests: a static busybox in a user namespace, made by runc, removed with the test.
#![allow(dead_code, reason = "each test uses its own part of this")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use tranship_checkpoint::criu::dump::search_path;
use tranship_checkpoint::criu::{Discard, DumpRequest, Memory};
use tranship_proto::ids::ContainerId;

/// The workload: a counter in a file, a deleted open file, and a TCP connection to itself that echoes the counter.
const WORKLOAD: &str = r#"
exec 5>/vol/deleted; echo secret >&5; rm /vol/deleted
echo tmpfs > /dev/shm/kept
nc -ll -p 5000 -e cat &
mkfifo /tmp/lines; sleep 1
nc 127.0.0.1 5000 < /tmp/lines > /vol/echoed &
exec 6>/tmp/lines
i=0
while :; do
  i=$((i+1)); echo $i > /vol/count.new; mv /vol/count.new /vol/count
  echo $i >&6; cat /proc/1/fd/5 > /vol/ghost; cat /dev/shm/kept > /vol/shm
  usleep 10000
done
"#;

pub const CRIU: &str = "/opt/tranship/criu/sbin/criu";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// One side of a move: a host's worth of directories, with a runc root and a cgroup parent of its own.
pub struct Side {
    pub directory: tempfile::TempDir,
    pub cgroup: String,
    pub id: ContainerId,
}

pub fn soon(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

pub fn criu() -> PathBuf {
    std::env::var_os("TRANSHIP_TEST_CRIU").map_or_else(|| CRIU.into(), PathBuf::from)
}

fn busybox() -> PathBuf {
    let output = Command::new("sh")
        .args(["-c", "command -v busybox"])
        .output()
        .unwrap();
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

impl Side {
    /// A fresh side with a bundle that runs the workload.
    pub fn new() -> Self {
        Self::with(|_| ())
    }

    /// A fresh side with a bundle that `alter` has changed.
    pub fn with(alter: impl FnOnce(&mut Value)) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests make containers and need root"
        );
        // A short path: a unix socket's address has 107 bytes.
        let directory = tempfile::Builder::new()
            .prefix("ck-")
            .tempdir_in("/dev/shm")
            .unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = ContainerId::from_random([u8::try_from(number).unwrap(); 32]);
        let cgroup = format!("/ck-{}-{number}/{}", std::process::id(), id.as_str());
        let side = Self {
            directory,
            cgroup,
            id,
        };
        for name in [
            "runc",
            "images",
            "work",
            "relay",
            "path",
            "vol",
            "rootfs/bin",
            "rootfs/proc",
            "rootfs/dev",
        ] {
            fs::create_dir_all(side.path(name)).unwrap();
        }
        for name in [
            "rootfs/sys",
            "rootfs/tmp",
            "rootfs/vol",
            "rootfs/etc",
            "rootfs/scratch",
        ] {
            fs::create_dir_all(side.path(name)).unwrap();
        }
        fs::copy(busybox(), side.path("rootfs/bin/busybox")).unwrap();
        for applet in ["sh", "nc", "cat", "mv", "rm", "usleep", "sleep", "mkfifo"] {
            std::os::unix::fs::symlink("busybox", side.path("rootfs/bin").join(applet)).unwrap();
        }
        for name in ["hosts", "hostname"] {
            fs::write(side.path(name), format!("of container {number}\n")).unwrap();
            fs::write(side.path("rootfs/etc").join(name), "").unwrap();
        }
        fs::write(side.path("vol/work.sh"), WORKLOAD).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_tranship-criu"), side.path("path/criu")).unwrap();
        let mut config = side.config();
        alter(&mut config);
        fs::write(side.path("config.json"), config.to_string()).unwrap();
        side
    }

    /// A side to move `other` to: the same id and the same file contents.
    pub fn beside(other: &Self) -> Self {
        Self::beside_with(other, |_| ())
    }

    /// As [`Self::beside`], with a bundle that `alter` has changed.
    pub fn beside_with(other: &Self, alter: impl FnOnce(&mut Value)) -> Self {
        let mut side = Self::with(alter);
        side.id = other.id.clone();
        for part in ["images", "vol", "rootfs/tmp"] {
            fs::remove_dir_all(side.path(part)).unwrap();
            let status = Command::new("cp")
                .arg("-a")
                .arg(other.path(part))
                .arg(side.path(part))
                .status()
                .unwrap();
            assert!(status.success());
        }
        side
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config(&self) -> Value {
        let capabilities = json!([
            "CAP_CHOWN",
            "CAP_KILL",
            "CAP_SETUID",
            "CAP_SETGID",
            "CAP_NET_BIND_SERVICE"
        ]);
        let bind = |name: &str, target: &str| json!({"destination": target, "type": "bind", "source": self.path(name), "options": ["rbind", "rprivate"]});
        let mount = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
        let devpts = [
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ];
        let mapping = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
        let namespaces: Vec<Value> = ["user", "pid", "ipc", "uts", "mount", "network"]
            .iter()
            .map(|kind| json!({ "type": kind }))
            .collect();
        json!({
            "ociVersion": "1.0.2",
            "hostname": "moved",
            "root": {"path": self.path("rootfs"), "readonly": false},
            "process": {
                "terminal": false, "user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"],
                "args": ["sh", "/vol/work.sh"],
                "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            },
            "mounts": [
                mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
                mount("/dev", "tmpfs", &["nosuid", "mode=755", "size=65536k"]),
                mount("/dev/pts", "devpts", &devpts),
                mount("/dev/shm", "tmpfs", &["nosuid", "nodev", "mode=1777", "size=65536k"]),
                mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
                mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
                mount("/scratch", "tmpfs", &["nosuid", "size=1m"]),
                bind("hosts", "/etc/hosts"), bind("hostname", "/etc/hostname"), bind("vol", "/vol"),
            ],
            "linux": {
                "cgroupsPath": self.cgroup,
                "resources": {"memory": {"limit": 268_435_456}, "pids": {"limit": 100}},
                "uidMappings": mapping, "gidMappings": mapping, "namespaces": namespaces,
                "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/sys/firmware"],
                "readonlyPaths": ["/proc/bus", "/proc/sys"],
            },
        })
    }

    pub fn runc(&self) -> Command {
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(self.path("runc"));
        runc
    }

    /// Starts the container with its output going to `output`, and waits until it counts and echoes.
    pub fn run(&self, output: Stdio) {
        self.start(output);
        wait_until("the workload echoes", || self.echoed() > 3);
    }

    /// Starts the container with its output going to `output`.
    pub fn start(&self, output: Stdio) {
        let mut runc = self.runc();
        runc.args(["run", "--detach", "--bundle"])
            .arg(self.directory.path())
            .arg(self.id.as_str());
        let status = runc
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(self.output())
            .status()
            .unwrap();
        assert!(status.success(), "runc run failed");
    }

    /// Where the workload has counted to.
    pub fn count(&self) -> u64 {
        number(&self.path("vol/count"))
    }

    /// The last number that came back through the workload's TCP connection.
    pub fn echoed(&self) -> u64 {
        fs::read_to_string(self.path("vol/echoed"))
            .ok()
            .and_then(|text| text.lines().last().and_then(|line| line.parse().ok()))
            .unwrap_or(0)
    }

    pub fn dump_request(&self) -> DumpRequest {
        DumpRequest {
            runc: "runc".into(),
            runc_root: self.path("runc"),
            container: self.id.clone(),
            cgroup: self.cgroup.clone(),
            images_dir: self.path("images"),
            work_dir: self.path("work"),
            relay_dir: self.path("relay"),
            criu_path_dir: self.path("path"),
            criu: criu(),
            memory: Memory::Full,
            external_unix_sockets: false,
            parent: None,
            shell_job: false,
            log_level: None,
        }
    }

    /// Starts `runc checkpoint` under the relay's environment, for tests that want to be in the middle.
    pub fn start_dump(&self, environment: Vec<(String, String)>) -> Child {
        let mut runc = self.runc();
        runc.args([
            "checkpoint",
            "--leave-running",
            "--tcp-established",
            "--file-locks",
            "--image-path",
        ]);
        runc.arg(self.path("images"))
            .arg("--work-path")
            .arg(self.path("work"))
            .arg(self.id.as_str());
        runc.envs(environment)
            .env("PATH", search_path(&self.path("path")));
        runc.stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Starts `runc restore` under the relay's environment.
    pub fn start_restore(&self, environment: Vec<(String, String)>) -> Child {
        let mut runc = self.runc();
        runc.args(["restore", "--detach", "--tcp-established", "--file-locks"]);
        for (flag, name) in [
            ("--image-path", "images"),
            ("--work-path", "work"),
            ("--bundle", ""),
            ("--pid-file", "pid"),
        ] {
            runc.arg(flag).arg(self.path(name));
        }
        runc.arg(self.id.as_str())
            .envs(environment)
            .env("PATH", search_path(&self.path("path")));
        runc.stdin(Stdio::null())
            .stdout(self.output())
            .stderr(self.output())
            .spawn()
            .unwrap()
    }

    /// The writing end of a pipe that somebody else drains, as a monitor would.
    pub fn output(&self) -> Stdio {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let log = self.path("output");
        std::thread::spawn(move || {
            let mut file = fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(log)
                .unwrap();
            // The test may have removed its directory by the time the container closes its end.
            let _ = std::io::copy(&mut reader, &mut file);
        });
        writer.into()
    }

    /// The directories of the container's cgroup that exist.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        tranship_checkpoint::cgroup::all_directories(&self.cgroup).unwrap()
    }

    pub fn to_discard(&self) -> Discard {
        Discard {
            runc: "runc".into(),
            runc_root: self.path("runc"),
            container: self.id.clone(),
            cgroup: self.cgroup.clone(),
            rootfs: self.path("rootfs"),
        }
    }

    pub fn delete(&self) {
        let mut runc = self.runc();
        let _ = runc
            .args(["delete", "--force", self.id.as_str()])
            .stderr(Stdio::null())
            .status();
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if let Ok(freezer) = tranship_checkpoint::freeze::Freezer::of_cgroup(&self.cgroup) {
            for pid in tranship_checkpoint::process_tree::pids(&self.cgroup).unwrap_or_default() {
                let _ = rustix::process::kill_process(
                    rustix::process::Pid::from_raw(pid).unwrap(),
                    rustix::process::Signal::KILL,
                );
            }
            let _ = freezer.thaw();
        }
        self.delete();
        let parent = self.cgroup.rsplit_once('/').unwrap().0;
        for cgroup in [self.cgroup.as_str(), parent] {
            for directory in tranship_checkpoint::cgroup::all_directories(cgroup).unwrap() {
                // What was killed may take some milliseconds to be reaped; no panic while another one unwinds.
                for _ in 0..500 {
                    if fs::remove_dir(&directory).is_ok() || !directory.exists() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
    }
}

/// How a program ended; one that does not end is a failure and not a test that hangs.
pub fn end_of(mut program: Child) -> std::process::ExitStatus {
    let mut status = None;
    wait_until("the program ends", || {
        status = program.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

fn number(path: &Path) -> u64 {
    fs::read_to_string(path)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("in vain: {what}");
}

/// Brings the loopback of a process's network namespace up, as the daemon does at `setup-namespaces`.
pub fn loopback_up(pid: i32) {
    let target = pid.to_string();
    let status = Command::new("nsenter")
        .args(["-t", &target, "-n", "ip", "link", "set", "lo", "up"])
        .status()
        .unwrap();
    assert!(status.success());
}
