//! Containers with the real runc and the real monitor. Needs root; every test leaves nothing behind and checks that.

#[path = "runtime/bed.rs"]
mod bed;
#[path = "runtime/exec.rs"]
mod exec;
#[path = "runtime/restore.rs"]
mod restore;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use bed::{Bed, PATIENCE, command, directory, random_id};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tranship_daemon::runtime::exec::{ExecInput, ExecOutput, ExecRequest};
use tranship_daemon::runtime::logs::{LogOptions, read};
use tranship_daemon::runtime::{ExecError, ExitStatus, Found, RestoreRequest, RuncStatus, StartError, find};
use tranship_proto::v1::{OutputStream, TerminalSize};

#[tokio::test]
async fn a_container_leaves_its_output_and_its_exit_code() {
    let bed = Bed::new();
    bed.run("echo out; echo err >&2; printf 'raw \\377\\n'; printf open; exit 7")
        .await;
    let status = bed.ended().await;
    assert_eq!((status.exit_code, status.oom_killed), (Some(7), false));
    assert!(status.finished_ms > 1_600_000_000_000, "{status:?}");
    assert_eq!(
        bed.output(OutputStream::Stdout, true).await,
        b"out\nraw \xff\nopen"
    );
    assert_eq!(bed.output(OutputStream::Stderr, true).await, b"err\n");
    assert_eq!(find(&bed.paths).await.unwrap(), Found::Exited(status));
    bed.runtime.delete(&bed.paths, true).await.unwrap();
    bed.assert_nothing_is_left();
}

#[tokio::test]
async fn the_first_process_is_who_and_where_it_was_asked_to_be() {
    let bed = Bed::new();
    bed.run_with(
        "id; echo $HOME $HOSTNAME; hostname; pwd; echo $PATH; cat /etc/hostname",
        |spec| {
            spec.user = "web".to_owned();
            spec.workdir = "/srv/new".to_owned();
            spec.hostname = "harbour".to_owned();
        },
    )
    .await;
    let stdout = bed.stdout().await;
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(
        lines,
        [
            "uid=33(web) gid=34(web) groups=34(web),50(log)",
            "/var/www harbour",
            "harbour",
            "/srv/new",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "rt"
        ]
    );
    bed.runtime.delete(&bed.paths, true).await.unwrap();
    bed.assert_nothing_is_left();
}

#[tokio::test]
async fn a_container_is_confined() {
    let bed = Bed::new();
    let script = "grep -E '^(CapEff|CapBnd|Seccomp):' /proc/self/status; cat /proc/self/uid_map | tr -s ' '; \
        mount -t tmpfs x /tmp 2>/dev/null || echo no mount; unshare -m true 2>/dev/null || echo no unshare; \
        echo 1 2>/dev/null > /proc/sys/kernel/sysrq || echo no sysctl; ls /sys/class/net; \
        mkdir /sys/x 2>/dev/null || echo no sys; head -c1 /proc/kcore | wc -c; ls /sys/firmware | wc -l; \
        echo $$; cat /sys/fs/cgroup/* 2>/dev/null | wc -l; ls /dev | grep -c -E '^(sd|vd|mem|kmsg|kvm)'";
    bed.run(script).await;
    let stdout = bed.stdout().await;
    let lines: Vec<&str> = stdout.lines().collect();
    let expected = [
        "CapEff:\t00000000a80425fb",
        "CapBnd:\t00000000a80425fb",
        "Seccomp:\t2",
        " 0 0 65536",
        "no mount",
        "no unshare",
        "no sysctl",
        "lo",
        "no sys",
        "0",
        "0",
        "1",
        "0",
        "0",
    ];
    assert_eq!(lines, expected);
    bed.runtime.delete(&bed.paths, true).await.unwrap();
    bed.assert_nothing_is_left();
}

#[tokio::test]
async fn on_the_hosts_network_sys_cannot_be_written_at_any_depth() {
    let bed = Bed::new();
    let script = "ls /sys/class/net | wc -l; mkdir /sys/x 2>/dev/null || echo no sys; \
        for d in /sys/fs/cgroup/*; do mkdir $d/rt-escape 2>/dev/null && echo escaped to $d; done; echo done";
    bed.run_with(script, |spec| spec.network = "host".to_owned())
        .await;
    let stdout = bed.stdout().await;
    let links = fs::read_dir("/sys/class/net").unwrap().count();
    assert_eq!(stdout, format!("{links}\nno sys\ndone\n"));
    bed.runtime.delete(&bed.paths, true).await.unwrap();
    bed.assert_nothing_is_left();
}

#[tokio::test]
async fn a_read_only_container_writes_only_to_its_tmpfs() {
    let bed = Bed::new();
    bed.run_with(
        "touch /x 2>/dev/null || echo no; touch /dev/shm/x && echo yes",
        |spec| spec.read_only = true,
    )
    .await;
    assert_eq!(bed.stdout().await, "no\nyes\n");
    bed.runtime.delete(&bed.paths, true).await.unwrap();
    bed.assert_nothing_is_left();
}

