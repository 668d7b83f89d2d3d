//! What this host's CRIU is and can do, and what will make it slow.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create, tell};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

use crate::sys::view::View;
use crate::version::{MINIMUM_CRIU, MINIMUM_RUNC, Version};

/// How long one question to CRIU or runc may take. `criu check` runs through every feature in some 100 ms.
const LIMIT: Duration = Duration::from_secs(20);

/// As much of a program's output as is kept.
const MAX_OUTPUT: u64 = 64 * 1024;

/// Where CRIU keeps the results of its own look at the kernel.
const RUN_DIR: &str = "/run";

/// What CRIU can do beyond the minimum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CriuFeatures {
    /// The kernel tells CRIU which pages were written (soft-dirty).
    pub dirty_tracking: bool,
    /// Pages can be filled in after the restore.
    pub lazy_pages: bool,
}

/// One CRIU.
#[derive(Clone, Debug)]
pub struct CriuInfo {
    /// Its program.
    pub path: PathBuf,
    /// Its version.
    pub version: Version,
    /// Whether `criu check` is content with this kernel.
    pub check_passed: bool,
    /// What it can do.
    pub features: CriuFeatures,
    /// What an operator should know, each a sentence.
    pub warnings: Vec<String>,
}

/// Why a program is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It could not be run to its end.
    #[error("{} cannot be run: {source}", path.display())]
    Run {
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It does not say its version.
    #[error("{} does not say its version, but: {output}", path.display())]
    NoVersion {
        /// The program.
        path: PathBuf,
        /// What it says.
        output: String,
    },
    /// It is too old.
    #[error("{} is version {found}; {minimum} or later is needed", path.display())]
    TooOld {
        /// The program.
        path: PathBuf,
        /// Its version.
        found: Version,
        /// The oldest that will do.
        minimum: Version,
    },
}

/// Looks at a CRIU. One that is too old or does not run is an error; one whose kernel check fails is not, because the
/// check also fails over features that a workload may not need.
pub async fn probe(criu: &Path) -> Result<CriuInfo, ProbeError> {
    let version = version_of(criu, MINIMUM_CRIU, Version::of_criu).await?;
    let failed = |source| ProbeError::Run {
        path: criu.to_owned(),
        source,
    };
    let (check_passed, complaints) = run_criu(criu, &["check"], LIMIT).await.map_err(failed)?;
    let dirty_tracking = tracks_dirty(criu).await.map_err(failed)?;
    let (lazy_pages, _) = run_criu(criu, &["check", "--feature", "uffd-noncoop"], LIMIT)
        .await
        .map_err(failed)?;
    let mut warnings = cache_warnings(Path::new(RUN_DIR));
    if !check_passed {
        warnings.push(format!(
            "criu check is not content with this kernel: {}",
            complaints.join("; ")
        ));
    }
    let features = CriuFeatures {
        dirty_tracking,
        lazy_pages,
    };
    Ok(CriuInfo {
        path: criu.to_owned(),
        version,
        check_passed,
        features,
        warnings,
    })
}

/// Whether this CRIU loads the library that hides memory from it, which a dump of state alone needs. One that is linked
/// statically does not, nor one that is started without the variable that names the library, nor one of another name.
///
/// # Errors
/// It cannot be run to its end.
pub async fn loads_view(criu: &Path) -> io::Result<bool> {
    let view = View::create()?;
    let mut command = std::process::Command::new(criu);
    command.arg("--version");
    view.give_to(&mut command, Path::new(RUN_DIR));
    finish(command.into(), LIMIT).await?;
    Ok(view.wait_loaded(Duration::ZERO))
}

/// Whether the kernel tells this CRIU which pages were written (soft-dirty), so that it can pre-dump.
///
/// # Errors
/// It cannot be run to its end.
pub async fn tracks_dirty(criu: &Path) -> io::Result<bool> {
    let (tracks, _) = run_criu(criu, &["check", "--feature", "mem_dirty_track"], LIMIT).await?;
    Ok(tracks)
}

/// The version of a runc that is new enough.
pub async fn probe_runc(runc: &Path) -> Result<Version, ProbeError> {
    version_of(runc, MINIMUM_RUNC, Version::of_runc).await
}

