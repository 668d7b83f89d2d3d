//! A daemon of a test's own: real everything, in directories and a cgroup that nobody else uses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server};
use tower::service_fn;
use tranship_daemon::api;
use tranship_daemon::config::Config;
use tranship_daemon::containers::Recovered;
use tranship_daemon::daemon::Daemon;
use tranship_daemon::migration::Conductor;
use tranship_proto::v1::tranship_client::TranshipClient;
use tranship_proto::v1::tranship_server::TranshipServer;
use tranship_proto::v1::{
    ContainerSpec, ExecRequest, ExecStart, Image, ImportImageRequest, ImportImageStart, LogsRequest,
    exec_reply, exec_request, import_image_request,
};

pub type Client = TranshipClient<Channel>;

/// Directories, a tmpfs and a cgroup for one daemon; all of it goes when this is dropped.
pub struct Home {
    pub dir: PathBuf,
    pub cgroup: String,
}

impl Home {
    pub fn new(name: &str) -> Self {
        let name = format!("co-{name}-{}", std::process::id());
        let dir = Path::new("/var/tmp").join(&name);
        std::fs::create_dir_all(dir.join("run")).unwrap();
        mount("tmpfs", &dir.join("run"));
        let libexec = dir.join("libexec");
        std::fs::create_dir(&libexec).unwrap();
        let monitor = env!("CARGO_BIN_EXE_tranship-monitor");
        std::os::unix::fs::symlink(monitor, libexec.join("tranship-monitor")).unwrap();
        // Nothing is checkpointed here: whoever tried would hear of it.
        for program in ["tranship-criu", "tranship-filler", "tranship-injector"] {
            std::os::unix::fs::symlink("/bin/false", libexec.join(program)).unwrap();
        }
        Self {
            dir,
            cgroup: format!("/{name}"),
        }
    }

    pub fn config(&self) -> Config {
        let text = format!(
            "name = 'a'\nstate_dir = '{0}/state'\nrun_dir = '{0}/run'\ncgroup_parent = '{1}'\nlibexec_dir = '{0}/libexec'\n",
            self.dir.display(),
            self.cgroup,
        );
        Config::parse(Path::new("test.toml"), &text).unwrap()
    }

    /// What containers leave behind when something forgets to clean up.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let below = |line: &&str| {
            let point = line.split(' ').nth(4).unwrap();
            point.starts_with(self.dir.to_str().unwrap()) && point != self.dir.join("run").to_str().unwrap()
        };
        found.extend(mounts.lines().filter(below).map(|line| format!("mount {line}")));
        for directory in [
            "run/containers",
            "run/runc",
            "run/netns",
            "state/containers",
            "state/drivers/overlay/rootfs",
        ] {
            for entry in std::fs::read_dir(self.dir.join(directory)).into_iter().flatten() {
                found.push(format!("{directory}: {:?}", entry.unwrap().file_name()));
            }
        }
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap() {
            let parent = hierarchy
                .unwrap()
                .path()
                .join(self.cgroup.trim_start_matches('/'));
            for entry in std::fs::read_dir(&parent).into_iter().flatten().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    found.push(format!("cgroup {:?}", entry.path()));
                }
            }
        }
        found
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            let _ = std::fs::remove_dir(hierarchy.path().join(self.cgroup.trim_start_matches('/')));
        }
        let unmounted = nix::mount::umount2(&self.dir.join("run"), nix::mount::MntFlags::MNT_DETACH);
        if unmounted.is_ok() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

fn mount(kind: &str, target: &Path) {
    let none: Option<&str> = None;
    nix::mount::mount(Some(kind), target, Some(kind), nix::mount::MsFlags::empty(), none).unwrap();
}

/// A daemon that serves its socket, and a client of it.
pub struct Running {
    pub client: Client,
    pub recovered: Recovered,
    pub daemon: Daemon,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
}

impl Running {
    pub async fn start(home: &Home) -> Self {
        let config = home.config();
        let socket = config.socket.clone();
        let (daemon, recovered) = Daemon::open(config)
            .await
            .unwrap_or_else(|error| panic!("{error:?}"));
        let shutdown = CancellationToken::new();
        let (stop, served) = (shutdown.clone(), daemon.clone());
        let serving = tokio::spawn(async move {
            let connections = api::listen(&served.config).await.unwrap();
            let service = TranshipServer::new(api::Api::new(served.clone(), Conductor::new(served)));
            let server = Server::builder().add_service(service);
            server
                .serve_with_incoming_shutdown(connections, stop.cancelled_owned())
                .await
                .unwrap();
        });
        Self {
            client: connect(&socket).await,
            recovered,
            daemon,
            shutdown,
            serving,
        }
    }

    /// The daemon is gone after this, as far as containers can tell.
    pub async fn stop(self) {
        self.shutdown.cancel();
        drop(self.client);
        tokio::time::timeout(Duration::from_secs(10), self.serving)
            .await
            .unwrap()
            .unwrap();
    }
}

