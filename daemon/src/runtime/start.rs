//! Bringing a container to life, by a monitor that stays with it.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::error::StartError;
use super::monitor::{Action, Job, MAX_REPORT_BYTES, Report, START};
use super::paths::ContainerPaths;
use super::runc::Runtime;

/// How long a start may take before the monitor gives it up.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// What the daemon waits beyond that, for the monitor to clean up and say so.
const REPORT_GRACE: Duration = Duration::from_secs(45);

/// How long a monitor may take from its last word to its end.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// A container whose first process exists and waits: its namespaces are there, nothing of its own has run. Dropping it removes
/// the container.
#[derive(Debug)]
pub struct Created {
    reports: Reports,
    orders: ChildStdin,
    pid: i32,
}

impl Created {
    /// Host pid of the first process; its namespaces are in `/proc/PID/ns`.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Runs the container's program; gives the pid. If this is cancelled, `find` tells how it went.
    ///
    /// # Errors
    /// It did not start and is gone, but for [`StartError::Deadline`] and [`StartError::Silent`], after which `find` must be
    /// asked.
    pub async fn start(mut self) -> Result<i32, StartError> {
        // A monitor that has given up has said why.
        self.orders.write_all(START).await.ok();
        self.reports
            .running(START_DEADLINE + REPORT_GRACE)
            .await
            .map(|started| started.pid)
    }
}

/// A container that came to life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// Host pid of its first process.
    pub pid: i32,
}

/// How a container is to be restored.
#[derive(Clone, Debug)]
pub struct RestoreRequest {
    /// Arguments of `runc restore` beyond those every restore has (`--detach`, bundle, pid file): images, work directory
    /// and what CRIU may keep.
    pub arguments: Vec<OsString>,
    /// Variables to set for runc, and by it for what it starts as `criu`.
    pub environment: Vec<(String, String)>,
    /// Where the filler works that will bring the container's memory, if one will: the monitor holds what it needs, and ends
    /// the container if it is lost.
    pub filler: Option<PathBuf>,
    /// When the monitor gives up, ends runc and removes what it has made.
    pub deadline: Duration,
}

/// A restore under way. Dropping it does not end it.
#[derive(Debug)]
pub struct RestoreHandle {
    reports: Reports,
    deadline: Duration,
}

impl RestoreHandle {
    /// Waits until runc has ended: the container runs, or the restore failed and nothing is left of it. Not
    /// cancel-safe: a report may be lost; `find` answers then.
    ///
    /// # Errors
    /// The restore failed, or the monitor did not say in time.
    pub async fn finished(self) -> Result<Started, StartError> {
        self.reports.running(self.deadline + REPORT_GRACE).await
    }
}

impl Runtime {
    /// Makes the container whose bundle is ready and whose root filesystem is mounted, up to the point where its program would
    /// run: its network can be attached then. It is removed if it is not started within a minute, and if the daemon ends
    /// or this is cancelled.
    ///
    /// # Errors
    /// Nothing is left of the container.
    pub async fn create(&self, paths: &ContainerPaths) -> Result<Created, StartError> {
        let (mut reports, orders) = self
            .spawn_monitor(paths, Action::Create, &[], START_DEADLINE)
            .await?;
        loop {
            match reports.next(START_DEADLINE + REPORT_GRACE).await? {
                Report::RuncStarted => {}
                Report::Created { pid } => return Ok(Created { reports, orders, pid }),
                Report::Failed { stage, detail } => return Err(StartError::Runtime { stage, detail }),
                Report::Running { pid } => {
                    return Err(reports.garbage(&format!("{pid} runs before its start")));
                }
            }
        }
    }

    /// Begins to restore the container; returns when runc has been started. The monitor is the parent of what is
    /// restored, and gives it new pipes.
    ///
    /// # Errors
    /// Nothing was restored.
    pub async fn restore(
        &self,
        paths: &ContainerPaths,
        request: RestoreRequest,
    ) -> Result<RestoreHandle, StartError> {
        let arguments = request
            .arguments
            .iter()
            .map(|word| utf8(Path::new(word)))
            .collect::<Result<_, _>>()?;
        let action = Action::Restore {
            arguments,
            filler: request.filler,
        };
        let (mut reports, _) = self
            .spawn_monitor(paths, action, &request.environment, request.deadline)
            .await?;
        match reports.next(REPORT_GRACE).await? {
            Report::RuncStarted => Ok(RestoreHandle {
                reports,
                deadline: request.deadline,
            }),
            Report::Failed { stage, detail } => Err(StartError::Runtime { stage, detail }),
            other => Err(reports.garbage(&format!("{other:?} before runc was started"))),
        }
    }

