//! More than one process and more than one user: what they share moves with them.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::Host;
use tranship_tests::tranship::wait_for;

/// Root's shell holds an open file that it has deleted. A loop of root's numbers lines into a pipe; the other end is a
/// process of user app, which says when a number is missing and keeps the last one in a file.
const WORKLOAD: &str = r#"
echo begun
exec 3>/tmp/gone
echo written before the move >&3
rm /tmp/gone
mkfifo /tmp/unused
(
    n=0
    while :; do
        n=$((n + 1))
        echo $n
        sleep 0.02
    done
) | su app -c '
    seen=0
    while read -r n; do
        seen=$((seen + 1))
        [ "$n" = "$seen" ] || echo "expected $seen, got $n"
        echo "$n" >/home/app/next
        mv /home/app/next /home/app/last
    done
'
"#;

#[test]
fn three_processes_of_two_users_keep_their_pipe_and_their_deleted_file() -> Result<()> {
    let scenario = Scenario::begin(&["busybox"])?;
    let (a, b) = (scenario.host("a")?, scenario.host("b")?);
    a.tranship(&[
        "run",
        "-d",
        "--name",
        "crew",
        "--network",
        "l2",
        "busybox",
        "sh",
        "-c",
        WORKLOAD,
    ])?;
    wait_for("the pipe to carry numbers", Duration::from_secs(10), || {
        Ok(last(a)? > 5)
    })?;
    let before = processes(a)?;

    for (from, to) in [(a, b), (b, a)] {
        let reached = last(from)?;
        from.migrate("crew", to.name())?;
        wait_for(
            "the pipe to carry numbers after the move",
            Duration::from_secs(10),
            || Ok(last(to)? > reached + 5),
        )?;
        ensure!(
            processes(to)? == before,
            "other processes came than left: {:?}",
            processes(to)?
        );
        let deleted = to.exec("crew", &["cat", "/proc/1/fd/3"])?;
        ensure!(
            deleted == "written before the move",
            "the deleted file holds {deleted:?}"
        );
        let gone = to.try_tranship(&["exec", "crew", "test", "-e", "/tmp/gone"])?;
        ensure!(
            gone.status.code() == Some(1),
            "the deleted file has its name back"
        );
        let log = to.tranship(&["logs", "crew"])?;
        ensure!(
            log.lines().filter(|line| *line == "begun").count() == 1,
            "what was said before the move is not in the log once:\n{log}"
        );
    }
    sleep(Duration::from_millis(200));
    let log = a.tranship(&["logs", "crew"])?;
    ensure!(!log.contains("expected"), "the pipe lost something:\n{log}");
    scenario.end()
}

/// The last number that came through the pipe.
fn last(host: &Host) -> Result<u64> {
    let text = host.exec("crew", &["cat", "/home/app/last"])?;
    text.parse().with_context(|| format!("no number: {text:?}"))
}

/// Pid, user and name of the container's lasting processes. What a shell forks is a shell, too, until it is another program.
fn processes(host: &Host) -> Result<Vec<String>> {
    let mut seen = Vec::new();
    wait_for("three shells", Duration::from_secs(10), || {
        seen = shells(host)?;
        Ok(true)
    })?;
    Ok(seen)
}

fn shells(host: &Host) -> Result<Vec<String>> {
    let listing = host.exec("crew", &["ps", "-o", "pid,user,comm"])?;
    let mut lines: Vec<_> = listing
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    lines.retain(|line| line.ends_with(" sh"));
    ensure!(lines.len() == 3, "not three shells: {listing}");
    ensure!(
        lines.iter().filter(|line| line.contains(" app ")).count() == 1,
        "not one of user app's: {listing}"
    );
    Ok(lines)
}
