//! What is sent to a container that is on its way here, and what one says that is on its way elsewhere.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::*;
use crate::network::Neighbour;

const IP: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 10);
const MAC: &str = "02:00:00:00:00:55";

/// More than wait for one container.
const TOO_MANY: u64 = 9000;

fn coming() -> NetworkRequest {
    NetworkRequest::parse("l2", &IP.to_string(), MAC, Vec::new()).unwrap()
}

/// Has the neighbour know where the container is, as after a conversation with it.
fn acquaint(segment: &Segment) {
    let command = format!("ip neigh replace {IP} lladdr {MAC} dev far0 nud permanent");
    segment.neighbour.run(move || run(&command));
}

fn send_numbers(from: &UdpSocket, numbers: std::ops::Range<u64>) {
    for number in numbers {
        from.send_to(&number.to_be_bytes(), (IP, 7000)).unwrap();
    }
}

fn receive_numbers(socket: &UdpSocket) -> Vec<u64> {
    let mut numbers = Vec::new();
    let mut bytes = [0; 8];
    while socket.recv_from(&mut bytes).is_ok() {
        numbers.push(u64::from_be_bytes(bytes));
    }
    numbers
}

/// A host that holds frames for a container, and does the next step when it is told to.
struct Arrival {
    host: thread::JoinHandle<()>,
    steps: mpsc::Sender<()>,
    held: mpsc::Receiver<()>,
    attached: mpsc::Receiver<Attachment>,
}

impl Arrival {
    fn begin(segment: &Arc<Segment>, id: &ContainerId) -> Self {
        let (steps, next) = mpsc::channel();
        let (holds, held) = mpsc::channel();
        let (attaches, attached) = mpsc::channel();
        let (segment, id) = (Arc::clone(segment), id.clone());
        let netns = segment.netns(&id);
        let host = thread::spawn(move || {
            segment.on_host(async move |networks| {
                networks.expect(&id, &coming()).await.unwrap();
                networks.hold(&id, &coming()).await.unwrap();
                holds.send(()).unwrap();
                next.recv().unwrap();
                let place = networks.prepare(&id, &coming(), &netns, Vec::new()).await;
                let place = place.unwrap();
                attaches.send(place.clone()).unwrap();
                next.recv().unwrap();
                networks.plug(&place).await.unwrap();
                holds.send(()).unwrap();
                next.recv().unwrap();
                networks.let_go(&id).await;
            });
        });
        held.recv().unwrap();
        Self {
            host,
            steps,
            held,
            attached,
        }
    }

    fn attach(&self) -> Attachment {
        self.steps.send(()).unwrap();
        self.attached.recv().unwrap()
    }

    fn plug(&self) {
        self.steps.send(()).unwrap();
        self.held.recv().unwrap();
    }

    fn end(self) {
        self.steps.send(()).unwrap();
        self.host.join().unwrap();
    }
}

#[test]
fn what_is_sent_to_a_container_on_its_way_waits_and_arrives_in_order() {
    let segment = Arc::new(Segment::new());
    segment.on_host(async |networks| networks.ensure().await).unwrap();
    let before = segment.leftovers();
    acquaint(&segment);
    let arrival = Arrival::begin(&segment, &container(20));
    let outer = segment.neighbour.run(|| socket(NEIGHBOUR));
    send_numbers(&outer, 0..100);
    let place = arrival.attach();
    let inner = segment.inner_socket(&place);
    send_numbers(&outer, 100..200);
    assert_eq!(receive_numbers(&inner), [0; 0], "nothing arrives before its time");
    arrival.plug();
    send_numbers(&outer, 200..230);
    assert_eq!(receive_numbers(&inner), (0..230).collect::<Vec<_>>());
    assert!(reaches(&inner, &outer) && reaches(&outer, &inner));
    arrival.end();
    assert!(reaches(&outer, &inner), "the tap is not needed any more");
    let links = segment.leftovers();
    assert_eq!(links, format!("{before} tr-141414141414@if2"), "the tap is gone");
}

