//! Real links in namespaces made for the test: a host with an uplink, and a neighbour at its other end. Root only.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use tranship_proto::ids::ContainerId;

use super::arp::{FRAME_BYTES, Packet};
use super::{Attachment, MacAddr, NetworkError, NetworkRequest, Networks};
use crate::config::{L2Config, NetworkConfig};
use crate::sys::packet::ArpSocket;

mod again;
mod hold;

const HOST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 9);
const NEIGHBOUR_MAC: &str = "02:00:00:00:00:99";

type Work = Box<dyn FnOnce() + Send>;

/// A network namespace as long as this lives: a thread that is in it and does what it is told.
struct Namespace {
    work: Option<mpsc::Sender<Work>>,
    thread: Option<thread::JoinHandle<()>>,
    tid: i32,
}

impl Namespace {
    fn new() -> Self {
        let (work, orders) = mpsc::channel::<Work>();
        let (report, tid) = mpsc::channel();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
            // Mounts of the test stay in its own namespace.
            run("mount --make-rprivate /");
            run("ip link set lo up");
            report.send(nix::unistd::gettid().as_raw()).unwrap();
            orders.into_iter().for_each(|order| order());
        });
        let tid = tid.recv().unwrap();
        Self {
            work: Some(work),
            thread: Some(thread),
            tid,
        }
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, result) = mpsc::channel();
        let order: Work = Box::new(move || drop(sender.send(work())));
        self.work.as_ref().unwrap().send(order).unwrap();
        result
            .recv()
            .expect("the work in the namespace failed, see above")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.work.take());
        drop(self.thread.take().unwrap().join());
    }
}

fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// A host whose uplink leads to a neighbour.
struct Segment {
    host: Namespace,
    neighbour: Namespace,
    containers: Mutex<HashMap<ContainerId, Namespace>>,
}

impl Segment {
    fn new() -> Self {
        let (host, neighbour) = (Namespace::new(), Namespace::new());
        let neighbour_tid = neighbour.tid;
        host.run(move || {
            run(&format!(
                "ip link add up0 type veth peer name far0 netns {neighbour_tid}"
            ));
            run("ip addr add 10.99.0.1/24 dev up0");
            run("ip link set up0 up");
            run("ip route add 192.0.2.0/24 via 10.99.0.9");
            run("ip route add default via 10.99.0.9 metric 50");
        });
        neighbour.run(|| {
            run(&format!("ip link set far0 address {NEIGHBOUR_MAC}"));
            run("ip addr add 10.99.0.9/24 dev far0");
            run("ip link set far0 up");
        });
        host.run(|| until_it_carries("up0"));
        neighbour.run(|| until_it_carries("far0"));
        Self {
            host,
            neighbour,
            containers: Mutex::default(),
        }
    }

    /// Runs `work` on the host as the daemon would, in a runtime of its own.
    fn on_host<T: Send + 'static>(&self, work: impl AsyncFnOnce(Networks) -> T + Send + 'static) -> T {
        self.host.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let networks = Networks::new(config()).unwrap();
                work(networks).await
            })
        })
    }

    /// The network namespace of a container's first process, such as a runtime makes it.
    fn netns(&self, id: &ContainerId) -> PathBuf {
        let mut containers = self.containers.lock().unwrap();
        let namespace = containers.entry(id.clone()).or_insert_with(Namespace::new);
        PathBuf::from(format!(
            "/proc/{}/task/{}/ns/net",
            std::process::id(),
            namespace.tid
        ))
    }

    fn attach(&self, id: &ContainerId, request: NetworkRequest) -> Result<Attachment, NetworkError> {
        let (id, netns) = (id.clone(), self.netns(id));
        self.on_host(async move |networks| choose_and_attach(&networks, &id, request, &netns).await)
    }

    fn prepare(&self, id: &ContainerId, request: NetworkRequest) -> Result<Attachment, NetworkError> {
        let (id, netns) = (id.clone(), self.netns(id));
        self.on_host(async move |networks| networks.prepare(&id, &request, &netns, Vec::new()).await)
    }

    /// Runs `work` where the container is.
    fn inside<T: Send + 'static>(
        &self,
        attachment: &Attachment,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        self.containers.lock().unwrap()[&attachment.container].run(work)
    }

    fn inner_socket(&self, attachment: &Attachment) -> UdpSocket {
        let ip = attachment.interface.as_ref().unwrap().ip;
        self.inside(attachment, move || socket(ip))
    }

    /// Everything a network leaves on a host.
    fn leftovers(&self) -> String {
        self.host.run(|| {
            let links = run("ip -br link");
            let names: Vec<_> = links
                .lines()
                .filter_map(|line| line.split_whitespace().next())
                .collect();
            names.join(" ")
        })
    }
}

