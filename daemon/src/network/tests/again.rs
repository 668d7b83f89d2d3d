//! A container that cannot be plugged in at once: its bridge is away, or has no port left.

use super::*;

/// Longer than the pauses between the first three attempts.
const THREE_ATTEMPTS: Duration = Duration::from_millis(2500);

/// For a loaded machine, and a pause that may have grown meanwhile.
const LATEST: Duration = Duration::from_secs(30);

/// Ports that a bridge has, as Linux has it.
const MOST_PORTS: u32 = 1023;

fn somebody() -> NetworkRequest {
    NetworkRequest::parse("l2", "10.99.0.10", "02:00:00:00:00:66", Vec::new()).unwrap()
}

/// Another name makes it another bridge to whoever looks for it.
fn rename_bridge(from: &str, to: &str) {
    run(&format!("ip link set {from} down"));
    run(&format!("ip link set {from} name {to}"));
    run(&format!("ip link set {to} up"));
}

async fn until_it_is_plugged(networks: &Networks, place: &Attachment) {
    let latest = Instant::now() + LATEST;
    while !networks.is_plugged(place).await.unwrap() {
        assert!(Instant::now() < latest, "it was never plugged in");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // It is announced after that.
    tokio::time::sleep(Duration::from_millis(100)).await;
}

#[test]
fn a_container_whose_bridge_is_away_is_plugged_in_when_it_is_back() {
    let segment = Segment::new();
    let place = segment.prepare(&container(40), somebody()).unwrap();
    let inner = segment.inner_socket(&place);
    let outer = segment.neighbour.run(|| socket(NEIGHBOUR));
    segment.on_host({
        let place = place.clone();
        async move |networks| {
            rename_bridge("br0", "away0");
            let error = networks.plug_until_it_is_in(&place).await.unwrap_err();
            assert!(matches!(error, NetworkError::NoLink { .. }), "{error}");
            tokio::time::sleep(THREE_ATTEMPTS).await;
            assert!(!networks.is_plugged(&place).await.unwrap());
            rename_bridge("away0", "br0");
            until_it_is_plugged(&networks, &place).await;
        }
    });
    let latest = Instant::now() + LATEST;
    while !(reaches(&inner, &outer) && reaches(&outer, &inner)) {
        assert!(Instant::now() < latest, "the plugged container reaches nobody");
    }
}

#[test]
fn a_full_bridge_takes_a_container_as_soon_as_a_port_is_free() {
    let segment = Segment::new();
    let place = segment.prepare(&container(41), somebody()).unwrap();
    segment.on_host(async move |networks| {
        // The uplink has one. These lead from the bridge to itself, and are not up.
        let cable = |number| {
            format!(
                "link add full{number} type veth peer name lluf{number}\n\
                 link set full{number} master br0\nlink set lluf{number} master br0\n"
            )
        };
        let cables: Vec<_> = (0..(MOST_PORTS - 1) / 2).map(cable).collect();
        let folder = tempfile::tempdir().unwrap();
        let batch = folder.path().join("links");
        std::fs::write(&batch, cables.concat()).unwrap();
        run(&format!("ip -batch {}", batch.display()));
        let error = networks.plug_until_it_is_in(&place).await.unwrap_err();
        assert!(error.chain().contains("Exchange full"), "{}", error.chain());
        run("ip link del full1");
        until_it_is_plugged(&networks, &place).await;
    });
}

#[test]
fn one_that_is_unplugged_or_detached_meanwhile_is_left_alone() {
    let segment = Segment::new();
    segment.on_host(async |networks| networks.ensure().await).unwrap();
    let before = segment.leftovers();
    let (first, second) = (container(42), container(43));
    let other = NetworkRequest::parse("l2", "10.99.0.11", "02:00:00:00:00:67", Vec::new()).unwrap();
    let places = [
        segment.prepare(&first, somebody()).unwrap(),
        segment.prepare(&second, other).unwrap(),
    ];
    segment.on_host(async move |networks| {
        rename_bridge("br0", "away0");
        for place in &places {
            networks.plug_until_it_is_in(place).await.unwrap_err();
        }
        networks.unplug(&places[0]).await.unwrap();
        networks.detach(&second).await.unwrap();
        rename_bridge("away0", "br0");
        tokio::time::sleep(THREE_ATTEMPTS).await;
        assert!(!networks.is_plugged(&places[0]).await.unwrap());
        networks.detach(&first).await.unwrap();
    });
    assert_eq!(segment.leftovers(), before);
}
