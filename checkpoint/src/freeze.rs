//! The cgroup freezer: the one authority over whether a container's tasks may run.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use crate::cgroup::{self, CgroupError, CgroupVersion};

/// Pause between two looks at the freezer. A frozen state comes within microseconds to a few milliseconds; a look costs
/// a few microseconds.
const LOOK: Duration = Duration::from_micros(200);

/// After this long without success a v1 freezer is thawed and told again: a task that was forked or left the kernel at
/// the wrong moment can keep it in FREEZING for ever otherwise.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Why a tree cannot be frozen or thawed.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// The cgroup cannot be used.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Tasks did not stop in time. They have been thawed again.
    #[error("cgroup {} is not frozen after {waited_ms} ms, tasks {unfrozen:?} do not stop; it runs again", directory.display())]
    Deadline {
        /// The cgroup.
        directory: PathBuf,
        /// How long it was tried.
        waited_ms: u128,
        /// Tasks in uninterruptible sleep, which is what keeps a freezer from its end.
        unfrozen: Vec<i32>,
    },
    /// Thawed, but a cgroup above it keeps it frozen.
    #[error("cgroup {} stays frozen because a cgroup above it is frozen; thaw that one", directory.display())]
    ParentFrozen {
        /// The cgroup.
        directory: PathBuf,
    },
    /// The blocking worker ended early, which happens when the runtime shuts down.
    #[error("the freezer of cgroup {} was given up because the daemon is shutting down", directory.display())]
    ShuttingDown {
        /// The cgroup.
        directory: PathBuf,
    },
}

/// What the freezer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreezerState {
    /// Tasks run.
    Thawed,
    /// Some tasks have stopped.
    Freezing,
    /// No task runs.
    Frozen,
}

/// The freezer of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freezer {
    directory: PathBuf,
    version: CgroupVersion,
}

impl Freezer {
    /// The freezer of `cgroup`, a path below the hierarchies' roots such as `/tranship/ID`.
    pub fn of_cgroup(cgroup: &str) -> Result<Self, FreezeError> {
        let directory = cgroup::directory(cgroup, "freezer")?;
        Ok(Self {
            directory,
            version: CgroupVersion::detect(),
        })
    }

    /// The cgroup's directory in the freezer's hierarchy.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Which interface it is used through.
    pub fn version(&self) -> CgroupVersion {
        self.version
    }

    /// What the freezer says now.
    pub fn state(&self) -> Result<FreezerState, FreezeError> {
        match self.version {
            CgroupVersion::V1 => self.state_v1(),
            CgroupVersion::V2 => self.state_v2(),
        }
    }

    /// Whether no task of the container can run.
    pub fn is_frozen(&self) -> Result<bool, FreezeError> {
        Ok(self.state()? == FreezerState::Frozen)
    }

    /// Freezes and waits until no task runs; returns how long that took. Where the deadline passes first the tree is
    /// thawed again.
    ///
    /// Not cancel safe in one way: a dropped call still freezes. Thaw after giving up on it.
    pub async fn freeze(&self, deadline: Instant) -> Result<Duration, FreezeError> {
        let freezer = self.clone();
        let work = tokio::task::spawn_blocking(move || freezer.freeze_blocking(deadline));
        work.await.map_err(|_| FreezeError::ShuttingDown {
            directory: self.directory.clone(),
        })?
    }

    /// Asks for the frozen state without waiting for it: for tasks that something else has stopped already.
    pub fn ask_to_freeze(&self) -> Result<(), FreezeError> {
        match self.version {
            CgroupVersion::V1 => cgroup::write(&self.directory.join("freezer.state"), "FROZEN")?,
            CgroupVersion::V2 => cgroup::write(&self.directory.join("cgroup.freeze"), "1")?,
        }
        Ok(())
    }

    /// Lets the tasks run. A tree that runs already is fine; a frozen parent is an error.
    pub fn thaw(&self) -> Result<(), FreezeError> {
        match self.version {
            CgroupVersion::V1 => {
                cgroup::write(&self.directory.join("freezer.state"), "THAWED")?;
                let parent = cgroup::read(&self.directory.join("freezer.parent_freezing"))?;
                if parent.trim() == "1" {
                    Err(self.parent_frozen())
                } else {
                    Ok(())
                }
            }
            CgroupVersion::V2 => Ok(cgroup::write(&self.directory.join("cgroup.freeze"), "0")?),
        }
    }

    fn parent_frozen(&self) -> FreezeError {
        FreezeError::ParentFrozen {
            directory: self.directory.clone(),
        }
    }

    fn freeze_blocking(&self, deadline: Instant) -> Result<Duration, FreezeError> {
        let start = Instant::now();
        let mut asked = start;
        self.ask_to_freeze()?;
        loop {
            if self.state()? == FreezerState::Frozen {
                return Ok(start.elapsed());
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(self.give_up(start));
            }
            if self.version == CgroupVersion::V1 && now - asked >= ASK_AGAIN {
                cgroup::write(&self.directory.join("freezer.state"), "THAWED")?;
                self.ask_to_freeze()?;
                asked = now;
            }
            std::thread::sleep(LOOK);
        }
    }