/// As a container is started.
async fn choose_and_attach(
    networks: &Networks,
    id: &ContainerId,
    mut request: NetworkRequest,
    netns: &Path,
) -> Result<Attachment, NetworkError> {
    if let Some((ip, mac)) = networks.choose_address(id, &request).await? {
        (request.ip, request.mac) = (Some(ip), Some(mac));
    }
    networks.attach(id, &request, netns).await
}

/// What a container was given.
fn given(attachment: &Attachment) -> NetworkRequest {
    let interface = attachment.interface.as_ref();
    NetworkRequest {
        network: attachment.network.clone(),
        ip: interface.map(|interface| interface.ip),
        mac: interface.map(|interface| interface.mac),
        taken: Vec::new(),
    }
}

fn config() -> BTreeMap<tranship_proto::ids::Name, NetworkConfig> {
    let l2 = L2Config {
        bridge: "br0".to_owned(),
        uplink: Some("up0".to_owned()),
        subnet: "10.99.0.0/24".parse().unwrap(),
        range: Ipv4Addr::new(10, 99, 0, 8)..=Ipv4Addr::new(10, 99, 0, 11),
        gateway: Some(NEIGHBOUR),
        mtu: None,
    };
    BTreeMap::from([("l2".parse().unwrap(), NetworkConfig::L2(l2))])
}

fn container(seed: u8) -> ContainerId {
    ContainerId::from_random([seed; 32])
}

fn on(network: &str) -> NetworkRequest {
    NetworkRequest::parse(network, "", "", Vec::new()).unwrap()
}

fn at(ip: &str) -> NetworkRequest {
    NetworkRequest::parse("l2", ip, "", Vec::new()).unwrap()
}