async fn connect(socket: &Path) -> Client {
    for _ in 0..100 {
        let path = socket.to_owned();
        let connector = service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://transhipd");
        if let Ok(channel) = endpoint.connect_with_connector(connector).await {
            return Client::new(channel);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the daemon does not answer on {}", socket.display());
}

/// Imports a root file system of the static busybox, with a directory of another user's.
pub async fn import_busybox(client: &mut Client) -> Image {
    let start = ImportImageStart {
        name: "busybox".into(),
        changes: vec!["CMD [\"sh\"]".into()],
    };
    let mut requests = vec![import_image_request::Part::Start(start)];
    for piece in busybox_tar().chunks(100_000) {
        requests.push(import_image_request::Part::Data(piece.to_vec()));
    }
    let requests = requests
        .into_iter()
        .map(|part| ImportImageRequest { part: Some(part) });
    client
        .import_image(tokio_stream::iter(requests))
        .await
        .unwrap()
        .into_inner()
}

fn busybox_tar() -> Vec<u8> {
    let mut tar = Archive::default();
    for path in ["bin", "etc", "proc", "sys", "dev", "root", "var"] {
        tar.add(tar::EntryType::Directory, path, 0o755, 0, b"");
    }
    tar.add(tar::EntryType::Directory, "tmp", 0o1777, 0, b"");
    tar.add(tar::EntryType::Directory, "var/db", 0o700, 70, b"");
    tar.file("bin/busybox", 0o755, 0, &std::fs::read("/bin/busybox").unwrap());
    tar.file(
        "etc/passwd",
        0o644,
        0,
        b"root:x:0:0::/root:/bin/sh\ndb:x:70:70::/var/db:/bin/sh\n",
    );
    tar.file("etc/group", 0o644, 0, b"root:x:0:\ndb:x:70:\n");
    tar.file("var/db/seed", 0o600, 70, b"from the image\n");
    for applet in [
        "sh", "sleep", "cat", "echo", "id", "ls", "stat", "test", "kill", "hostname", "touch",
    ] {
        tar.link(&format!("bin/{applet}"), "busybox");
    }
    tar.0.into_inner().unwrap()
}

struct Archive(tar::Builder<Vec<u8>>);

impl Default for Archive {
    fn default() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }
}

impl Archive {
    fn header(kind: tar::EntryType, mode: u32, owner: u64, bytes: &[u8]) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(1_000_000_000);
        header.set_size(bytes.len() as u64);
        header
    }

    fn add(&mut self, kind: tar::EntryType, path: &str, mode: u32, owner: u64, bytes: &[u8]) {
        self.0
            .append_data(&mut Self::header(kind, mode, owner, bytes), path, bytes)
            .unwrap();
    }

    fn file(&mut self, path: &str, mode: u32, owner: u64, bytes: &[u8]) {
        self.add(tar::EntryType::Regular, path, mode, owner, bytes);
    }

    fn link(&mut self, path: &str, target: &str) {
        let mut header = Self::header(tar::EntryType::Symlink, 0o777, 0, b"");
        self.0.append_link(&mut header, path, target).unwrap();
    }
}

/// A container of busybox that runs `script`.
pub fn shell(name: &str, script: &str) -> ContainerSpec {
    ContainerSpec {
        name: name.into(),
        image: "busybox".into(),
        command: vec!["sh".into(), "-c".into(), script.into()],
        network: "none".into(),
        ..Default::default()
    }
}

/// Runs a program inside: exit code and standard output.
pub async fn exec(client: &mut Client, name: &str, command: &[&str], stdin: &str) -> (i32, String) {
    let start = ExecStart {
        name: name.into(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        interactive: !stdin.is_empty(),
        ..Default::default()
    };
    let mut parts = vec![exec_request::Part::Start(start)];
    if !stdin.is_empty() {
        parts.push(exec_request::Part::Stdin(stdin.as_bytes().to_vec()));
        parts.push(exec_request::Part::StdinEnd(true));
    }
    let requests = parts.into_iter().map(|part| ExecRequest { part: Some(part) });
    // The request stream stays open until the answer has ended, as a terminal's does.
    let open = tokio_stream::StreamExt::chain(tokio_stream::iter(requests), tokio_stream::pending());
    let mut replies = client.exec(open).await.unwrap().into_inner();
    let mut output = String::new();
    loop {
        let reply = tokio::time::timeout(Duration::from_secs(20), replies.message())
            .await
            .unwrap()
            .unwrap();
        match reply
            .unwrap_or_else(|| panic!("exec ended without a code after {output:?}"))
            .part
        {
            Some(exec_reply::Part::Stdout(bytes)) => output.push_str(std::str::from_utf8(&bytes).unwrap()),
            Some(exec_reply::Part::ExitCode(code)) => return (code, output),
            _ => {}
        }
    }
}

/// The whole log by stream: 1 is standard output, 2 standard error. Following, it returns when the container has ended.
pub async fn logs(client: &mut Client, name: &str, follow: bool) -> BTreeMap<i32, String> {
    let request = LogsRequest {
        name: name.into(),
        follow,
        tail: -1,
    };
    let mut chunks = client.logs(request).await.unwrap().into_inner();
    let mut texts: BTreeMap<i32, String> = BTreeMap::new();
    while let Some(chunk) = tokio::time::timeout(Duration::from_secs(20), chunks.message())
        .await
        .unwrap()
        .unwrap()
    {
        texts
            .entry(chunk.stream)
            .or_default()
            .push_str(std::str::from_utf8(&chunk.data).unwrap());
    }
    texts
}
