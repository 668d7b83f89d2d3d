//! Docker's words through the real command line, on one host: what a user types does what he is used to.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tranship_tests::command::{self, Finished};
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, Options, daemon};
use tranship_tests::tranship::wait_for;
use tranship_tests::{images, programs};

/// For something in a container to happen.
const SOON: Duration = Duration::from_secs(10);

fn begin() -> Result<Scenario> {
    let options = Options {
        hosts: 1,
        ..Options::default()
    };
    Scenario::begin_with(&options, &["busybox"])
}

#[test]
fn run_takes_dockers_flags_and_the_container_is_as_they_say() -> Result<()> {
    let scenario = begin()?;
    let a = scenario.host("a")?;
    let flags = "--name all -e COLOUR=blue -v data:/data:ro --tmpfs /scratch:size=1m --network l2 --ip 10.77.0.70 \
                 -m 64m --cpus 0.5 --user 1234:2345 --workdir /home --hostname box --label team=red --read-only \
                 --storage-driver overlay busybox sleep 86400";
    let id = a.tranship(&words("run -d", flags))?;

    let shown = a.container("all")?;
    ensure!(
        shown["id"] == id && shown["state"] == "running",
        "inspect: {shown:#}"
    );
    ensure!(shown["ip"] == "10.77.0.70", "its address: {shown:#}");
    let wanted = json!({
        "name": "all", "image": "busybox", "command": ["sleep", "86400"], "env": ["COLOUR=blue"],
        "network": "l2", "ip": "10.77.0.70", "memory_bytes": 64 << 20, "nano_cpus": 500_000_000,
        "user": "1234:2345", "workdir": "/home", "hostname": "box", "labels": {"team": "red"},
        "read_only": true, "storage_driver": "overlay", "userns": "keep",
    });
    for (key, value) in wanted.as_object().into_iter().flatten() {
        let is = &shown["spec"][key];
        ensure!(is == value, "inspect says {key} is {is}, not {value}");
    }
    let mounts = shown["spec"]["mounts"].as_array().context("it has mounts")?;
    let mount =
        |number: usize| ["kind", "target"].map(|key| mounts[number][key].as_str().unwrap_or_default());
    ensure!(
        mounts.len() == 2 && mount(0) == ["volume", "/data"] && mount(1) == ["tmpfs", "/scratch"],
        "its mounts: {mounts:#?}"
    );

    let table = a.tranship(&["ps"])?;
    for word in [
        &id[..12],
        "busybox",
        "\"sleep 86400\"",
        "Up ",
        "10.77.0.70",
        "all",
    ] {
        ensure!(table.contains(word), "ps does not show {word:?}:\n{table}");
    }
    inside(a)?;
    limits(a, shown["pid"].as_i64().context("it has a pid")?)?;
    let ping = ["ping", "-c", "1", "-W", "2", "10.77.0.70"];
    scenario.host("client")?.run("busybox", ping)?;

    a.tranship(&words(
        "run -d",
        "--name alone --network none busybox sleep 86400",
    ))?;
    let links = a.exec("alone", &["ls", "/sys/class/net"])?;
    ensure!(links == "lo", "without a network it has {links:?}");
    let same = a.try_tranship(&words("run -d", "--name alone busybox sleep 1"))?;
    failed(&same, 125, "the name \"alone\" is in use")?;
    let unknown = a.try_tranship(&words("run -d", "--storage-driver tape busybox sleep 1"))?;
    failed(&unknown, 125, "tape")?;
    let missing = a.try_tranship(&words("run -d", "--network none busybox no-such-program"))?;
    failed(&missing, 127, "no-such-program")?;
    scenario.end()
}

/// What the processes of the container find.
fn inside(a: &Host) -> Result<()> {
    let look = "echo $COLOUR; id -u; id -g; pwd; hostname; touch /scratch/file && echo scratched";
    let seen = a.exec("all", &["sh", "-c", look])?;
    let seen: Vec<_> = seen.lines().collect();
    ensure!(
        seen == ["blue", "1234", "2345", "/home", "box", "scratched"],
        "inside: {seen:?}"
    );
    let first = a.exec("all", &["cat", "/proc/1/environ"])?;
    ensure!(
        first.split('\0').any(|one| one == "COLOUR=blue"),
        "its environment: {first:?}"
    );
    let mounts = a.exec("all", &["cat", "/proc/mounts"])?;
    let options = |target: &str| {
        let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let found = lines.find(|fields| fields[1] == target);
        found
            .map(|fields| format!("{},{}", fields[2], fields[3]))
            .unwrap_or_default()
    };
    let has = |target: &str, option: &str| {
        let there = options(target);
        ensure!(
            there.split(',').any(|one| one == option),
            "{target} is mounted {there:?}"
        );
        Ok(())
    };
    has("/", "overlay")?;
    has("/", "ro")?;
    has("/data", "ro")?;
    has("/scratch", "tmpfs")?;
    has("/scratch", "size=1024k")
}