fn socket(ip: Ipv4Addr) -> UdpSocket {
    let socket = UdpSocket::bind((ip, 7000)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    socket
}

/// Waits until the kernel has noticed that a new cable is plugged in: it drops what is sent before, and notices later on a
/// machine where many links change.
fn until_it_carries(link: &str) {
    let latest = Instant::now() + Duration::from_secs(10);
    while !run(&format!("ip -br link show {link}")).contains(" UP ") {
        assert!(Instant::now() < latest, "{link} never came up");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Whether a datagram gets from one to the other.
fn reaches(from: &UdpSocket, to: &UdpSocket) -> bool {
    from.send_to(b"x", to.local_addr().unwrap()).is_ok() && to.recv_from(&mut [0; 8]).is_ok()
}

#[test]
fn an_attached_container_talks_to_the_neighbour_and_leaves_nothing_when_detached() {
    let segment = Segment::new();
    segment.on_host(async |networks| networks.ensure().await).unwrap();
    let before = segment.leftovers();
    let id = container(1);
    let attachment = segment.attach(&id, on("l2")).unwrap();
    let interface = attachment.interface.clone().unwrap();
    assert_eq!(
        interface.ip,
        Ipv4Addr::new(10, 99, 0, 8),
        "the lowest of the range"
    );
    let inner = segment.inner_socket(&attachment);
    let outer = segment.neighbour.run(|| socket(NEIGHBOUR));
    assert!(reaches(&inner, &outer) && reaches(&outer, &inner));

    let inside = segment.inside(&attachment, || (run("ip addr show"), run("ip route show")));
    assert!(inside.0.contains(&interface.mac.to_string()), "{}", inside.0);
    assert!(
        !inside.0.contains("inet6 fe80"),
        "IPv6 is off on eth0: {}",
        inside.0
    );
    assert!(
        inside.1.starts_with("default via 10.99.0.9 dev eth0"),
        "{}",
        inside.1
    );
    drop((inner, outer));
    segment.on_host(async move |networks| {
        networks.detach(&id).await.unwrap();
        networks.detach(&id).await.unwrap();
        let found = networks.find(&id, &given(&attachment), &attachment.netns).await;
        assert_eq!(found.unwrap(), None);
    });
    assert_eq!(segment.leftovers(), before);
}

#[test]
fn the_uplinks_address_and_routes_move_to_the_bridge_and_the_host_stays_reachable() {
    let segment = Segment::new();
    let outer = segment.neighbour.run(|| socket(NEIGHBOUR));
    let own = segment.host.run(|| socket(HOST));
    assert!(reaches(&outer, &own));
    let mac = segment.host.run(|| run("ip -br link show up0"));
    for _ in 0..2 {
        segment.on_host(async |networks| networks.ensure().await).unwrap();
        let host = segment.host.run(|| {
            (
                run("ip -4 -br addr show up0"),
                run("ip -4 -br addr show br0"),
                run("ip -4 route show"),
            )
        });
        assert!(!host.0.contains("10.99"), "{}", host.0);
        assert!(host.1.contains("10.99.0.1/24"), "{}", host.1);
        for route in [
            "default via 10.99.0.9 dev br0 metric 50",
            "192.0.2.0/24 via 10.99.0.9 dev br0",
            "10.99.0.0/24 dev br0 proto kernel",
        ] {
            assert_eq!(host.2.matches(route).count(), 1, "{route} in {}", host.2);
        }
        assert!(!host.2.contains("up0"), "{}", host.2);
        assert!(reaches(&outer, &own) && reaches(&own, &outer));
    }
    let link = segment.host.run(|| run("ip -d link show br0"));
    assert!(link.contains(mac.split_whitespace().nth(2).unwrap()), "{link}");
    for setting in ["stp_state 0", "forward_delay 0", "mcast_snooping 0"] {
        assert!(link.contains(setting), "{setting} in {link}");
    }
}

#[test]
fn an_unplugged_container_neither_sends_nor_receives_until_it_is_plugged_in_again() {
    let segment = Segment::new();
    let attachment = segment.attach(&container(2), on("l2")).unwrap();
    let inner = segment.inner_socket(&attachment);
    let outer = segment.neighbour.run(|| socket(NEIGHBOUR));
    assert!(reaches(&inner, &outer));
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        let place = attachment.clone();
        let took = segment.on_host(async move |networks| {
            let took = networks.unplug(&place).await.unwrap();
            assert!(!networks.is_plugged(&place).await.unwrap());
            took
        });
        slowest = slowest.max(took);
        assert!(!reaches(&inner, &outer) && !reaches(&outer, &inner));
        let place = attachment.clone();
        let took = segment.on_host(async move |networks| networks.plug(&place).await.unwrap());
        slowest = slowest.max(took);
        let begin = Instant::now();
        assert!(reaches(&outer, &inner) && reaches(&inner, &outer));
        assert!(
            begin.elapsed() < Duration::from_millis(100),
            "no neighbour had to be asked for again"
        );
    }
    assert!(slowest < Duration::from_millis(50), "a cut took {slowest:?}");
    println!("slowest of five cuts and five plugs: {slowest:?}");
}

#[test]
fn an_address_is_announced_three_times_in_both_forms_from_its_own_port() {
    let segment = Segment::new();
    let listener = segment.neighbour.run(|| ArpSocket::open("far0").unwrap());
    let id = container(3);
    let request = NetworkRequest::parse("l2", "10.99.0.10", "02:00:00:00:00:33", vec![]).unwrap();
    let place = segment.prepare(&id, request).unwrap();
    let deadline = Instant::now() + Duration::from_millis(300);
    let quiet = packets(&listener, deadline);
    assert!(
        quiet
            .iter()
            .all(|packet| packet.sender_mac.to_string() != "02:00:00:00:00:33"),
        "{quiet:?}"
    );

    segment.on_host(async move |networks| {
        networks.plug(&place).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1200)).await;
    });
    let seen = packets(&listener, Instant::now() + Duration::from_millis(100));
    let announced = Packet::announcements("02:00:00:00:00:33".parse().unwrap(), Ipv4Addr::new(10, 99, 0, 10));
    for form in announced {
        assert_eq!(
            seen.iter().filter(|packet| **packet == form).count(),
            3,
            "{form:?} in {seen:?}"
        );
    }
    let ports = segment
        .host
        .run(|| run("bridge fdb show br br0 brport tr-030303030303"));
    assert!(
        ports.contains("02:00:00:00:00:33"),
        "the bridge has learned where it is: {ports}"
    );
}

fn packets(listener: &ArpSocket, deadline: Instant) -> Vec<Packet> {
    let mut buffer = [0; FRAME_BYTES];
    let mut packets = Vec::new();
    while let Some(bytes) = listener.receive(&mut buffer, deadline).unwrap() {
        packets.extend(Packet::decode(bytes));
    }
    packets
}

#[test]
fn nothing_leaves_a_container_that_is_held() {
    let segment = Segment::new();
    let id = container(4);
    let request = NetworkRequest::parse("l2", "10.99.0.10", "02:00:00:00:00:44", vec![]).unwrap();
    let place = segment.prepare(&id, request).unwrap();
    let inner = segment.inner_socket(&place);
    let outer = segment.neighbour.run(|| socket(NEIGHBOUR));
    let own = segment.host.run(|| socket(HOST));
    assert!(!reaches(&inner, &outer) && !reaches(&outer, &inner));
    assert!(!reaches(&inner, &own), "not even the host's own stack answers");
    segment
        .on_host(async move |networks| networks.plug(&place).await)
        .unwrap();
    // Who was asked for in vain is asked for again within a second.
    let deadline = Instant::now() + Duration::from_secs(5);
    for other in [&outer, &own] {
        while !reaches(&inner, other) {
            assert!(Instant::now() < deadline, "the plugged container reaches nobody");
        }
    }
}