#[test]
fn who_asks_for_a_held_address_is_answered_when_the_container_is_there() {
    let segment = Arc::new(Segment::new());
    let arrival = Arrival::begin(&segment, &container(21));
    let outer = segment.neighbour.run(|| socket(NEIGHBOUR));
    send_numbers(&outer, 0..1);
    let place = arrival.attach();
    let inner = segment.inner_socket(&place);
    arrival.plug();
    assert_eq!(
        receive_numbers(&inner),
        [0],
        "it waited for the answer to a question that was held"
    );
    arrival.end();
}

#[test]
fn a_container_that_is_only_expected_changes_nothing_for_anybody() {
    let segment = Segment::new();
    let elsewhere = segment.neighbour.run(|| {
        run("ip addr add 10.99.0.10/32 dev far0");
        socket(IP)
    });
    let own = segment.host.run(|| socket(HOST));
    let left = segment.on_host(async move |networks| {
        networks.expect(&container(22), &coming()).await.unwrap();
        networks.expect(&container(22), &coming()).await.unwrap();
        assert!(reaches(&own, &elsewhere) && reaches(&elsewhere, &own));
        networks.let_go(&container(22)).await;
        networks.let_go(&container(22)).await;
        run("ip -br link")
    });
    assert!(!left.contains("th-"), "{left}");
}

#[test]
fn a_tap_that_a_program_being_started_has_open_too_is_gone_when_it_is_let_go() {
    let segment = Segment::new();
    let left = segment.on_host(async move |networks| {
        let id = container(27);
        networks.expect(&id, &coming()).await.unwrap();
        let hold = networks.shared.holds.of(&id).unwrap();
        let inherited = hold.trap.tap().as_fd().try_clone_to_owned().unwrap();
        drop(hold);
        networks.let_go(&id).await;
        let left = run("ip -br link");
        networks.expect(&id, &coming()).await.unwrap();
        drop(inherited);
        networks.let_go(&id).await;
        left
    });
    assert!(!left.contains("th-"), "{left}");
}

#[test]
fn more_than_there_is_room_for_is_dropped_and_counted() {
    let segment = Arc::new(Segment::new());
    acquaint(&segment);
    let outer = segment.neighbour.run(|| socket(NEIGHBOUR));
    let netns = segment.netns(&container(23));
    let delivered = segment.on_host(async move |networks| {
        let id = container(23);
        networks.hold(&id, &coming()).await.unwrap();
        send_numbers(&outer, 0..TOO_MANY);
        let place = networks.prepare(&id, &coming(), &netns, Vec::new()).await;
        let cable = place.unwrap().interface.unwrap().host_link;
        let links = &networks.shared.links;
        run(&format!("ip link set {cable} master br0"));
        let cable = links.find(&cable).await.unwrap().unwrap();
        let hold = networks.shared.holds.of(&id).unwrap();
        hold.hand_over(links, &cable).await.unwrap()
    });
    // A host says a few things by itself, which take places in the queue and are nobody's here.
    let all = delivered.frames + delivered.lost;
    assert!((TOO_MANY..TOO_MANY + 32).contains(&all), "{delivered:?}");
    assert!((8160..=8192).contains(&delivered.frames), "{delivered:?}");
}

/// A host that settles, cuts off and takes back a container, a step each time it is told to.
fn hesitate(segment: &Arc<Segment>, place: &Attachment) -> (thread::JoinHandle<()>, impl FnMut() + use<>) {
    let (steps, next) = mpsc::channel();
    let (reports, done) = mpsc::channel();
    let (segment, place) = (Arc::clone(segment), place.clone());
    let host = thread::spawn(move || {
        segment.on_host(async move |networks| {
            next.recv().unwrap();
            let soon = Instant::now() + Duration::from_millis(20);
            assert!(networks.settle(&place, soon).await.unwrap().is_none());
            reports.send(()).unwrap();
            next.recv().unwrap();
            networks.cut(&place).await.unwrap();
            reports.send(()).unwrap();
            next.recv().unwrap();
            networks.plug(&place).await.unwrap();
            networks.let_go(&place.container).await;
            reports.send(()).unwrap();
        });
    });
    let step = move || {
        steps.send(()).unwrap();
        done.recv().expect("the step failed, see above");
    };
    (host, step)
}