async fn version_of(
    program: &Path,
    minimum: Version,
    find: fn(&str) -> Option<Version>,
) -> Result<Version, ProbeError> {
    let path = program.to_owned();
    let output = run(program, &["--version"], LIMIT).await;
    let output = output.map_err(|source| ProbeError::Run {
        path: path.clone(),
        source,
    })?;
    match find(&output.text) {
        None => Err(ProbeError::NoVersion {
            path,
            output: output.text.trim().to_owned(),
        }),
        Some(found) if found < minimum => Err(ProbeError::TooOld { path, found, minimum }),
        Some(found) => Ok(found),
    }
}

/// What keeps CRIU from remembering its look at the kernel: then every dump and every restore looks again, which takes
/// 25-30 ms of the blackout.
fn cache_warnings(run_dir: &Path) -> Vec<String> {
    let mut warnings = Vec::new();
    let cache = run_dir.join("criu.kdat");
    let is_tmpfs = rustix::fs::statfs(run_dir).is_ok_and(|stat| stat.f_type == libc::TMPFS_MAGIC);
    if !is_tmpfs && !cache.exists() {
        warnings.push(format!(
            "{} is not a tmpfs, so criu looks at the kernel anew at each start: 25-30 ms more blackout",
            run_dir.display()
        ));
    }
    let left_over = run_dir.join("criu.kdat.tmp");
    if left_over.exists() && !cache.exists() {
        warnings.push(format!(
            "{} was left behind and keeps criu from remembering what the kernel can do; remove it",
            left_over.display()
        ));
    }
    warnings
}

struct Output {
    success: bool,
    text: String,
}

/// Runs CRIU; whether it was content, and the lines it printed.
pub(super) async fn run_criu(
    criu: &Path,
    arguments: &[&str],
    limit: Duration,
) -> io::Result<(bool, Vec<String>)> {
    let output = run(criu, arguments, limit).await?;
    let lines = output.text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok((output.success, lines.map(str::to_owned).collect()))
}

async fn run(program: &Path, arguments: &[&str], limit: Duration) -> io::Result<Output> {
    let mut command = Command::new(program);
    command.args(arguments);
    finish(command, limit).await
}

/// Runs a program to its end, also when whoever asked no longer waits: a CRIU that is killed while it tries what the kernel
/// can do leaves behind the process that it tries it on, stopped. One that takes longer than `limit` is killed together with
/// all that it has started.
async fn finish(command: Command, limit: Duration) -> io::Result<Output> {
    tokio::spawn(run_to_its_end(command, limit))
        .await
        .map_err(io::Error::other)?
}

async fn run_to_its_end(mut command: Command, limit: Duration) -> io::Result<Output> {
    let output = output_file()?;
    let mut child = command
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .spawn()?;
    let Ok(status) = tokio::time::timeout(limit, child.wait()).await else {
        kill_group(&child);
        child.wait().await?;
        return Err(io::ErrorKind::TimedOut.into());
    };
    let mut printed = vec![0; usize::try_from(tell(&output)?).map_err(io::Error::other)?];
    output.read_exact_at(&mut printed, 0)?;
    Ok(Output {
        success: status?.success(),
        text: String::from_utf8_lossy(&printed).into_owned(),
    })
}

/// Takes what a program prints, to `MAX_OUTPUT` bytes. Not a pipe: a program that prints to one dies in the middle of what
/// it does when this process has died.
fn output_file() -> io::Result<File> {
    let file = memfd_create("output", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, MAX_OUTPUT)?;
    fcntl_add_seals(&file, SealFlags::GROW)?;
    Ok(file.into())
}

