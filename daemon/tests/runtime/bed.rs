//! A container of a test: its own directories, cgroup parent and runc root, all of which must be gone in the end.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: what fails here fails the test"
)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tranship_daemon::runtime::exec::{ExecInput, ExecOutput, ExecRequest};
use tranship_daemon::runtime::logs::{LogOptions, read};
use tranship_daemon::runtime::monitor::MonitorRecord;
use tranship_daemon::runtime::spec::{SpecRequest, build};
use tranship_daemon::runtime::{ContainerPaths, ExitStatus, ImageConfig, Runtime, wait};
use tranship_proto::ids::ContainerId;
use tranship_proto::v1::{ContainerSpec, OutputStream};

/// Longer than anything here takes on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Bed {
    place: PathBuf,
    /// Removed in the end, unless somebody else does.
    _dir: Option<TempDir>,
    pub paths: ContainerPaths,
    pub runtime: Runtime,
    cgroup_parent: String,
}

impl Bed {
    pub fn new() -> Self {
        let dir = directory();
        let mut bed = Self::at(dir.path(), &random_id());
        bed._dir = Some(dir);
        bed
    }

    /// A container in a directory that stays.
    pub fn at(place: &Path, id: &ContainerId) -> Self {
        let cgroup_parent = format!("/rt-test-{}", id.short());
        let paths = ContainerPaths::new(&place.join("state"), &place.join("run"), &cgroup_parent, id);
        let runtime = Runtime {
            runc: "runc".into(),
            runc_root: place.join("runc"),
            criu_path_dir: place.join("criu-path"),
            monitor: env!("CARGO_BIN_EXE_tranship-monitor").into(),
            // No container of these tests is migrated.
            filler: "/nonexistent/tranship-filler".into(),
            injector: "/nonexistent/tranship-injector".into(),
        };
        for directory in [&paths.bundle, &runtime.criu_path_dir] {
            fs::create_dir_all(directory).unwrap();
        }
        Self {
            place: place.to_owned(),
            _dir: None,
            paths,
            runtime,
            cgroup_parent,
        }
    }

    /// Writes the bundle of a container that runs `script` in a shell.
    pub fn prepare(&self, script: &str, change: impl FnOnce(&mut ContainerSpec)) {
        make_rootfs(&self.paths.rootfs());
        for file in [
            self.paths.hostname(),
            self.paths.hosts(),
            self.paths.resolv_conf(),
        ] {
            fs::write(file, "rt\n").unwrap();
        }
        let mut spec = ContainerSpec {
            name: "rt".to_owned(),
            network: "none".to_owned(),
            command: vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()],
            ..ContainerSpec::default()
        };
        change(&mut spec);
        let image = ImageConfig::default();
        let request = SpecRequest {
            spec: &spec,
            image: &image,
            paths: &self.paths,
            mounts: &[],
        };
        fs::write(self.paths.config(), build(&request).unwrap()).unwrap();
    }

    /// Prepares and starts.
    pub async fn run(&self, script: &str) -> i32 {
        self.run_with(script, |_| {}).await
    }

    pub async fn run_with(&self, script: &str, change: impl FnOnce(&mut ContainerSpec)) -> i32 {
        self.prepare(script, change);
        let created = self.runtime.create(&self.paths).await.unwrap();
        let pid = created.pid();
        assert_eq!(created.start().await.unwrap(), pid);
        pid
    }

    pub async fn ended(&self) -> ExitStatus {
        tokio::time::timeout(PATIENCE, wait(&self.paths))
            .await
            .expect("the container does not end")
            .unwrap()
    }

    /// Everything of one stream until now, or until the end.
    pub async fn output(&self, stream: OutputStream, follow: bool) -> Vec<u8> {
        let mut chunks = read(&self.paths, LogOptions { tail: None, follow })
            .await
            .unwrap();
        let mut all = Vec::new();
        while let Some(chunk) = tokio::time::timeout(PATIENCE, chunks.recv())
            .await
            .expect("the log does not end")
        {
            let chunk = chunk.unwrap();
            if chunk.stream() == stream {
                all.extend_from_slice(&chunk.data);
            }
        }
        all
    }

    pub async fn stdout(&self) -> String {
        String::from_utf8(self.output(OutputStream::Stdout, true).await).unwrap()
    }

    /// Waits until the container has written `text`.
    pub async fn until_written(&self, text: &str) {
        let seen = async {
            while !String::from_utf8_lossy(&self.output(OutputStream::Stdout, false).await).contains(text) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, seen)
            .await
            .unwrap_or_else(|_| panic!("{text:?} was never written"));
    }

    /// Runs a command inside to its end.
    pub async fn exec(&self, request: ExecRequest, stdin: &[u8]) -> (String, String, i32) {
        let mut session = self.runtime.exec(&self.paths, &request).await.unwrap();
        if request.interactive {
            session
                .input
                .send(ExecInput::Stdin(stdin.to_vec().into()))
                .await
                .unwrap();
            session.input.send(ExecInput::StdinEnd).await.unwrap();
        }
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            let output = tokio::time::timeout(PATIENCE, session.output.recv())
                .await
                .expect("exec does not end");
            match output.expect("no exit code") {
                ExecOutput::Stdout(bytes) => stdout.extend_from_slice(&bytes),
                ExecOutput::Stderr(bytes) => stderr.extend_from_slice(&bytes),
                ExecOutput::Exit(code) => {
                    let text = |bytes| String::from_utf8(bytes).unwrap();
                    return (text(stdout), text(stderr), code);
                }
            }
        }
    }

    pub async fn shell(&self, script: &str) -> (String, String, i32) {
        self.exec(command(script), b"").await
    }

    pub fn monitor(&self) -> MonitorRecord {
        serde_json::from_slice(&fs::read(self.paths.monitor()).unwrap()).unwrap()
    }

    /// Has runc find CRIU without the daemon's relay, and CRIU leave the firewall alone.
    pub fn use_criu(&self) {
        let own = Path::new("/opt/tranship/criu/sbin/criu");
        let criu = if own.exists() {
            own
        } else {
            Path::new("/usr/sbin/criu")
        };
        symlink(criu, self.runtime.criu_path_dir.join("criu")).unwrap();
        let options = self.place.join("criu.conf");
        fs::write(&options, "network-lock skip\nmanage-cgroups ignore\n").unwrap();
        let mut config: serde_json::Value =
            serde_json::from_slice(&fs::read(self.paths.config()).unwrap()).unwrap();
        config["annotations"]["org.criu.config"] = options.to_str().unwrap().into();
        fs::write(self.paths.config(), config.to_string()).unwrap();
    }

    /// A directory for images.
    pub fn images(&self) -> PathBuf {
        let images = self.place.join("images");
        fs::create_dir_all(&images).unwrap();
        images
    }

    /// Dumps the container and ends it.
    pub fn dump(&self) -> PathBuf {
        let images = self.images();
        let own_path = std::env::var("PATH").unwrap();
        let output = std::process::Command::new("runc")
            .env(
                "PATH",
                format!("{}:{own_path}", self.runtime.criu_path_dir.display()),
            )
            .arg("--root")
            .arg(&self.runtime.runc_root)
            .arg("checkpoint")
            .arg("--image-path")
            .arg(&images)
            .arg("--work-path")
            .arg(&images)
            .arg(self.paths.id.as_str())
            .output()
            .unwrap();
        let log = fs::read_to_string(images.join("dump.log")).unwrap_or_default();
        let errors: Vec<&str> = log.lines().filter(|line| line.contains("Error")).collect();
        assert!(output.status.success(), "{output:?}\n{errors:#?}");
        images
    }

    /// Nothing of the container is left: no process, no mount, no cgroup, none of runc's state. That the cgroups' parent can
    /// be removed says that nothing was in it.
    pub fn assert_nothing_is_left(&self) {
        let id = self.paths.id.as_str();
        let place = self.place.to_str().unwrap();
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            assert!(
                !command.contains(id) && !command.contains(place),
                "a process is left: {command}"
            );
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(place), "a mount is left");
        assert!(!self.runtime.runc_root.join(id).exists(), "runc's state is left");
        for parent in self.cgroups() {
            if let Err(error) = fs::remove_dir(&parent) {
                panic!("{} is not empty: {error}", parent.display());
            }
        }
        let files: Vec<_> = fs::read_dir(&self.paths.run)
            .unwrap()
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        assert_eq!(files, ["rootfs"], "files are left in the run directory");
        let complaints = fs::read_to_string(self.paths.monitor_log()).unwrap_or_default();
        assert_eq!(complaints, "", "the monitor complained");
    }

    /// The directories of the cgroup parent, in every hierarchy.
    fn cgroups(&self) -> Vec<PathBuf> {
        let name = self.cgroup_parent.trim_start_matches('/');
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(root).unwrap().flatten().map(|entry| entry.path());
        hierarchies
            .chain([root.to_owned()])
            .map(|path| path.join(name))
            .filter(|path| path.exists())
            .collect()
    }
}

