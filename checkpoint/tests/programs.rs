//! The real CRIU, asked what it is, and the relay where it only stands in for it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use prost::Message;
use tranship_checkpoint::criu::{CpuMismatch, cpuinfo_check, cpuinfo_dump, probe, probe::probe_runc};
use tranship_checkpoint::version::{MINIMUM_CRIU, MINIMUM_RUNC};

fn criu() -> PathBuf {
    std::env::var_os("TRANSHIP_TEST_CRIU")
        .map_or_else(|| "/opt/tranship/criu/sbin/criu".into(), PathBuf::from)
}

#[tokio::test]
async fn this_hosts_programs_are_good_enough() {
    let info = probe(&criu()).await.unwrap();
    assert!(info.version >= MINIMUM_CRIU && info.check_passed, "{info:?}");
    assert!(info.features.lazy_pages, "{info:?}");
    assert!(probe_runc(Path::new("runc")).await.unwrap() >= MINIMUM_RUNC);
}

/// A CRIU that is killed while it looks at the kernel leaves behind the process that it looks with.
#[tokio::test]
async fn a_question_that_is_given_up_at_any_moment_leaves_no_process_behind() {
    let criu = criu();
    let before = processes_of(&criu);
    for moment in 0..60 {
        let asked = probe(&criu);
        let _ = tokio::time::timeout(Duration::from_millis(4 * moment), asked).await;
    }
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let left = &processes_of(&criu) - &before;
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < end, "left: {left:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Those that run a program.
fn processes_of(program: &Path) -> BTreeSet<OsString> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let ours = processes
        .filter(|process| std::fs::read_link(process.path().join("exe")).is_ok_and(|path| path == program));
    ours.map(|process| process.file_name()).collect()
}

/// The x86 part of CRIU's description of a CPU.
#[derive(Clone, PartialEq, Message)]
struct Description {
    #[prost(message, repeated, tag = "1")]
    x86: Vec<X86>,
}

#[derive(Clone, PartialEq, Message)]
struct X86 {
    #[prost(uint32, tag = "1")]
    vendor: u32,
    #[prost(uint32, tag = "2")]
    family: u32,
    #[prost(uint32, tag = "3")]
    model: u32,
    #[prost(uint32, tag = "4")]
    stepping: u32,
    #[prost(uint32, tag = "5")]
    capability_version: u32,
    #[prost(uint32, repeated, packed = "false", tag = "6")]
    capability: Vec<u32>,
    #[prost(string, optional, tag = "7")]
    model_name: Option<String>,
    #[prost(uint64, optional, tag = "8")]
    register_states: Option<u64>,
    #[prost(uint32, optional, tag = "9")]
    area: Option<u32>,
    #[prost(uint32, optional, tag = "10")]
    largest_area: Option<u32>,
}

/// The image with its description changed: two magic numbers, a length, a message.
fn altered(image: &[u8], alter: impl FnOnce(&mut X86)) -> Vec<u8> {
    let mut description = Description::decode(&image[12..]).unwrap();
    alter(&mut description.x86[0]);
    let message = description.encode_to_vec();
    let mut image = image[..8].to_vec();
    image.extend(u32::try_from(message.len()).unwrap().to_le_bytes());
    image.extend(message);
    image
}

#[tokio::test]
async fn a_cpu_can_take_over_from_its_like_and_not_from_a_better_one() {
    let own = cpuinfo_dump(&criu()).await.unwrap();
    cpuinfo_check(&criu(), &own).await.unwrap();
    cpuinfo_check(&criu(), &altered(&own, |_| {})).await.unwrap();
    cpuinfo_check(&criu(), &altered(&own, |cpu| cpu.model += 1))
        .await
        .unwrap();
    let better = [
        altered(&own, |cpu| cpu.register_states = Some(u64::MAX)),
        altered(&own, |cpu| cpu.capability.fill(u32::MAX)),
        altered(&own, |cpu| cpu.area = cpu.area.map(|bytes| bytes + 64)),
    ];
    for (number, peer) in better.iter().enumerate() {
        let checked = cpuinfo_check(&criu(), peer).await;
        assert!(
            matches!(&checked, Err(CpuMismatch::Lacking { .. })),
            "{number}: {checked:?}"
        );
    }
    assert!(matches!(
        cpuinfo_check(&criu(), &[0; 70_000]).await,
        Err(CpuMismatch::TooLong { .. })
    ));
}

#[test]
fn without_a_daemon_the_relay_is_criu() {
    let relay = Command::new(env!("CARGO_BIN_EXE_tranship-criu"))
        .arg("--version")
        .env("TRANSHIP_CRIU", criu())
        .output()
        .unwrap();
    let real = Command::new(criu()).arg("--version").output().unwrap();
    assert_eq!(relay.stdout, real.stdout);
    assert!(relay.stdout.starts_with(b"Version:"));
}
