//! A Java virtual machine moves while it computes and collects its garbage.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::Host;
use tranship_tests::tranship::wait_for;

/// Four threads keep maps of numbers, of which some come and go, and know the sum of what is in them; each round is
/// checked, so that an object that was lost or is another one shows. One line for each hundred rounds.
const PROGRAM: &str = r#"
import java.util.*;
import java.util.concurrent.atomic.AtomicLong;

public class Keeper {
    static final AtomicLong rounds = new AtomicLong();

    static void keep(long seed) {
        Random random = new Random(seed);
        Map<Integer, byte[]> kept = new HashMap<>();
        long sum = 0;
        while (true) {
            for (int turn = 0; turn < 2000; turn++) {
                int key = random.nextInt(4000);
                byte[] fresh = new byte[64 + random.nextInt(2000)];
                random.nextBytes(fresh);
                byte[] gone = kept.put(key, fresh);
                sum += Arrays.hashCode(fresh);
                if (gone != null) sum -= Arrays.hashCode(gone);
            }
            long found = 0;
            for (byte[] value : kept.values()) found += Arrays.hashCode(value);
            if (found != sum) {
                System.out.println("WRONG: the sum is " + found + ", not " + sum);
                System.exit(1);
            }
            if (rounds.incrementAndGet() % 100 == 0) System.out.println("round " + rounds.get());
            try { Thread.sleep(5); } catch (InterruptedException e) { return; }
        }
    }

    public static void main(String[] arguments) throws Exception {
        for (int number = 1; number < 4; number++) {
            final long seed = number;
            new Thread(() -> keep(seed)).start();
        }
        keep(0);
    }
}
"#;

const MOVES: usize = 3;

/// `make test-full` runs it, since its image is large.
#[test]
#[ignore = "needs the image java, which `make test-full` builds"]
fn a_java_virtual_machine_keeps_all_its_objects() -> Result<()> {
    let scenario = Scenario::begin(&["java"])?;
    let (a, b) = (scenario.host("a")?, scenario.host("b")?);
    a.tranship(&["volume", "create", "code"])?;
    let volume = a.tranship_json(&["volume", "inspect", "code"])?;
    let place = volume["mountpoint"]
        .as_str()
        .context("a volume has a mountpoint")?;
    fs::write(Path::new(place).join("Keeper.java"), PROGRAM)?;
    a.tranship(&[
        "run",
        "-d",
        "--name",
        "jvm",
        "--network",
        "l2",
        "-v",
        "code:/code",
        "java",
        "java",
        "-Xmx256m",
        "/code/Keeper.java",
    ])?;
    let mut hosts = [a, b];
    wait_for("the first rounds", Duration::from_secs(60), || Ok(rounds(a)? > 0))?;
    for number in 1..=MOVES {
        let [from, to] = hosts;
        let reached = rounds(from)?;
        sleep(Duration::from_millis(500));
        let moved = from
            .migrate("jvm", to.name())
            .with_context(|| format!("move {number}"))?;
        eprintln!(
            "move {number}: blackout {} ms, {} MB",
            moved.blackout_us / 1000,
            moved.bytes_sent / 1_000_000
        );
        wait_for("rounds after the move", Duration::from_secs(60), || {
            Ok(rounds(to)? > reached + 100)
        })?;
        hosts.reverse();
    }
    scenario.end()
}

/// The last round that it has told of.
fn rounds(host: &Host) -> Result<u64> {
    let log = host.tranship(&["logs", "jvm"])?;
    ensure!(!log.contains("WRONG") && !log.contains("Exception"), "{log}");
    let last = log
        .lines()
        .filter_map(|line| line.strip_prefix("round ")?.parse().ok());
    Ok(last.max().unwrap_or(0))
}
