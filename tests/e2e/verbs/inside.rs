//! `logs`, `exec`, `run` in the foreground: what goes into a container and what comes out of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tranship_tests::command;
use tranship_tests::programs;
use tranship_tests::testbed::{Host, daemon};

use super::{SOON, begin, failed, piped, start, words};

#[test]
fn logs_follow_to_the_end_and_exec_is_like_being_there() -> Result<()> {
    let scenario = begin()?;
    let a = scenario.host("a")?;
    logs(a)?;
    start(a, "box", "exec sleep 86400")?;
    exec_flags(a)?;
    through_pipes(a)?;
    in_a_terminal(a)?;
    scenario.end()
}

fn logs(a: &Host) -> Result<()> {
    let script = "echo one; echo two >&2; sleep 0.7; echo three; exit 3";
    start(a, "talks", script)?;
    let begun = Instant::now();
    let followed = a.try_tranship(&["logs", "-f", "talks"])?;
    ensure!(
        (followed.text(), followed.errors()) == ("one\nthree".into(), "two".into()),
        "followed: {followed:?}"
    );
    ensure!(begun.elapsed() < SOON, "it followed for {:?}", begun.elapsed());
    ensure!(a.tranship(&["wait", "talks"])? == "3", "its exit code");
    ensure!(
        a.tranship(&["logs", "--tail", "1", "talks"])? == "three",
        "its last line"
    );
    failed(&a.try_tranship(&["exec", "talks", "true"])?, 125, "not running")?;
    failed(
        &a.try_tranship(&["logs", "nobody"])?,
        1,
        "no container \"nobody\"",
    )?;
    // In the foreground `run` is the container: its output, its exit code.
    let foreground = a.try_tranship(&words(
        "run --rm --network none busybox sh -c",
        "@echo here; exit 4",
    ))?;
    ensure!(
        (foreground.text().as_str(), foreground.status.code()) == ("here", Some(4)),
        "in the foreground: {foreground:?}"
    );
    Ok(())
}

fn exec_flags(a: &Host) -> Result<()> {
    for (command, code) in [("exit 42", 42), ("kill -KILL $$", 137)] {
        let ended = a.try_tranship(&["exec", "box", "sh", "-c", command])?;
        ensure!(ended.status.code() == Some(code), "{command}: {ended:?}");
    }
    failed(
        &a.try_tranship(&["exec", "box", "no-such-program"])?,
        127,
        "no-such-program",
    )?;
    failed(&a.try_tranship(&["exec", "box", "/etc"])?, 126, "/etc")?;
    let set = [
        "exec",
        "-e",
        "A=1",
        "-u",
        "7:8",
        "-w",
        "/tmp",
        "box",
        "sh",
        "-c",
        "echo $A $(id -u):$(id -g) $PWD",
    ];
    ensure!(a.tranship(&set)? == "1 7:8 /tmp", "flags of exec");
    Ok(())
}

/// Much goes in and comes out again, and the command sees the end of it.
fn through_pipes(a: &Host) -> Result<()> {
    let mut cat = daemon::cli(a, &["exec", "-i", "box", "sh", "-c", "cat; echo end >&2"])?;
    let mut cat = piped(&mut cat)?;
    let big = "0123456789abcde\n".repeat(1 << 14);
    let mut stdin = cat.stdin.take().context("a pipe")?;
    let text = big.clone();
    let feed = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let output = cat.wait_with_output()?;
    feed.join().ok().context("the writer panicked")??;
    ensure!(
        output.stdout == big.as_bytes(),
        "{} bytes came back",
        output.stdout.len()
    );
    ensure!(
        output.stderr == b"end\n",
        "stderr: {:?}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// `exec -it` on a terminal: of the same size, typed into, and its exit code is the command's.
fn in_a_terminal(a: &Host) -> Result<()> {
    let program = programs::find("tranship")?;
    let inner = "test -t 0 && test -t 1 && stty size && read line && echo got $line && exit 6";
    let line = format!(
        "stty rows 33 cols 77; exec {} exec -it box sh -c '{inner}'",
        program.display()
    );
    let mut terminal = command::command("timeout", ["20", "script", "-qec", &line, "/dev/null"]);
    for (name, value) in daemon::cli(a, &[])?.get_envs() {
        terminal.env(name, value.unwrap_or_default());
    }
    let mut terminal = piped(&mut terminal)?;
    let mut keys = terminal.stdin.take().context("a pipe")?;
    let mut screen = BufReader::new(terminal.stdout.take().context("a pipe")?);
    let mut first = String::new();
    screen.read_line(&mut first)?;
    ensure!(first.trim() == "33 77", "the terminal's size: {first:?}");
    keys.write_all(b"hello\r")?;
    let mut rest = String::new();
    screen.read_to_string(&mut rest)?;
    let status = terminal.wait()?;
    ensure!(rest.contains("got hello"), "the screen: {rest:?}");
    ensure!(status.code() == Some(6), "exec -it ended with {status}: {rest:?}");
    Ok(())
}