/// The limits, where the kernel keeps them.
fn limits(a: &Host, pid: i64) -> Result<()> {
    let own = fs::read_to_string(a.path(format!("/proc/{pid}/cgroup")))?;
    let file = |controller: &str, v1: &str, v2: &str| -> Result<String> {
        let of = |wanted: &str| {
            own.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (names, path) = rest.split_once(':')?;
                let is = names.split(',').any(|name| name == wanted);
                is.then(|| path.trim_start_matches('/').to_owned())
            })
        };
        let root = Path::new("/sys/fs/cgroup");
        let path = match of(controller) {
            Some(path) => root.join(controller).join(path).join(v1),
            None => root.join(of("").context("it is in no cgroup")?).join(v2),
        };
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(text.trim().to_owned())
    };
    let memory = file("memory", "memory.limit_in_bytes", "memory.max")?;
    ensure!(memory == "67108864", "its memory limit is {memory}");
    let quota = file("cpu", "cpu.cfs_quota_us", "cpu.max")?;
    ensure!(
        ["50000", "50000 100000"].contains(&quota.as_str()),
        "its CPU quota is {quota}"
    );
    Ok(())
}

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

#[test]
fn stop_kill_wait_pause_and_rm_do_what_they_do_everywhere() -> Result<()> {
    let scenario = begin()?;
    let a = scenario.host("a")?;
    start(
        a,
        "polite",
        "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done",
    )?;
    start(
        a,
        "deaf",
        "trap '' TERM; echo ready; while :; do sleep 0.05; done",
    )?;
    start(
        a,
        "hears",
        "trap 'exit 5' HUP; echo ready; while :; do sleep 0.05; done",
    )?;
    start(a, "counts", "echo ready; while :; do echo x; sleep 0.02; done")?;
    for name in ["polite", "deaf", "hears", "counts"] {
        wait_for("ready", SOON, || {
            Ok(a.tranship(&["logs", name])?.starts_with("ready"))
        })?;
    }
    paused(a)?;
    ended(a)?;
    removed(a)?;
    scenario.end()
}

fn ended(a: &Host) -> Result<()> {
    let waiting = daemon::cli(a, &["wait", "polite", "hears"])?
        .stdout(Stdio::piped())
        .spawn()?;
    let begun = Instant::now();
    ensure!(
        a.tranship(&["stop", "polite"])? == "polite",
        "stop prints the name"
    );
    ensure!(
        begun.elapsed() < Duration::from_secs(5),
        "stop took {:?}",
        begun.elapsed()
    );
    a.tranship(&["kill", "-s", "HUP", "hears"])?;
    let waited = waiting.wait_with_output()?;
    ensure!(
        waited.stdout == b"9\n5\n",
        "wait printed {:?}",
        String::from_utf8_lossy(&waited.stdout)
    );
    let begun = Instant::now();
    a.tranship(&["stop", "-t", "1", "deaf"])?;
    ensure!(
        begun.elapsed() >= Duration::from_secs(1),
        "stop killed after {:?}",
        begun.elapsed()
    );
    a.tranship(&["kill", "counts"])?;
    ensure!(
        a.tranship(&["wait", "deaf", "counts"])? == "137\n137",
        "exit codes of killed ones"
    );
    for (name, code) in [("polite", 9), ("deaf", 137), ("hears", 5), ("counts", 137)] {
        let shown = a.container(name)?;
        ensure!(
            shown["state"] == "exited" && shown["exit_code"] == code,
            "{name}: {shown:#}"
        );
    }
    ensure!(a.tranship(&["-q", "ps"])?.is_empty(), "ps shows those that ended");
    let all = a.tranship(&["ps", "-a"])?;
    ensure!(
        all.contains("Exited (9) ") && all.contains("Exited (137) "),
        "ps -a:\n{all}"
    );
    failed(&a.try_tranship(&["kill", "counts"])?, 1, "not running")?;
    failed(
        &a.try_tranship(&["kill", "-s", "NONSENSE", "counts"])?,
        1,
        "NONSENSE",
    )?;
    // Stopping what has stopped is no mistake.
    a.tranship(&["stop", "polite"])?;
    Ok(())
}