    async fn spawn_monitor(
        &self,
        paths: &ContainerPaths,
        action: Action,
        environment: &[(String, String)],
        deadline: Duration,
    ) -> Result<(Reports, ChildStdin), StartError> {
        forget_earlier_life(paths)?;
        let job = self.job(paths, action, deadline)?;
        let log = paths.monitor_log();
        let errors = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(prepare(&log))?;
        let mut child = Command::new(&self.monitor)
            .arg(paths.id.as_str())
            .env_clear()
            .env("PATH", self.search_path())
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .map_err(|source| StartError::Spawn {
                program: self.monitor.clone(),
                source,
            })?;
        let silent = || StartError::Silent {
            id: paths.id.clone(),
            log: log.clone(),
        };
        let mut orders = child.stdin.take().ok_or_else(silent)?;
        let reports = Reports::of(child, paths)?;
        // A monitor that does not read ends without a report, and that is the error.
        orders.write_all(&job).await.ok();
        Ok((reports, orders))
    }

    fn job(&self, paths: &ContainerPaths, action: Action, deadline: Duration) -> Result<Vec<u8>, StartError> {
        let job = Job {
            id: paths.id.clone(),
            action,
            runc: self.runc.clone(),
            runc_root: self.runc_root.clone(),
            bundle: paths.bundle.clone(),
            run: paths.run.clone(),
            cgroup: paths.cgroup.clone(),
            monitor_cgroup: paths.monitor_cgroup(),
            deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
        };
        let mut line = serde_json::to_vec(&job).map_err(|error| prepare(&paths.bundle)(error.into()))?;
        line.push(b'\n');
        Ok(line)
    }
}

/// What an earlier life of the container left must not be taken for this one's.
fn forget_earlier_life(paths: &ContainerPaths) -> Result<(), StartError> {
    fs::create_dir_all(&paths.run).map_err(prepare(&paths.run))?;
    for path in [paths.exit(), paths.monitor()] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(prepare(&path)(error)),
            _ => {}
        }
    }
    Ok(())
}

fn prepare(path: &Path) -> impl Fn(io::Error) -> StartError + use<> {
    let path = path.to_owned();
    move |source| StartError::Prepare {
        path: path.clone(),
        source,
    }
}

fn utf8(path: &Path) -> Result<String, StartError> {
    let not_utf8 = || io::Error::new(io::ErrorKind::InvalidInput, "the path is not UTF-8");
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| prepare(path)(not_utf8()))
}

/// What a monitor says, as long as somebody listens.
#[derive(Debug)]
struct Reports {
    lines: BufReader<ChildStdout>,
    id: tranship_proto::ids::ContainerId,
    log: PathBuf,
}

impl Reports {
    fn of(mut child: Child, paths: &ContainerPaths) -> Result<Self, StartError> {
        let stdout = child.stdout.take();
        // Reaps the monitor if it ends before the daemon does; it is not ended when this task is.
        tokio::spawn(async move { child.wait().await });
        let silent = || StartError::Silent {
            id: paths.id.clone(),
            log: paths.monitor_log(),
        };
        let lines = BufReader::new(stdout.ok_or_else(silent)?);
        Ok(Self {
            lines,
            id: paths.id.clone(),
            log: paths.monitor_log(),
        })
    }

    async fn running(mut self, deadline: Duration) -> Result<Started, StartError> {
        loop {
            match self.next(deadline).await? {
                Report::RuncStarted | Report::Created { .. } => {}
                Report::Running { pid } => return Ok(Started { pid }),
                Report::Failed { stage, detail } => return Err(StartError::Runtime { stage, detail }),
            }
        }
    }

    async fn next(&mut self, deadline: Duration) -> Result<Report, StartError> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.lines).take(MAX_REPORT_BYTES);
        let read = tokio::time::timeout(deadline, bounded.read_until(b'\n', &mut line)).await;
        match read {
            Err(_) => Err(StartError::Deadline {
                id: self.id.clone(),
                waited: deadline,
            }),
            Ok(Ok(0) | Err(_)) => Err(StartError::Silent {
                id: self.id.clone(),
                log: self.log.clone(),
            }),
            Ok(Ok(_)) => match serde_json::from_slice(&line) {
                Ok(failed @ Report::Failed { .. }) => {
                    self.closed().await;
                    Ok(failed)
                }
                Ok(report) => Ok(report),
                Err(_) => Err(self.garbage(&String::from_utf8_lossy(&line))),
            },
        }
    }

    /// A failure is a monitor's last word; its end follows at once, and then nothing is left of it.
    async fn closed(&mut self) {
        let mut rest = Vec::new();
        let mut bounded = (&mut self.lines).take(MAX_REPORT_BYTES);
        tokio::time::timeout(END_DEADLINE, bounded.read_to_end(&mut rest))
            .await
            .ok();
    }

    fn garbage(&self, text: &str) -> StartError {
        StartError::Garbage {
            id: self.id.clone(),
            text: text.chars().take(200).collect(),
        }
    }
}