#[tokio::test]
async fn limits_are_the_cgroups() {
    let bed = Bed::new();
    let pid = bed
        .run_with("sleep 1000", |spec| {
            spec.memory_bytes = 32 << 20;
            spec.nano_cpus = 500_000_000;
        })
        .await;
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(
        groups
            .lines()
            .filter(|line| line.ends_with(&bed.paths.cgroup))
            .count()
            > 0,
        "{groups}"
    );
    let limit = |version1: &str, version2: &str| {
        let one = format!("/sys/fs/cgroup/{version1}").replace("@", &bed.paths.cgroup);
        let two = format!("/sys/fs/cgroup{}/{version2}", bed.paths.cgroup);
        fs::read_to_string(one)
            .or_else(|_| fs::read_to_string(two))
            .unwrap()
            .trim()
            .to_owned()
    };
    assert_eq!(
        limit("memory@/memory.limit_in_bytes", "memory.max"),
        (32 << 20).to_string()
    );
    let cpu = limit("cpu@/cpu.cfs_quota_us", "cpu.max");
    assert!(cpu == "50000" || cpu == "50000 100000", "{cpu}");
    assert_eq!(limit("pids@/pids.max", "pids.max"), "4096");
    bed.runtime.delete(&bed.paths, true).await.unwrap();
    bed.assert_nothing_is_left();
}

#[tokio::test]
async fn a_container_that_wants_too_much_memory_is_known_to_have_been_killed_for_it() {
    let bed = Bed::new();
    bed.run_with("exec tail /dev/zero", |spec| spec.memory_bytes = 16 << 20)
        .await;
    let status = bed.ended().await;
    assert_eq!((status.exit_code, status.oom_killed), (Some(137), true));
    bed.runtime.delete(&bed.paths, true).await.unwrap();
    bed.assert_nothing_is_left();
}

#[tokio::test]
async fn a_paused_container_stands_still_and_a_killed_one_ends() {
    let bed = Bed::new();
    bed.run("trap 'echo asked; exit 3' TERM; echo up; while :; do sleep 0.05; done")
        .await;
    bed.until_written("up").await;
    bed.runtime.pause(&bed.paths).await.unwrap();
    assert!(matches!(find(&bed.paths).await.unwrap(), Found::Paused(_)));
    assert_eq!(
        bed.runtime.state(&bed.paths).await.unwrap().unwrap().status,
        RuncStatus::Paused
    );
    bed.runtime.unpause(&bed.paths).await.unwrap();
    assert!(matches!(find(&bed.paths).await.unwrap(), Found::Running(life) if life.monitored));
    bed.runtime.kill(&bed.paths, 15).await.unwrap();
    assert_eq!(bed.ended().await.exit_code, Some(3));
    assert_eq!(bed.stdout().await, "up\nasked\n");
    assert_eq!(bed.runtime.state(&bed.paths).await.unwrap(), None);
    assert!(
        bed.runtime.kill(&bed.paths, 9).await.is_err(),
        "a signal for a container that has ended"
    );
    bed.runtime.delete(&bed.paths, false).await.unwrap();
    bed.assert_nothing_is_left();
}

#[tokio::test]
async fn a_frozen_tree_is_killed_without_running_on() {
    let bed = Bed::new();
    // The children would go on for a moment if the first process alone were killed before the thaw.
    bed.run("for i in 1 2 3; do (while :; do echo x; usleep 1000; done) & done; wait")
        .await;
    bed.until_written("x").await;
    bed.runtime.pause(&bed.paths).await.unwrap();
    // What was in the pipes when it froze arrives.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let frozen = bed.output(OutputStream::Stdout, false).await.len();
    bed.runtime.kill_tree(&bed.paths).await.unwrap();
    assert_eq!(bed.ended().await.exit_code, Some(137));
    assert_eq!(
        bed.output(OutputStream::Stdout, true).await.len(),
        frozen,
        "it ran after the freeze"
    );
    bed.runtime.delete(&bed.paths, true).await.unwrap();
    bed.assert_nothing_is_left();
}