fn removed(a: &Host) -> Result<()> {
    start(a, "runs", "exec sleep 86400")?;
    failed(&a.try_tranship(&["rm", "runs"])?, 1, "running")?;
    ensure!(
        a.container("runs")?["state"] == "running",
        "the refused rm stopped it"
    );
    // One that fails does not keep the others from their turn.
    let removed = a.try_tranship(&["rm", "polite", "nobody", "deaf", "hears", "counts"])?;
    failed(&removed, 1, "no container \"nobody\"")?;
    ensure!(
        removed.text() == "polite\ndeaf\nhears\ncounts",
        "rm printed {:?}",
        removed.text()
    );
    a.tranship(&["rm", "-f", "runs"])?;
    ensure!(
        a.tranship(&["-q", "ps", "-a"])?.is_empty(),
        "something was not removed"
    );
    Ok(())
}

/// What is paused stands still, and goes on as if nothing had been.
fn paused(a: &Host) -> Result<()> {
    let lines = || Ok::<_, anyhow::Error>(a.tranship(&["logs", "counts"])?.lines().count());
    a.tranship(&["pause", "counts"])?;
    ensure!(a.container("counts")?["state"] == "paused", "it is not paused");
    ensure!(a.tranship(&["ps"])?.contains("Paused"), "ps does not say so");
    failed(&a.try_tranship(&["pause", "counts"])?, 1, "paused")?;
    failed(&a.try_tranship(&["exec", "counts", "true"])?, 125, "paused")?;
    // The monitor may still be writing what was said before.
    std::thread::sleep(Duration::from_millis(100));
    let so_far = lines()?;
    std::thread::sleep(Duration::from_millis(300));
    ensure!(lines()? == so_far, "it writes while it is paused");
    a.tranship(&["unpause", "counts"])?;
    wait_for("it to go on", SOON, || Ok(lines()? > so_far + 5))?;
    ensure!(a.container("counts")?["state"] == "running", "it is not running");
    failed(&a.try_tranship(&["unpause", "counts"])?, 1, "running")
}

#[test]
fn volumes_and_images_come_and_go_unless_they_are_in_use() -> Result<()> {
    let scenario = begin()?;
    let a = scenario.host("a")?;
    volumes(a)?;
    imports(a)?;
    scenario.end()
}

fn volumes(a: &Host) -> Result<()> {
    ensure!(
        a.tranship(&["volume", "create", "--label", "for=tests", "data"])? == "data",
        "volume create"
    );
    let volume = a.tranship_json(&["volume", "inspect", "data"])?;
    ensure!(
        volume["name"] == "data" && volume["labels"]["for"] == "tests" && volume["driver"] == "overlay",
        "inspect: {volume:#}"
    );
    let place = volume["mountpoint"].as_str().context("it has a mountpoint")?;
    a.tranship(&words(
        "run --rm --network none -v data:/data busybox sh -c",
        "@echo kept >/data/file",
    ))?;
    ensure!(
        fs::read_to_string(a.path(place).join("file"))? == "kept\n",
        "the volume's file"
    );
    a.tranship(&words(
        "run -d",
        "--name user --network none -v data:/data busybox sleep 86400",
    ))?;
    ensure!(
        a.exec("user", &["cat", "/data/file"])? == "kept",
        "a second container reads something else"
    );
    let listed = a.tranship(&["volume", "ls"])?;
    ensure!(
        listed.contains("data") && listed.contains("user"),
        "volume ls:\n{listed}"
    );
    failed(&a.try_tranship(&["volume", "rm", "data"])?, 1, "user")?;
    failed(&a.try_tranship(&["image", "rm", "busybox"])?, 1, "user")?;
    a.tranship(&["rm", "-f", "user"])?;
    ensure!(a.tranship(&["volume", "rm", "data"])? == "data", "volume rm");
    failed(
        &a.try_tranship(&["volume", "inspect", "data"])?,
        1,
        "no volume data",
    )?;
    ensure!(
        a.tranship(&["-q", "volume", "ls"])?.is_empty(),
        "volume ls after rm"
    );
    Ok(())
}

