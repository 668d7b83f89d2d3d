//! What clients send while a container is on its way is not lost, wherever they are.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tranship_tests::counter::Counter;
use tranship_tests::images::{self, REDIS_PORT};
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, daemon};
use tranship_tests::tranship::{Migration, wait_for};

/// Moves there and back.
const ROUND_TRIPS: usize = 3;

/// Clients at each place.
const CLIENTS: usize = 4;

/// Between two moves, so that each finds a workload under way.
const COUNT: Duration = Duration::from_millis(300);

/// For what takes a loaded machine long, and for pauses that have grown meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client that loses a segment does not send it again before this: a loss cannot be overlooked.
const RETRANSMISSION: Duration = Duration::from_secs(5);

/// Clients on a third host, behind the source's bridge and behind the destination's ask all the time, each on one
/// connection with one question under way. A question that is lost shows as a retransmission, which comes late here.
#[test]
fn what_is_sent_to_a_container_on_its_way_is_delivered() -> Result<()> {
    let scenario = Scenario::begin(&["redis"])?;
    let places = [scenario.host("client")?, scenario.host("a")?, scenario.host("b")?];
    let [client, a, b] = places;
    images::run_redis(a, "redis", "data", client)?;
    let address = a.address_of("redis", REDIS_PORT)?;
    let mut counters = Vec::new();
    for place in places {
        be_patient(place)?;
        for number in 0..CLIENTS {
            let key = format!("{}-{number}", place.name());
            counters.push((key.clone(), Counter::start(place, address, &key)?));
        }
    }
    let before = retransmissions(client)?;
    for trip in 0..ROUND_TRIPS {
        for (from, to) in [(a, b), (b, a)] {
            sleep(COUNT);
            let moved = from.migrate("redis", to.name());
            let moved =
                moved.with_context(|| format!("trip {trip}, from {} to {}", from.name(), to.name()))?;
            ensure!(moved.outcome == "done", "a migration ended as {}", moved.outcome);
            eprintln!("trip {trip} to {}: blackout {} us", to.name(), moved.blackout_us);
        }
    }
    sleep(COUNT);
    for (key, counter) in counters {
        let report = counter.stop()?.checked().with_context(|| key.clone())?;
        eprintln!(
            "{key}: {} answers, longest stalls {:?}",
            report.answers, report.stalls
        );
        let longest = Duration::from_micros(report.longest_stall_us());
        ensure!(
            longest < RETRANSMISSION,
            "{key} had to send something again: {longest:?}"
        );
    }
    let again = retransmissions(client)? - before;
    ensure!(again == 0, "{again} segments of the client were lost");
    for (frames, lost) in [handed_over(a)?, handed_over(b)?] {
        ensure!(frames >= ROUND_TRIPS, "only {frames} frames were held");
        ensure!(lost == 0, "{lost} frames were held and lost");
    }
    scenario.end()
}

/// The destination's bridge has no port left, so the container cannot be plugged in there. It has moved all the same: it runs,
/// a person is told, and it is on its network as soon as there is a port, also when the daemon was killed meanwhile. Its client
/// is still connected then and has missed nothing.
#[test]
fn a_container_that_cannot_be_plugged_in_is_told_of_and_plugged_in_later() -> Result<()> {
    let scenario = Scenario::begin(&["redis"])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    images::run_redis(a, "redis", "data", client)?;
    let counter = Counter::start(client, a.address_of("redis", REDIS_PORT)?, "visits")?;
    for (from, to, killed) in [(a, b, false), (b, a, true)] {
        sleep(COUNT);
        let bridge = FullBridge::make(to)?;
        let moved = from.try_tranship(&["--format", "json", "migrate", "redis", to.name()])?;
        ensure!(moved.status.success(), "{}", moved.errors());
        let warning = format!("runs at {}, but is not on its network", to.name());
        let said = moved.errors();
        ensure!(
            said.contains(&warning) && said.contains("Exchange full"),
            "{said}"
        );
        let record: Migration = serde_json::from_str(&moved.text())?;
        for host in [from, to] {
            wait_for("a record that is done and has the warning", PATIENCE, || {
                let status = host.tranship_json(&["migrate", "status", &record.id])?;
                let told = status["warnings"][0].as_str().unwrap_or_default();
                Ok(status["outcome"] == "done" && told.contains(&warning))
            })?;
        }
        ensure!(to.container("redis")?["state"] == "running", "it does not run");
        let cut_off = visits(to)?;
        if killed {
            daemon::kill(to)?;
            daemon::start(to)?;
        }
        sleep(COUNT);
        ensure!(visits(to)? == cut_off, "somebody reaches it");
        bridge.free_one()?;
        wait_for(
            "the client to count again",
            PATIENCE,
            || Ok(visits(to)? > cut_off),
        )?;
        bridge.remove()?;
    }
    counter.stop()?.checked()?;
    scenario.end()
}

/// How far the client has counted, as the container itself says.
fn visits(host: &Host) -> Result<u64> {
    let answer = host.exec("redis", &["redis-cli", "GET", "visits"])?;
    answer.trim().parse().with_context(|| answer)
}

/// A bridge all of whose 1023 ports are taken, by cables from it to itself that are not up.
struct FullBridge<'a> {
    host: &'a Host,
}

impl<'a> FullBridge<'a> {
    fn make(host: &'a Host) -> Result<Self> {
        // The uplink has a port already, so the last cables find none.
        let fill = "seq 512 | sed 's/.*/link add full& group 77 type veth peer name lluf& group 77\\n\
                    link set full& group 77 master br0\\nlink set lluf& group 77 master br0/' | ip -force -batch -";
        let filled = host.finish("sh", ["-c", fill], PATIENCE)?.errors();
        ensure!(
            filled.contains("Exchange full"),
            "the bridge is not full: {filled}"
        );
        Ok(Self { host })
    }

    fn free_one(&self) -> Result<()> {
        self.host.run("ip", ["link", "del", "full1"]).map(drop)
    }

    fn remove(self) -> Result<()> {
        self.host.run("ip", ["link", "del", "group", "77"]).map(drop)
    }
}

/// Has every connection from here wait long before it sends anything again.
fn be_patient(host: &Host) -> Result<()> {
    let script = format!(
        "ip -4 route show 10.77.0.0/24 | while read -r route; do ip route change $route rto_min {}s; done",
        RETRANSMISSION.as_secs()
    );
    host.run("sh", ["-c", &script])?;
    Ok(())
}

/// Segments that were sent again from a host, as its kernel counts them.
fn retransmissions(host: &Host) -> Result<u64> {
    let table = host.run("cat", ["/proc/net/snmp"])?.text();
    let mut lines = table.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = lines.next().zip(lines.next()).context("no TCP counters")?;
    let place = names.split_whitespace().position(|name| name == "RetransSegs");
    let value = place.and_then(|place| values.split_whitespace().nth(place));
    Ok(value.context("no such counter")?.parse()?)
}

/// Frames that a host held and handed over, and those it lost, as its daemon's log has them.
fn handed_over(host: &Host) -> Result<(usize, usize)> {
    let log = fs::read_to_string(host.layout.log(host.name()))?;
    let number = |line: &str, name: &str| -> Result<usize> {
        let rest = line.split_once(name).context("no such field")?.1;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Ok(digits.parse()?)
    };
    let mut sums = (0, 0);
    for line in log
        .lines()
        .filter(|line| line.contains("handed over what was held"))
    {
        sums.0 += number(line, "frames=")?;
        sums.1 += number(line, "lost=")?;
    }
    Ok(sums)
}
