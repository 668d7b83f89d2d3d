//! A link that gets slow at one step of a migration, but is not cut: the migration takes longer, and succeeds.

use std::time::Duration;

use anyhow::{Result, ensure};
use tranship_tests::faults::{self, host_of};
use tranship_tests::field::{Course, Field};
use tranship_tests::scenario::Scenario;
use tranship_tests::tranship::{Migration, wait_for};

/// A hundredth of what a data centre has.
const SLOW: &str = "8mbit";
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

#[test]
fn a_migration_whose_link_gets_slow_succeeds() -> Result<()> {
    try_each(&[STEPS[4], STEPS[0]])
}

#[test]
#[ignore = "takes long: make faults"]
fn a_migration_whose_link_gets_slow_in_any_phase_succeeds() -> Result<()> {
    try_each(&STEPS)
}

fn try_each(steps: &[&str]) -> Result<()> {
    let mut field = Field::begin()?;
    for point in steps {
        let strike = |scenario: &Scenario| gets_slow(scenario, point);
        field.attempt(&format!("{SLOW} from {point} on"), strike, succeeds);
    }
    field.end()
}

fn gets_slow(scenario: &Scenario, point: &str) -> Result<Migration> {
    let (a, host, bed) = (
        scenario.host("a")?,
        scenario.host(host_of(point))?,
        scenario.bed()?,
    );
    faults::plan(host, &format!("{point} hold"))?;
    let id = a.tranship(&["migrate", "--detach", "redis", "b"])?;
    faults::wait_held(host, point)?;
    bed.set_rate("b", SLOW)?;
    faults::let_go(host, point)?;
    let mut record = serde_json::Value::Null;
    wait_for("the migration to end", PATIENCE, || {
        record = a.tranship_json(&["migrate", "status", &id])?;
        Ok(record["outcome"] != "running")
    })?;
    bed.set_rate("b", "unlimited")?;
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
