//! What can go wrong with containers. An error says in which state things are: where a step of a longer way failed, what had
//! been made was unmade, and what could not be is listed.

use std::fmt;
use std::io;

use tranship_proto::ids::Digest;
use tranship_proto::v1::ContainerState;
use tranship_storage_drivers::driver::DriverError;

use super::bundle::FileError;
use super::seed::SeedError;
use super::spec::SpecError;
use crate::image::{ConfigError as ImageArchitectureError, NameError};
use crate::network::NetworkError;
use crate::registry::RegistryError;
use crate::runtime::spec::SpecError as ConfigError;
use crate::runtime::{
    ExecError, ImageConfigError, LogError, RuncError, StartError, UnknownSignal, WaitError,
};
use crate::storage::UnknownDriver;
use crate::volumes::VolumeError;

/// Why a container is not as asked for.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// Nothing has that name or id.
    #[error("there is no container {0:?} on this host")]
    NotFound(String),
    /// Several ids begin like that.
    #[error("{prefix:?} is the beginning of several containers' ids: {}; give more of it", matches.join(", "))]
    Ambiguous {
        /// What was given.
        prefix: String,
        /// Short id and name of each.
        matches: Vec<String>,
    },
    /// Another container has the name.
    #[error("the name {0:?} is in use by another container; remove that one or choose another name")]
    NameTaken(String),
    /// The container is here already.
    #[error("container {0} is on this host already")]
    AlreadyHere(String),
    /// Another migration of the container to this host is not at its end.
    #[error(
        "container {0} is on its way to this host by another migration; wait until that one is at its end (`tranship migrate ls`)"
    )]
    OnItsWay(String),
    /// Something else is going on with the container.
    #[error(
        "container {id} is busy with something else, and still was after {waited_s} s; nothing was changed"
    )]
    Busy {
        /// Which container.
        id: String,
        /// How long was waited.
        waited_s: u64,
    },
    /// The state does not allow it.
    #[error("cannot {verb} container {name}: it is {}{advice}", state_word(*state))]
    State {
        /// What was asked for.
        verb: &'static str,
        /// Which container.
        name: String,
        /// Its state, which has not changed.
        state: ContainerState,
        /// What to do, after a separator; may be empty.
        advice: &'static str,
    },
    /// The container was handed to another host.
    #[error("cannot {verb} container {name}: it has moved to host {to}; ask there")]
    Moved {
        /// What was asked for.
        verb: &'static str,
        /// Which container.
        name: String,
        /// Who has it.
        to: String,
    },
    /// What was asked for cannot be made.
    #[error("the container cannot be made as asked; nothing was changed")]
    Spec(#[from] SpecError),
    /// The network cannot give what was asked for.
    #[error("the container cannot be put on its network as asked; nothing was changed")]
    NetworkRequest(#[source] NetworkError),
    /// No such storage driver.
    #[error(transparent)]
    Driver(#[from] UnknownDriver),
    /// No such image.
    #[error(transparent)]
    ImageName(#[from] NameError),
    /// The image is of another machine's kind.
    #[error("the image cannot be used")]
    Architecture(#[from] ImageArchitectureError),
    /// The image a container was made from is gone.
    #[error("the image {0} that the container was made from is not on this host any more")]
    NoImage(Digest),
    /// No such signal.
    #[error(transparent)]
    Signal(#[from] UnknownSignal),
    /// The image's configuration cannot be used.
    #[error("the image cannot be used")]
    Image(#[from] ImageConfigError),
    /// The machine gives no random numbers.
    #[error("the machine gives no random numbers for an id")]
    Random(#[source] io::Error),
    /// A log cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A program could not be run inside.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// Making it failed on the way.
    #[error("cannot {step} for container {name}; {undo}")]
    Making {
        /// Which container.
        name: String,
        /// What failed.
        step: &'static str,
        /// Why.
        #[source]
        source: Box<PartError>,
        /// What became of what had been made.
        undo: Leftovers,
    },
    /// Taking it apart failed on the way.
    #[error(
        "container {name} could not be removed whole and is kept: {leftovers}; remove it again when that is mended"
    )]
    Removing {
        /// Which container.
        name: String,
        /// What is still there.
        leftovers: Leftovers,
    },
    /// One step failed.
    #[error("cannot {step} of container {name}")]
    Step {
        /// Which container.
        name: String,
        /// What failed.
        step: &'static str,
        /// Why.
        #[source]
        source: Box<PartError>,
    },
    /// It does not end.
    #[error("container {name} did not end within {waited_s} s after SIGKILL; it is still {}", state_word(*state))]
    DoesNotEnd {
        /// Which container.
        name: String,
        /// How long was waited.
        waited_s: u64,
        /// Its state.
        state: ContainerState,
    },
    /// A container that comes from elsewhere is older than what this host knows.
    #[error(
        "container {name} would come with epoch {epoch}, but this host has seen epoch {seen}; nothing was changed"
    )]
    OldEpoch {
        /// Which container.
        name: String,
        /// What was offered.
        epoch: u64,
        /// What is known.
        seen: u64,
    },
    /// A message about a container lacks something or has it wrong.
    #[error("the description of the container is not understood: {0}")]
    Malformed(&'static str),
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

/// The part of the host that failed.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// A storage driver.
    #[error(transparent)]
    Storage(#[from] DriverError),
    /// No such storage driver.
    #[error(transparent)]
    Driver(#[from] UnknownDriver),
    /// A volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// What was asked for cannot be a runtime configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The image's configuration cannot be used.
    #[error(transparent)]
    Image(#[from] ImageConfigError),
    /// It did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// runc, or a cgroup.
    #[error(transparent)]
    Runc(#[from] RuncError),
    /// How it ended is not known.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// A tree could not be copied.
    #[error("cannot copy what the image has in the place of volume {volume}")]
    Copy {
        /// Which volume.
        volume: String,
        /// Why.
        #[source]
        source: SeedError,
    },
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A file of the daemon's.
    #[error(transparent)]
    File(#[from] FileError),
    /// A host path that is to be mounted.
    #[error("the host path {path:?} cannot be mounted")]
    HostPath {
        /// The path.
        path: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// A step of taking something apart that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub struct StepFailure {
    /// What was tried.
    pub step: &'static str,
    /// Why it failed.
    #[source]
    pub source: PartError,
}

/// What could not be taken apart.
#[derive(Debug, Default)]
pub struct Leftovers(pub Vec<StepFailure>);

impl Leftovers {
    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nothing of it was left");
        }
        for (index, failure) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{}", chain(failure))?;
        }
        Ok(())
    }
}

/// An error with its causes, each once, from the outside in.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        // A transparent wrapper says the same as what it wraps.
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

/// The state as people read it.
#[must_use]
pub fn state_word(state: ContainerState) -> &'static str {
    match state {
        ContainerState::Unspecified => "in no known state",
        ContainerState::Created => "created but not started",
        ContainerState::Running => "running",
        ContainerState::Paused => "paused",
        ContainerState::Exited => "not running",
        ContainerState::Migrating => "being migrated",
        ContainerState::Receiving => "being received from another host",
        ContainerState::Moved => "moved to another host",
        ContainerState::InDoubt => "in doubt after a migration",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_start_says_what_failed_why_and_what_is_left() {
        let failure = |step| StepFailure {
            step,
            source: UnknownDriver {
                name: "zfs".into(),
                known: "overlay".into(),
            }
            .into(),
        };
        let error = ContainerError::Making {
            name: "web".into(),
            step: "mount the root file system",
            source: Box::new(PartError::HostPath {
                path: "/x".into(),
                source: io::Error::from(io::ErrorKind::NotFound),
            }),
            undo: Leftovers(vec![failure("remove the root file system")]),
        };
        let text = chain(&error);
        assert_eq!(
            text,
            "cannot mount the root file system for container web; cannot remove the root file system: there is no storage \
             driver \"zfs\" on this host; it has overlay: the host path \"/x\" cannot be mounted: entity not found"
        );
    }
}