#[tokio::test]
async fn a_program_that_is_not_there_is_an_error_with_its_name() {
    let bed = Bed::new();
    bed.prepare("", |spec| spec.command = vec!["nowhere".to_owned()]);
    match bed.runtime.create(&bed.paths).await {
        Err(StartError::Runtime { stage, detail }) => {
            assert_eq!(stage, "create");
            assert!(detail.contains("nowhere"), "{detail}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(find(&bed.paths).await.unwrap(), Found::Gone);
    assert_eq!(
        fs::read(bed.paths.log()).unwrap(),
        b"",
        "runc's words are in the container's log"
    );
    bed.runtime.delete(&bed.paths, true).await.unwrap();
    bed.assert_nothing_is_left();
}

#[tokio::test]
async fn a_created_container_that_nobody_starts_goes_away() {
    let bed = Bed::new();
    bed.prepare("echo must not be seen", |_| {});
    let created = bed.runtime.create(&bed.paths).await.unwrap();
    assert!(fs::metadata(format!("/proc/{}/ns/net", created.pid())).is_ok());
    assert_eq!(find(&bed.paths).await.unwrap(), Found::Starting);
    let monitor = bed.monitor().monitor;
    drop(created);
    let gone = async {
        while monitor.is_alive() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone)
        .await
        .expect("the monitor stays");
    assert_eq!(find(&bed.paths).await.unwrap(), Found::Gone);
    assert_eq!(fs::read(bed.paths.log()).unwrap(), b"");
    bed.assert_nothing_is_left();
}

#[tokio::test]
async fn a_log_is_followed_to_its_end_and_read_from_its_tail() {
    let bed = Bed::new();
    bed.run("for i in 1 2 3 4 5; do echo line $i; sleep 0.1; done; printf partial; sleep 1; echo ' done'")
        .await;
    let mut followed = read(
        &bed.paths,
        LogOptions {
            tail: None,
            follow: true,
        },
    )
    .await
    .unwrap();
    bed.until_written("partial").await;
    assert!(
        matches!(find(&bed.paths).await.unwrap(), Found::Running(_)),
        "a partial line is only seen at the end"
    );
    let mut text = String::new();
    while let Some(chunk) = tokio::time::timeout(PATIENCE, followed.recv()).await.unwrap() {
        text.push_str(std::str::from_utf8(&chunk.unwrap().data).unwrap());
    }
    assert_eq!(text, "line 1\nline 2\nline 3\nline 4\nline 5\npartial done\n");
    let mut tail = read(
        &bed.paths,
        LogOptions {
            tail: Some(2),
            follow: false,
        },
    )
    .await
    .unwrap();
    let mut text = String::new();
    while let Some(chunk) = tail.recv().await {
        text.push_str(std::str::from_utf8(&chunk.unwrap().data).unwrap());
    }
    assert_eq!(text, "line 5\npartial done\n");
    bed.ended().await;
    bed.runtime.delete(&bed.paths, true).await.unwrap();
    bed.assert_nothing_is_left();
}

#[tokio::test]
async fn a_monitor_that_is_killed_does_not_take_its_container_along() {
    let bed = Bed::new();
    let pid = bed.run("sleep 1000").await;
    let monitor = bed.monitor().monitor;
    kill(Pid::from_raw(monitor.pid), Signal::SIGKILL).unwrap();
    while monitor.is_alive() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let found = find(&bed.paths).await.unwrap();
    assert!(
        matches!(found, Found::Running(life) if life.pid == pid && !life.monitored),
        "{found:?}"
    );
    assert_eq!(bed.shell("echo still here").await.0, "still here\n");
    bed.runtime.delete(&bed.paths, true).await.unwrap();
    let unseen = ExitStatus {
        exit_code: None,
        finished_ms: 0,
        oom_killed: false,
        memory_lost: false,
    };
    assert_eq!(bed.ended().await, unseen);
    bed.assert_nothing_is_left();
}

/// Where the parent of the next test works.
const PARENT_OF: &str = "RT_TEST_PARENT_OF";

#[tokio::test]
async fn a_container_survives_the_process_that_started_it() {
    let dir = directory();
    let id = random_id();
    let parent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "parent_that_is_killed", "--ignored"])
        .env(PARENT_OF, format!("{}:{id}", dir.path().display()))
        .output()
        .unwrap();
    assert_eq!(parent.status.signal(), Some(9), "{parent:?}");
    let bed = Bed::at(dir.path(), &id);
    assert!(matches!(find(&bed.paths).await.unwrap(), Found::Running(life) if life.monitored));
    bed.until_written("tick").await;
    assert_eq!(bed.shell("touch /tmp/end; echo ok").await.0, "ok\n");
    assert_eq!(bed.ended().await.exit_code, Some(9));
    assert!(bed.stdout().await.ends_with("over\n"));
    bed.runtime.delete(&bed.paths, true).await.unwrap();
    bed.assert_nothing_is_left();
}

/// Not a test of its own: the process that the test above starts, and that does not get to clean up.
#[tokio::test]
#[ignore = "run by a_container_survives_the_process_that_started_it"]
async fn parent_that_is_killed() {
    let Ok(of) = std::env::var(PARENT_OF) else { return };
    let (path, id) = of.rsplit_once(':').unwrap();
    let bed = Bed::at(path.as_ref(), &id.parse().unwrap());
    bed.run("while test ! -e /tmp/end; do echo tick; sleep 0.1; done; echo over; exit 9")
        .await;
    kill(Pid::this(), Signal::SIGKILL).unwrap();
}