/// Kills the process group that a child which has not been waited for is the leader of.
fn kill_group(child: &Child) {
    let leader = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    if let Some(Err(error)) = leader.map(|group| kill_process_group(group, Signal::KILL)) {
        tracing::warn!(%error, ?leader, "a program that takes too long cannot be killed");
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_OUTPUT, ProbeError, cache_warnings, loads_view, probe, probe_runc, run};
    use std::io;
    use std::path::Path;
    use std::time::Duration;

    #[tokio::test]
    async fn a_program_that_is_missing_or_no_criu_is_an_error() {
        let missing = probe(Path::new("/nonexistent/criu")).await;
        assert!(matches!(missing, Err(ProbeError::Run { .. })));
        let other = probe_runc(Path::new("/bin/true")).await;
        assert!(matches!(other, Err(ProbeError::NoVersion { .. })), "{other:?}");
    }

    /// Copies a program. Not by this process: what another test starts meanwhile would have the copy open for writing for a
    /// moment, and it could not be run.
    fn install(from: &Path, to: &Path) {
        let status = std::process::Command::new("install").arg(from).arg(to).status();
        assert!(status.unwrap().success());
    }

    #[tokio::test]
    async fn a_program_that_is_started_without_the_variable_does_not_load_the_library() {
        let directory = tempfile::tempdir().unwrap();
        let criu = directory.path().join("criu");
        install(Path::new("/bin/true"), &criu);
        assert!(loads_view(&criu).await.unwrap());
        let wrapper = directory.path().join("wrapper");
        let script = format!("#!/bin/sh\nunset LD_PRELOAD\nexec {} \"$@\"\n", criu.display());
        let text = directory.path().join("wrapper.sh");
        std::fs::write(&text, script).unwrap();
        install(&text, &wrapper);
        assert!(!loads_view(&wrapper).await.unwrap());
        assert!(loads_view(Path::new("/nonexistent/criu")).await.is_err());
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_given_up() {
        let hung = run(Path::new("/bin/sleep"), &["60"], Duration::from_millis(50)).await;
        assert_eq!(hung.err().unwrap().kind(), io::ErrorKind::TimedOut);
    }

    /// Waits, for a time that is more than enough, until something is so.
    async fn wait_for(what: impl Fn() -> bool) {
        let patience = Duration::from_secs(10);
        tokio::time::timeout(patience, async {
            while !what() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn what_a_program_that_hangs_has_started_ends_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let script = format!("exec 9>{}; flock 9; sleep 60 & sleep 60", path.display());
        let arguments = ["-c", &script];
        let hung = run(Path::new("/bin/sh"), &arguments, Duration::from_secs(1));
        // Whoever of them lives has the lock.
        let is_free = || std::fs::File::open(&path).is_ok_and(|file| file.try_lock().is_ok());
        let has_begun = wait_for(|| path.exists() && !is_free());
        let (hung, ()) = tokio::join!(hung, has_begun);
        assert_eq!(hung.err().unwrap().kind(), io::ErrorKind::TimedOut);
        wait_for(is_free).await;
    }

    #[tokio::test]
    async fn a_program_that_nobody_waits_for_any_more_runs_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ended");
        let script = format!("sleep 0.3; echo so; touch {}", file.display());
        let arguments = ["-c", &script];
        let waiting = run(Path::new("/bin/sh"), &arguments, Duration::from_secs(20));
        let given_up = tokio::time::timeout(Duration::from_millis(50), waiting).await;
        assert!(given_up.is_err());
        wait_for(|| file.exists()).await;
    }

    #[tokio::test]
    async fn of_what_a_program_prints_the_beginning_is_kept() {
        let limit = Duration::from_secs(20);
        let output = run(Path::new("/bin/sh"), &["-c", "echo out; echo err >&2"], limit).await;
        assert_eq!(output.unwrap().text, "out\nerr\n");
        let output = run(Path::new("/usr/bin/seq"), &["1000000"], limit).await.unwrap();
        assert_eq!(output.text.len() as u64, MAX_OUTPUT);
        assert!(output.text.starts_with("1\n2\n") && !output.success);
    }

    #[test]
    fn a_left_over_cache_file_is_reported() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("criu.kdat.tmp"), "").unwrap();
        let warnings = cache_warnings(directory.path());
        assert!(
            warnings.iter().any(|warning| warning.contains("criu.kdat.tmp")),
            "{warnings:?}"
        );
        std::fs::write(directory.path().join("criu.kdat"), "").unwrap();
        assert_eq!(cache_warnings(directory.path()), Vec::<String>::new());
    }
}
