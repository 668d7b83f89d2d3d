//! PostgreSQL under its own user, moved in the middle of transactions.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::Host;
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