/// A test that fails must not leave a container behind either.
impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.paths.log()).unwrap_or_default();
            eprintln!("container.log:\n{log}\nmonitor.log:");
            eprintln!(
                "{}",
                fs::read_to_string(self.paths.monitor_log()).unwrap_or_default()
            );
            let root = self.runtime.runc_root.to_str().unwrap();
            std::process::Command::new("runc")
                .args(["--root", root, "delete", "--force", self.paths.id.as_str()])
                .output()
                .ok();
            std::thread::sleep(Duration::from_secs(1));
            for parent in self.cgroups() {
                for child in fs::read_dir(&parent).unwrap().flatten() {
                    fs::remove_dir(child.path()).ok();
                }
                fs::remove_dir(parent).ok();
            }
        }
    }
}

pub fn command(script: &str) -> ExecRequest {
    ExecRequest {
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        ..ExecRequest::default()
    }
}

pub fn directory() -> TempDir {
    tempfile::Builder::new().prefix("rt-").tempdir().unwrap()
}

pub fn random_id() -> ContainerId {
    let mut random = [0; 32];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut random).unwrap();
    ContainerId::from_random(random)
}

/// A root filesystem of Debian's static busybox and two users.
fn make_rootfs(rootfs: &Path) {
    for directory in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        fs::create_dir_all(rootfs.join(directory)).unwrap();
    }
    fs::copy("/usr/bin/busybox", rootfs.join("bin/busybox")).expect("the test needs Debian's busybox-static");
    let applets = std::process::Command::new("/usr/bin/busybox")
        .arg("--list")
        .output()
        .unwrap()
        .stdout;
    for applet in String::from_utf8(applets)
        .unwrap()
        .lines()
        .filter(|&name| name != "busybox")
    {
        symlink("busybox", rootfs.join("bin").join(applet)).ok();
    }
    fs::write(
        rootfs.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/var/www:/bin/sh\n",
    )
    .unwrap();
    fs::write(rootfs.join("etc/group"), "root:x:0:\nweb:x:34:\nlog:x:50:web\n").unwrap();
}