#[test]
fn an_address_that_somebody_answers_for_is_refused_with_who_it_is() {
    let segment = Segment::new();
    let before = {
        segment.on_host(async |networks| networks.ensure().await).unwrap();
        segment.leftovers()
    };
    let error = segment.attach(&container(5), at("10.99.0.1")).unwrap_err();
    assert_eq!(error.to_string(), "the address 10.99.0.1 belongs to this host");
    segment
        .neighbour
        .run(|| run("ip addr add 10.99.0.77/24 dev far0"));
    let error = segment.attach(&container(5), at("10.99.0.77")).unwrap_err();
    assert!(
        matches!(&error, NetworkError::Conflict { mac, .. } if mac.to_string() == NEIGHBOUR_MAC),
        "{error}"
    );
    assert!(error.to_string().contains(NEIGHBOUR_MAC), "{error}");
    assert_eq!(segment.leftovers(), before);

    let asked = segment.on_host(async |networks| {
        let taken = networks
            .probe_address("l2", Ipv4Addr::new(10, 99, 0, 77), None)
            .await
            .unwrap();
        let free = networks
            .probe_address("l2", Ipv4Addr::new(10, 99, 0, 78), None)
            .await
            .unwrap();
        let expected = networks
            .probe_address("l2", Ipv4Addr::new(10, 99, 0, 77), taken)
            .await
            .unwrap();
        (taken, free, expected)
    });
    assert_eq!(asked, (Some(NEIGHBOUR_MAC.parse().unwrap()), None, None));
}

#[test]
fn containers_that_start_at_once_get_addresses_of_their_own_until_none_is_left() {
    let segment = Segment::new();
    let places: Vec<_> = (10..14)
        .map(|seed| (container(seed), segment.netns(&container(seed))))
        .collect();
    let results = segment.on_host(async move |networks| {
        let starts = places
            .iter()
            .map(|(id, netns)| choose_and_attach(&networks, id, on("l2"), netns));
        futures_util::future::join_all(starts).await
    });
    let (got, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    let mut ips: Vec<u8> = got
        .into_iter()
        .map(|place| place.unwrap().interface.unwrap().ip.octets()[3])
        .collect();
    ips.sort_unstable();
    assert_eq!(ips, [8, 10, 11], "9 is the gateway's");
    assert!(
        matches!(refused[..], [Err(NetworkError::Exhausted { .. })]),
        "{refused:?}"
    );
}

#[test]
fn a_daemon_that_starts_again_finds_what_it_had_made() {
    let segment = Segment::new();
    for (seed, network) in [(20, "l2"), (21, "none"), (22, "host")] {
        let attachment = segment.attach(&container(seed), on(network)).unwrap();
        assert_eq!(attachment.interface.is_some(), network == "l2");
        let (request, netns) = (given(&attachment), attachment.netns.clone());
        let found =
            segment.on_host(async move |networks| networks.find(&container(seed), &request, &netns).await);
        assert_eq!(found.unwrap(), Some(attachment));
    }
    let asks = NetworkRequest {
        mac: Some(MacAddr::of_container(&container(1))),
        ..on("none")
    };
    let error = segment.attach(&container(23), asks).unwrap_err();
    assert!(matches!(error, NetworkError::NoAddresses { .. }), "{error}");
    let error = segment.attach(&container(23), on("l3")).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"there is no network "l3" on this host; it has host, l2, none"#
    );
}

#[test]
fn a_failed_attach_takes_back_what_it_made() {
    let segment = Segment::new();
    segment.on_host(async |networks| networks.ensure().await).unwrap();
    let before = segment.leftovers();
    let id = container(30);
    let name = format!("tr-{}", id.short());
    segment.host.run({
        let name = name.clone();
        move || run(&format!("ip link add {name} type bridge"))
    });
    let error = segment.attach(&id, on("l2")).unwrap_err();
    assert!(
        error.to_string().starts_with("cannot make the links tr-"),
        "{error}"
    );
    assert_eq!(segment.leftovers(), before);
}

#[test]
fn a_second_attach_is_refused_and_leaves_the_first_as_it_is() {
    let segment = Segment::new();
    let attachment = segment.attach(&container(31), on("l2")).unwrap();
    let error = segment.prepare(&container(31), given(&attachment)).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("is on a network already: detach it first"),
        "{error}"
    );
    let inner = segment.inner_socket(&attachment);
    let outer = segment.neighbour.run(|| socket(NEIGHBOUR));
    assert!(reaches(&inner, &outer) && reaches(&outer, &inner));
}