    fn give_up(&self, start: Instant) -> FreezeError {
        let unfrozen = crate::process_tree::uninterruptible(&self.directory).unwrap_or_default();
        match self.thaw() {
            Ok(()) => FreezeError::Deadline {
                directory: self.directory.clone(),
                waited_ms: start.elapsed().as_millis(),
                unfrozen,
            },
            Err(error) => error,
        }
    }

    fn state_v1(&self) -> Result<FreezerState, FreezeError> {
        let path = self.directory.join("freezer.state");
        let text = cgroup::read(&path)?;
        match text.trim() {
            "THAWED" => Ok(FreezerState::Thawed),
            "FREEZING" => Ok(FreezerState::Freezing),
            "FROZEN" => Ok(FreezerState::Frozen),
            other => Err(CgroupError::Content {
                path,
                text: other.to_owned(),
            }
            .into()),
        }
    }

    fn state_v2(&self) -> Result<FreezerState, FreezeError> {
        let events = cgroup::read(&self.directory.join("cgroup.events"))?;
        if events.lines().any(|line| line == "frozen 1") {
            return Ok(FreezerState::Frozen);
        }
        let asked = cgroup::read(&self.directory.join("cgroup.freeze"))?;
        Ok(if asked.trim() == "1" {
            FreezerState::Freezing
        } else {
            FreezerState::Thawed
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Freezer, FreezerState};
    use crate::cgroup::{CgroupVersion, all_directories};
    use crate::process_tree;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command};
    use std::time::Duration;
    use tokio::time::Instant;

    /// A process that does something all the time, in a cgroup of its own.
    struct Busy {
        directory: PathBuf,
        child: Child,
    }

    impl Busy {
        fn below(hierarchy: &Path, name: &str) -> Self {
            let directory = hierarchy.join(format!("ck-{name}-{}", std::process::id()));
            std::fs::create_dir(&directory).unwrap();
            let child = Command::new("sh")
                .args(["-c", "while :; do sleep 0.01; done"])
                .spawn()
                .unwrap();
            std::fs::write(directory.join("cgroup.procs"), child.id().to_string()).unwrap();
            Self { directory, child }
        }
    }

    impl Drop for Busy {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            // The shell's own child may outlive it by some milliseconds.
            for _ in 0..500 {
                if std::fs::remove_dir(&self.directory).is_ok() || !self.directory.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    /// The mount points of this host that have a freezer, with how it is used.
    fn hierarchies() -> Vec<(PathBuf, CgroupVersion)> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut found = Vec::new();
        for line in mounts.lines() {
            let path = PathBuf::from(line.split(' ').nth(4).unwrap());
            match line.split(" - ").nth(1).unwrap() {
                rest if rest.starts_with("cgroup2 ") => found.push((path, CgroupVersion::V2)),
                rest if rest.starts_with("cgroup ") && rest.contains("freezer") => {
                    found.push((path, CgroupVersion::V1));
                }
                _ => {}
            }
        }
        found
    }

    #[tokio::test]
    async fn every_freezer_of_this_host_freezes_thaws_and_lets_kill() {
        let hierarchies = hierarchies();
        assert!(!hierarchies.is_empty(), "this host has no freezer at all");
        for (hierarchy, version) in hierarchies {
            let mut busy = Busy::below(&hierarchy, "freeze");
            let freezer = Freezer {
                directory: busy.directory.clone(),
                version,
            };
            assert_eq!(freezer.state().unwrap(), FreezerState::Thawed);
            for _ in 0..20 {
                let took = freezer
                    .freeze(Instant::now() + Duration::from_secs(5))
                    .await
                    .unwrap();
                assert!(took < Duration::from_secs(1), "{took:?}");
                assert!(freezer.is_frozen().unwrap());
                freezer.thaw().unwrap();
                assert_eq!(freezer.state().unwrap(), FreezerState::Thawed);
                freezer.thaw().unwrap();
            }
            freezer
                .freeze(Instant::now() + Duration::from_secs(5))
                .await
                .unwrap();
            let dead = tokio::task::spawn_blocking(move || {
                busy.child.wait().unwrap();
                busy
            });
            process_tree::kill_all(&freezer, Instant::now() + Duration::from_secs(5))
                .await
                .unwrap();
            let _busy = dead.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_tree_below_a_frozen_cgroup_cannot_be_thawed_on_its_own() {
        let Some((hierarchy, _)) = hierarchies()
            .into_iter()
            .find(|(_, version)| *version == CgroupVersion::V1)
        else {
            // v2 has no such state to tell apart: the kernel keeps the tree frozen and says so in cgroup.events.
            return;
        };
        let parent = Busy::below(&hierarchy, "parent");
        let child = Busy::below(&parent.directory, "child");
        let [outer, inner] = [&parent, &child].map(|busy| Freezer {
            directory: busy.directory.clone(),
            version: CgroupVersion::V1,
        });
        outer
            .freeze(Instant::now() + Duration::from_secs(5))
            .await
            .unwrap();
        assert!(inner.is_frozen().unwrap());
        assert!(
            inner
                .thaw()
                .unwrap_err()
                .to_string()
                .contains("a cgroup above it is frozen")
        );
        outer.thaw().unwrap();
        inner.thaw().unwrap();
    }

    #[test]
    fn a_cgroup_that_does_not_exist_is_an_error() {
        assert!(Freezer::of_cgroup("/ck-none/here").is_err());
        assert_eq!(all_directories("/ck-none/here").unwrap(), Vec::<PathBuf>::new());
    }
}
