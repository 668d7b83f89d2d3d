//! PostgreSQL under its own user, moved in the middle of transactions.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tranship_tests::images;
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, Options};
use tranship_tests::tranship::wait_for;

/// A server with checksums on its pages, and two clients that never stop.
const WORKLOAD: &str = "
    set -e
    initdb --data-checksums --auth trust --no-sync -D \"$PGDATA\" >/dev/null
    pg_ctl -w -o '-c fsync=on' start >/dev/null
    pgbench -q -i -s 1 >/dev/null 2>&1
    pgbench -n -c 2 -T 86400 >/dev/null 2>&1 &
    wait
    echo pgbench ended
";

/// Every transaction adds one number to an account, a teller and a branch and writes it down: the four sums are one.
const SUMS: &str = "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), \
                    (SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(delta) FROM pgbench_history), \
                    (SELECT count(*) FROM pgbench_history)";

/// A server for others, and its accounts.
const SERVER: &str = "
    set -e
    initdb --auth trust --no-sync -D \"$PGDATA\" >/dev/null
    echo 'host all all all trust' >>\"$PGDATA/pg_hba.conf\"
    (until pgbench -q -i -s 2 >/dev/null 2>&1; do sleep 0.1; done; psql -qc 'CREATE TABLE ready ()') &
    exec postgres -c listen_addresses='*' -c shared_buffers=64MB
";

/// Clients of the server, each on a connection of its own.
const CLIENTS: &str = "8";
/// Moves of the server meanwhile.
const MOVES: usize = 2;
/// How long they go on: longer than the moves take.
const SECONDS: &str = "20";

#[test]
fn postgresql_keeps_every_transaction_whole() -> Result<()> {
    let scenario = Scenario::begin(&["postgres"])?;
    let (a, b) = (scenario.host("a")?, scenario.host("b")?);
    let options = [
        "run",
        "-d",
        "--name",
        "pg",
        "--network",
        "l2",
        "--user",
        "postgres",
        "-v",
    ];
    let place = [
        "pgdata:/var/lib/postgresql/data",
        "-e",
        "PGDATA=/var/lib/postgresql/data",
    ];
    a.tranship(&[&options[..], &place, &["postgres", "sh", "-c", WORKLOAD]].concat())?;
    wait_for("transactions", Duration::from_secs(60), || {
        Ok(transactions(a)? > 20)
    })?;
    a.exec(
        "pg",
        &[
            "psql",
            "-Atqc",
            "CREATE TABLE kept AS SELECT n, md5(n::text) AS h FROM generate_series(1, 1000) n",
        ],
    )?;

    for (from, to) in [(a, b), (b, a)] {
        let reached = transactions(from)?;
        from.migrate("pg", to.name())?;
        wait_for("transactions after the move", Duration::from_secs(20), || {
            Ok(transactions(to)? > reached + 20)
        })?;
        let kept = to.exec(
            "pg",
            &[
                "psql",
                "-Atqc",
                "SELECT count(*) FROM kept WHERE h = md5(n::text)",
            ],
        )?;
        ensure!(kept == "1000", "{kept} of 1000 rows are as they were");
        let log = to.tranship(&["logs", "pg"])?;
        ensure!(
            !log.contains("PANIC") && !log.contains("pgbench ended"),
            "the server complains:\n{log}"
        );
    }
    // Every page is read, and its checksum compared.
    a.exec("pg", &["sh", "-c", "pg_dumpall >/dev/null"])?;
    scenario.end()
}

#[test]
fn no_transaction_of_a_client_elsewhere_fails() -> Result<()> {
    let options = Options {
        hosts: 3,
        ..Options::default()
    };
    let scenario = Scenario::begin_with(&options, &["postgres"])?;
    let (a, b, c) = (scenario.host("a")?, scenario.host("b")?, scenario.host("c")?);
    images::import(c, "postgres")?;
    let run = ["run", "-d", "--network", "l2", "--user", "postgres", "--name"];
    let place = [
        "pg",
        "-v",
        "pgdata:/var/lib/postgresql/data",
        "-e",
        "PGDATA=/var/lib/postgresql/data",
    ];
    a.tranship(&[&run[..], &place, &["postgres", "sh", "-c", SERVER]].concat())?;
    wait_for("the accounts", Duration::from_secs(60), || {
        a.exec("pg", &["psql", "-Atqc", "SELECT 1 FROM ready LIMIT 1"])?;
        Ok(true)
    })?;
    let ip = a.address_of("pg", 5432)?.ip().to_string();
    let load = [
        "pgbench", "-n", "-h", &ip, "-U", "postgres", "-c", CLIENTS, "-j", "2", "-T", SECONDS, "-P", "1",
    ];
    c.tranship(&[&run[..], &["load", "postgres"], &load].concat())?;
    let mut hosts = [a, b];
    for number in 1..=MOVES {
        sleep(Duration::from_secs(1));
        let [from, to] = hosts;
        let moved = from
            .migrate("pg", to.name())
            .with_context(|| format!("move {number}"))?;
        eprintln!("move {number}: blackout {} ms", moved.blackout_us / 1000);
        hosts.reverse();
    }
    ensure!(
        c.container("load")?["state"] == "running",
        "pgbench ended before the moves did"
    );
    let code = c.tranship(&["wait", "load"])?;
    let log = c.tranship(&["logs", "load"])?;
    ensure!(code == "0", "pgbench ended with {code}:\n{log}");
    let failed = "number of failed transactions: 0 (0.000%)";
    ensure!(log.contains(failed), "pgbench does not say `{failed}`:\n{log}");
    eprintln!("{log}");
    transactions(hosts[0])?;
    scenario.end()
}

/// How many transactions there were; their sums must agree.
fn transactions(host: &Host) -> Result<u64> {
    let line = host.exec("pg", &["psql", "-Atqc", SUMS])?;
    let fields: Vec<_> = line.split('|').collect();
    let [accounts, tellers, branches, history, count] = fields[..] else {
        anyhow::bail!("not five numbers: {line:?}");
    };
    ensure!(
        accounts == tellers && tellers == branches && (branches == history || history.is_empty()),
        "transactions are torn: {line}"
    );
    count.parse().with_context(|| format!("no number: {count:?}"))
}
