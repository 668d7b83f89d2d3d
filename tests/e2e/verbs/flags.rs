//! `run`: every flag, and what the container is then.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tranship_tests::testbed::Host;

use super::{begin, failed, words};

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