#[test]
fn who_comes_while_a_container_is_being_cut_off_waits_and_all_else_goes_on() {
    let segment = Arc::new(Segment::new());
    let place = segment.attach(&container(24), coming()).unwrap();
    let listener = segment.inside(&place, || std::net::TcpListener::bind((IP, 7001)).unwrap());
    let mut client = segment
        .neighbour
        .run(|| std::net::TcpStream::connect((IP, 7001)).unwrap());
    let (mut server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
    let inner = segment.inner_socket(&place);
    let outer = segment.neighbour.run(|| socket(NEIGHBOUR));
    assert!(reaches(&outer, &inner));
    let (host, mut step) = hesitate(&segment, &place);
    let mut word = [0; 4];

    step();
    assert!(reaches(&inner, &outer) && reaches(&outer, &inner));
    std::io::Write::write_all(&mut client, b"pass").unwrap();
    std::io::Read::read_exact(&mut server, &mut word).unwrap();
    let comes = {
        let segment = Arc::clone(&segment);
        thread::spawn(move || {
            segment.neighbour.run(|| {
                let began = Instant::now();
                std::net::TcpStream::connect((IP, 7001)).unwrap();
                began.elapsed()
            })
        })
    };
    listener.set_nonblocking(true).unwrap();
    thread::sleep(Duration::from_millis(50));
    assert!(listener.accept().is_err(), "who comes now waits");

    step();
    std::io::Write::write_all(&mut client, b"wait").unwrap();
    assert!(std::io::Read::read_exact(&mut server, &mut word).is_err());
    assert!(!reaches(&inner, &outer), "nothing leaves");

    step();
    std::io::Read::read_exact(&mut server, &mut word).unwrap();
    assert_eq!(&word, b"wait");
    let waited = comes.join().unwrap();
    assert!(
        waited < Duration::from_millis(950),
        "it was not the second packet that was heard: {waited:?}"
    );
    assert!(reaches(&inner, &outer) && reaches(&outer, &inner));
    host.join().unwrap();
    assert!(!segment.leftovers().contains("th-"));
}

#[test]
fn who_was_kept_waiting_is_let_in_when_the_container_stays() {
    let segment = Arc::new(Segment::new());
    let place = segment.attach(&container(26), coming()).unwrap();
    let listener = segment.inside(&place, || std::net::TcpListener::bind((IP, 7001)).unwrap());
    let settled = place.clone();
    let neighbour = Arc::clone(&segment);
    let waited = segment.on_host(async move |networks| {
        let soon = Instant::now() + Duration::from_millis(5);
        assert!(networks.settle(&settled, soon).await.unwrap().is_none());
        let comes = thread::spawn(move || {
            neighbour.neighbour.run(|| {
                let began = Instant::now();
                std::net::TcpStream::connect((IP, 7001)).unwrap();
                began.elapsed()
            })
        });
        thread::sleep(Duration::from_millis(50));
        networks.let_go(&settled.container).await;
        comes.join().unwrap()
    });
    assert!(waited < Duration::from_millis(950), "{waited:?}");
    drop(listener);
}

#[test]
fn a_container_knows_its_neighbours_again() {
    let segment = Segment::new();
    let netns = segment.netns(&container(25));
    let known = Neighbour {
        ip: Ipv4Addr::new(10, 99, 0, 77),
        mac: NEIGHBOUR_MAC.parse().unwrap(),
    };
    let place = segment
        .on_host(async move |networks| {
            let known = vec![known];
            networks.prepare(&container(25), &coming(), &netns, known).await
        })
        .unwrap();
    let table = segment.inside(&place, || run("ip neigh"));
    assert_eq!(
        table.trim(),
        format!("10.99.0.77 dev eth0 lladdr {NEIGHBOUR_MAC} STALE")
    );
    let tid = segment.containers.lock().unwrap()[&container(25)].tid;
    assert_eq!(super::super::neighbours_of(tid).unwrap(), [known]);
}
