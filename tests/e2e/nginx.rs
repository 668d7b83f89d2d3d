//! A web server with several worker processes, which it keeps replacing, moves under load: nobody who comes is refused or
//! cut off.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::Host;
use tranship_tests::visitors::Visitors;

const BODY: &str = "still here\n";

/// nginx with four workers, which are replaced by new ones every half second.
const WORKLOAD: &str = r#"
cat >/tmp/nginx.conf <<END
daemon off;
worker_processes 4;
pid /run/nginx.pid;
error_log stderr;
events { worker_connections 512; }
http {
    access_log off;
    server {
        listen 80 backlog=1024;
        location / { return 200 "still here\n"; }
    }
}
END
nginx -c /tmp/nginx.conf &
while sleep 0.5; do kill -HUP $!; done
"#;

const VISITORS: usize = 8;
const MOVES: usize = 4;
/// Before and after each move.
const SERVE: Duration = Duration::from_millis(700);

#[test]
fn no_visitor_of_a_web_server_is_refused_or_cut_off() -> Result<()> {
    let scenario = Scenario::begin(&["nginx"])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    a.tranship(&[
        "run",
        "-d",
        "--name",
        "web",
        "--network",
        "l2",
        "nginx",
        "sh",
        "-c",
        WORKLOAD,
    ])?;
    let address = a.address_of("web", 80)?;
    let mut hosts = [a, b];
    for number in 1..=MOVES {
        let [from, to] = hosts;
        let visitors = Visitors::start(client, address, VISITORS, BODY)?;
        sleep(SERVE);
        let moved = from
            .migrate("web", to.name())
            .with_context(|| format!("move {number}"))?;
        sleep(SERVE);
        let visits = visitors.finish().with_context(|| format!("move {number}"))?;
        eprintln!(
            "move {number}: blackout {} ms, {} visits, the longest {} ms",
            moved.blackout_us / 1000,
            visits.count,
            visits.longest_us / 1000
        );
        workers(to)?;
        hosts.reverse();
    }
    scenario.end()
}

/// New workers come there as they did here, and old ones go.
fn workers(host: &Host) -> Result<()> {
    let listing = host.exec("web", &["ps", "-o", "args"])?;
    let count = listing
        .lines()
        .filter(|line| line.contains("nginx: worker"))
        .count();
    ensure!((4..=12).contains(&count), "{count} workers:\n{listing}");
    Ok(())
}