/// The same root file system, as a directory and as a tar.
fn imports(a: &Host) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let archive = images::archive("busybox")?;
    command::succeed(
        command::command("tar", ["-xf"])
            .arg(&archive)
            .arg("-C")
            .arg(folder.path()),
        command::SHORT,
    )?;
    fs::write(folder.path().join("made"), "from a directory\n")?;
    let from = folder.path().to_string_lossy().into_owned();
    failed(
        &a.try_tranship(&["image", "import", &from])?,
        2,
        "no name of its own",
    )?;
    a.tranship(&["image", "import", "-c", "CMD cat /made", &from, "folder:1"])?;
    let cat = a.tranship(&words("run --rm --network none", "folder:1"))?;
    ensure!(cat == "from a directory", "the image of a directory says {cat:?}");
    a.tranship(&["image", "import", &archive.to_string_lossy(), "again:latest"])?;
    let listed = a.tranship(&["image", "ls"])?;
    for name in ["busybox", "folder:1", "again"] {
        ensure!(listed.contains(name), "image ls does not show {name}:\n{listed}");
    }
    a.tranship(&["image", "rm", "folder:1", "again:latest"])?;
    let listed = a.tranship(&["image", "ls"])?;
    ensure!(
        !listed.contains("folder") && !listed.contains("again"),
        "image ls after rm:\n{listed}"
    );
    failed(&a.try_tranship(&["image", "rm", "folder:1"])?, 1, "folder:1")?;
    failed(&a.try_tranship(&words("run -d", "folder:1"))?, 125, "folder:1")?;
    // The layer that both had is still the other's.
    a.tranship(&words("run --rm --network none", "busybox true"))?;
    Ok(())
}

#[test]
fn every_verb_that_shows_something_shows_it_as_json() -> Result<()> {
    let scenario = begin()?;
    let a = scenario.host("a")?;
    a.tranship(&words(
        "run -d",
        "--name box --network none -v data:/data busybox sleep 86400",
    ))?;
    for (verb, key, value) in [
        ("ps -a", "/spec/name", "box"),
        ("inspect box", "/0/spec/name", "box"),
        ("volume ls", "/name", "data"),
        ("volume inspect data", "/0/used_by/0", "box"),
        ("image ls", "/architecture", "amd64"),
        ("network ls", "/kind", ""),
        ("host ls", "/name", "a"),
        ("info", "/host", "a"),
        ("version", "/server", ""),
    ] {
        let text = a.tranship(&words("--format json", verb))?;
        let values = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
        let values = values
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| format!("{verb}: {text}"))?;
        let first = values.first().with_context(|| format!("{verb} shows nothing"))?;
        let found = first.pointer(key).and_then(Value::as_str);
        let is_right = found.is_some_and(|found| value.is_empty() || value == found);
        // Architectures differ; what matters is that one is named.
        ensure!(
            is_right || key == "/architecture" && found.is_some(),
            "{verb}: {key} is {found:?}"
        );
    }
    let none = a.tranship(&["--format", "json", "migrate", "ls"])?;
    ensure!(none.is_empty(), "no migration, and yet: {none}");
    let refused = a.try_tranship(&["--format", "json", "migrate", "box", "nowhere"])?;
    let refused: Value = serde_json::from_slice(&refused.stdout)?;
    let id = refused["id"].as_str().context("a migration has an id")?;
    for verb in [
        &["migrate", "ls"][..],
        &["migrate", "status", id],
        &["migrate", "watch", id],
    ] {
        let answer = a.try_tranship(&[&["--format", "json"], verb].concat())?;
        let record: Value = serde_json::from_slice(&answer.stdout).with_context(|| format!("{verb:?}"))?;
        ensure!(
            record["id"] == id && record["outcome"] == "refused",
            "{verb:?}: {record:#}"
        );
    }
    scenario.end()
}

/// Runs a script in a container without a network.
fn start(host: &Host, name: &str, script: &str) -> Result<()> {
    let options = [
        "run",
        "-d",
        "--name",
        name,
        "--network",
        "none",
        "busybox",
        "sh",
        "-c",
        script,
    ];
    host.tranship(&options)?;
    Ok(())
}

/// The words of a command line; behind an `@` everything is one word.
fn words<'a>(verb: &'a str, rest: &'a str) -> Vec<&'a str> {
    let verb = verb.split_whitespace();
    match rest.strip_prefix('@') {
        Some(script) => verb.chain([script]).collect(),
        None => verb.chain(rest.split_whitespace()).collect(),
    }
}

fn piped(command: &mut Command) -> Result<std::process::Child> {
    let command = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command.spawn()?)
}

/// A command ended with this exit code and said this.
fn failed(answer: &Finished, code: i32, word: &str) -> Result<()> {
    let said = answer.errors();
    ensure!(
        answer.status.code() == Some(code) && said.contains(word),
        "expected exit code {code} and {word:?}, got {} and {said:?}",
        answer.status
    );
    Ok(())
}
