//! What happens at a point. `TRANSHIP_FAULTS` names a directory with two files: `plan` has a line `POINT DEED` for each fault that is
//! still to come and loses it when it does; with a number behind it, `POINT DEED N`, the point is passed so often before. `log` gets a line for each point that is passed and each deed that is done. A point that is
//! held has a file `POINT.held` there, and goes on when a test has removed it.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tranship_proto::points as steps;

use super::Injected;

/// Where plan and log are.
pub const DIRECTORY: &str = "TRANSHIP_FAULTS";

/// Two points must not take each other's line out of the plan.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Between two looks at whether a point is still held.
const AGAIN: Duration = Duration::from_millis(2);

/// What a plan can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    /// The daemon dies before the step.
    KillBefore,
    /// It dies after the step.
    KillAfter,
    /// The step fails without having been tried.
    Error,
    /// The step is done, and fails all the same.
    ErrorAfter,
    /// The step waits until a test lets it go on; the rest of the daemon goes on meanwhile.
    Hold,
}

/// Does the work of a point, unless something else is planned there.
pub async fn at<T, E>(
    point: impl Display,
    fail: impl FnOnce(Injected) -> E,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let point = point.to_string();
    match planned(&point) {
        None => {
            // Whoever was held here may have been given up and begun again.
            held(&point).await;
            work.await
        }
        Some(Deed::KillBefore) => die(),
        Some(Deed::KillAfter) => {
            drop(work.await);
            die()
        }
        Some(Deed::Error) => Err(fail(Injected)),
        Some(Deed::ErrorAfter) => {
            work.await?;
            Err(fail(Injected))
        }
        Some(Deed::Hold) => {
            hold(&point);
            held(&point).await;
            work.await
        }
    }
}

/// Has the steps below those of the roles obey the plan, too: see [`tranship_proto::points`].
pub fn obey_plans() {
    steps::install(&Planned);
}

struct Planned;

impl steps::Plan for Planned {
    fn reach(&self, point: &str) -> steps::Deed {
        match planned(point) {
            None => steps::Deed::Nothing,
            Some(Deed::KillBefore) => die(),
            Some(Deed::KillAfter) => steps::Deed::DieAfter,
            Some(Deed::Error) => steps::Deed::Fail(steps::Injected::Instead),
            Some(Deed::ErrorAfter) => steps::Deed::Fail(steps::Injected::Behind),
            Some(Deed::Hold) => {
                hold(point);
                while mark(point).is_some_and(|mark| mark.exists()) {
                    std::thread::sleep(AGAIN);
                }
                steps::Deed::Nothing
            }
        }
    }

    fn die(&self) -> ! {
        die()
    }
}

/// Says that the point was reached. Where that cannot be written nothing is held: the test that waits for it says so.
fn hold(point: &str) {
    if let Some(mark) = mark(point) {
        fs::write(mark, "").ok();
    }
}

/// What a test says is the name of this start of the machine: the file `boot` in the plan's directory.
pub fn told_boot_id() -> Option<String> {
    let directory = PathBuf::from(std::env::var_os(DIRECTORY)?);
    fs::read_to_string(directory.join("boot")).ok()
}

/// Waits until a test has seen that the point was reached and done what it wanted to.
async fn held(point: &str) {
    let Some(mark) = mark(point) else { return };
    while mark.exists() {
        tokio::time::sleep(AGAIN).await;
    }
}

fn mark(point: &str) -> Option<PathBuf> {
    let directory = PathBuf::from(std::env::var_os(DIRECTORY)?);
    Some(directory.join(format!("{point}.held")))
}

/// Takes what is planned for a point out of the plan.
fn planned(point: &str) -> Option<Deed> {
    let directory = PathBuf::from(std::env::var_os(DIRECTORY)?);
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // A test that cannot plan finds a migration in which nothing has happened.
    let taken = take(&directory, point).unwrap_or_default();
    let line = match &taken {
        Some(deed) => format!("{point} {deed:?}\n"),
        None => format!("{point}\n"),
    };
    log(&directory, &line).ok();
    taken
}

fn take(directory: &Path, point: &str) -> io::Result<Option<Deed>> {
    let path = directory.join("plan");
    let plan = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    let mut lines: Vec<String> = plan.lines().map(str::to_owned).collect();
    let deed = |line: &str| {
        let mut words = line.strip_prefix(point)?.strip_prefix(' ')?.split(' ');
        let deed = match words.next()? {
            "kill-before" => Deed::KillBefore,
            "kill-after" => Deed::KillAfter,
            "error" => Deed::Error,
            "error-after" => Deed::ErrorAfter,
            "hold" => Deed::Hold,
            _ => return None,
        };
        let passes: u32 = words.next().map_or(Some(0), |passes| passes.parse().ok())?;
        Some((deed, passes))
    };
    let planned = lines.iter().enumerate();
    let found = planned
        .filter_map(|(index, line)| Some((index, deed(line)?)))
        .next();
    let Some((index, (deed, passes))) = found else {
        return Ok(None);
    };
    if passes > 0 {
        let word = lines[index].split(' ').nth(1).unwrap_or_default();
        lines[index] = format!("{point} {word} {}", passes - 1);
    } else {
        lines.remove(index);
    }
    let mut new = OsString::from(&path);
    new.push(".new");
    fs::write(&new, lines.join("\n"))?;
    fs::rename(&new, &path)?;
    Ok((passes == 0).then_some(deed))
}

fn log(directory: &Path, line: &str) -> io::Result<()> {
    let mut log = File::options()
        .append(true)
        .create(true)
        .open(directory.join("log"))?;
    log.write_all(line.as_bytes())
}

/// As SIGKILL from outside ends it: nothing is closed or put away.
fn die() -> ! {
    nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL).ok();
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planned_deed_is_done_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("plan"),
            "source:thaw error 1\nsource:freeze kill-after\nsource:freeze error-after",
        )
        .unwrap();
        let take = |point| take(dir.path(), point).unwrap();
        assert_eq!(take("source:free"), None);
        assert_eq!(take("source:freeze"), Some(Deed::KillAfter));
        assert_eq!(take("source:freeze"), Some(Deed::ErrorAfter));
        assert_eq!(take("source:freeze"), None);
        assert_eq!(take("source:thaw"), None, "the first time it is passed");
        assert_eq!(take("source:thaw"), Some(Deed::Error));
        assert_eq!(take("source:thaw"), None);
    }
}
