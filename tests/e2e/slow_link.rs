//! A link that gets slow at one step of a migration, or loses packets, but is not cut: the migration takes longer, and succeeds.

use std::time::Duration;

use anyhow::{Result, ensure};
use tranship_tests::faults::{self, host_of};
use tranship_tests::field::{Course, Field};
use tranship_tests::scenario::Scenario;
use tranship_tests::tranship::{Migration, wait_for};

/// A hundredth of what a data centre has.
const SLOW: &str = "8mbit";
/// With packets of the size a wire has.
const LOSSY: &str = "100mbit";
/// Each way.
const LOST_PERCENT: u8 = 3;
/// For a migration over it.
const PATIENCE: Duration = Duration::from_secs(90);

/// The first step of each phase.
const STEPS: [&str; 10] = [
    "source:send-reserve",
    "source:open-stream",
    "source:prepare-dump",
    "source:freeze",
    "source:dump",
    "destination:restore-held",
    "source:journal-committed",
    "source:send-go",
    "destination:release",
    "source:remove-copy",
];

/// What is wrong with the link.
#[derive(Clone, Copy, Debug)]
enum Link {
    Slow,
    Lossy,
}
use Link::{Lossy, Slow};

#[test]
fn a_migration_whose_link_gets_slow_succeeds() -> Result<()> {
    try_each(&[(Slow, STEPS[4]), (Slow, STEPS[0]), (Lossy, STEPS[0])])
}

#[test]
#[ignore = "takes long: make faults"]
fn a_migration_whose_link_gets_slow_in_any_phase_succeeds() -> Result<()> {
    try_each(&STEPS.map(|point| (Slow, point)))
}

#[test]
#[ignore = "takes long: make faults"]
fn a_migration_whose_link_loses_packets_from_any_phase_on_succeeds() -> Result<()> {
    try_each(&STEPS.map(|point| (Lossy, point)))
}

fn try_each(steps: &[(Link, &str)]) -> Result<()> {
    let mut field = Field::begin()?;
    let mut lost = 0;
    for (link, point) in steps {
        let strike = |scenario: &Scenario| gets_bad(scenario, *link, point, &mut lost);
        field.attempt(&format!("{link:?} from {point} on"), strike, succeeds);
    }
    field.end()?;
    eprintln!("{lost} packets were lost");
    // From a late step on it may be none in one migration.
    ensure!(
        lost > 0 || steps.iter().all(|(link, _)| matches!(link, Slow)),
        "nothing was lost"
    );
    Ok(())
}

fn gets_bad(scenario: &Scenario, link: Link, point: &str, lost: &mut u64) -> Result<Migration> {
    let (a, host, bed) = (
        scenario.host("a")?,
        scenario.host(host_of(point))?,
        scenario.bed()?,
    );
    faults::plan(host, &format!("{point} hold"))?;
    let id = a.tranship(&["migrate", "--detach", "redis", "b"])?;
    faults::wait_held(host, point)?;
    match link {
        Slow => bed.set_rate("b", SLOW)?,
        Lossy => {
            bed.set_rate("b", LOSSY)?;
            bed.set_loss(LOST_PERCENT)?;
        }
    }
    faults::let_go(host, point)?;
    let mut record = serde_json::Value::Null;
    wait_for("the migration to end", PATIENCE, || {
        record = a.tranship_json(&["migrate", "status", &id])?;
        Ok(record["outcome"] != "running")
    })?;
    bed.set_rate("b", "unlimited")?;
    if matches!(link, Lossy) {
        *lost += bed.lost_packets()?;
        bed.set_loss(0)?;
    }
    Ok(serde_json::from_value(record)?)
}

fn succeeds(course: &Course<Migration>) -> Result<()> {
    let record = &course.struck;
    eprintln!(
        "{}: {} ms, a blackout of {} ms {}",
        record.outcome,
        record.total_us / 1000,
        record.blackout_us / 1000,
        record.error
    );
    ensure!(record.outcome == "done", "it is {}", record.outcome);
    ensure!(course.owner == "b", "{} runs it", course.owner);
    Ok(())
}
