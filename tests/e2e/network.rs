//! What clients send while a container is on its way is not lost, wherever they are.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tranship_tests::counter::Counter;
use tranship_tests::images::{self, REDIS_PORT};
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::Host;

/// Moves there and back.
const ROUND_TRIPS: usize = 3;

/// Clients at each place.
const CLIENTS: usize = 4;

/// Between two moves, so that each finds a workload under way.
const COUNT: Duration = Duration::from_millis(300);

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
