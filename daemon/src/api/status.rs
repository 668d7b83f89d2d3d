//! Errors as gRPC statuses. The message is the whole chain of causes, once; the code is for programs.

use tonic::{Code, Status};
use tranship_proto::ids::Name;
use tranship_storage_drivers::driver::DriverError;

use crate::containers::{ContainerError, PartError, chain};
use crate::image::NameError;
use crate::network::NetworkError;
use crate::registry::RegistryError;
use crate::runtime::ExecError;
use crate::volumes::VolumeError;

/// An error that knows its code.
pub trait Coded: std::error::Error {
    /// What a program should make of it.
    fn code(&self) -> Code;
}

/// An error as a status.
pub fn of(error: &(impl Coded + 'static)) -> Status {
    let status = Status::new(error.code(), chain(error));
    if status.code() == Code::Internal {
        tracing::error!(error = status.message(), "a call failed");
    }
    status
}

/// A failure that only the daemon's operator can mend.
pub fn internal(error: &(dyn std::error::Error + 'static)) -> Status {
    let text = chain(error);
    tracing::error!(error = text, "a call failed");
    Status::internal(text)
}

/// A name as a user gave it.
pub fn name(text: &str) -> Result<Name, Status> {
    text.parse()
        .map_err(|error| Status::invalid_argument(chain(&error)))
}

/// Runs a change to its end even when the client goes away in the middle.
pub async fn to_its_end<T, E, F>(work: F) -> Result<T, Status>
where
    T: Send + 'static,
    E: Coded + Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
{
    match tokio::spawn(work).await {
        Ok(done) => done.map_err(|error| of(&error)),
        Err(_) => Err(Status::internal(
            "the call was given up in the middle; look at the daemon's log",
        )),
    }
}

impl Coded for ContainerError {
    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) | Self::NoImage(_) | Self::ImageName(NameError::Unknown(_)) => Code::NotFound,
            Self::NameTaken(_) | Self::AlreadyHere(_) | Self::OnItsWay(_) => Code::AlreadyExists,
            Self::Ambiguous { .. }
            | Self::Spec(_)
            | Self::Driver(_)
            | Self::Signal(_)
            | Self::Image(_)
            | Self::ImageName(_)
            | Self::Architecture(_)
            | Self::Malformed(_) => Code::InvalidArgument,
            Self::State { .. } | Self::Moved { .. } | Self::OldEpoch { .. } => Code::FailedPrecondition,
            Self::Busy { .. } => Code::Aborted,
            Self::NetworkRequest(error) => error.code(),
            Self::Making { source, .. } | Self::Step { source, .. } => source.code(),
            Self::Volume(error) => error.code(),
            Self::Exec(error) => error.code(),
            Self::Registry(error) => error.code(),
            Self::Removing { .. } | Self::DoesNotEnd { .. } | Self::Random(_) | Self::Log(_) => {
                Code::Internal
            }
        }
    }
}

impl Coded for PartError {
    fn code(&self) -> Code {
        match self {
            Self::Config(_) | Self::Image(_) | Self::HostPath { .. } | Self::Driver(_) => {
                Code::InvalidArgument
            }
            Self::Network(error) => error.code(),
            Self::Volume(error) => error.code(),
            Self::Storage(error) => error.code(),
            Self::Registry(error) => error.code(),
            // The image's program that is not there is the usual reason: runc's words say so.
            Self::Start(_) | Self::Runc(_) | Self::Wait(_) | Self::File(_) | Self::Copy { .. } => {
                Code::Internal
            }
        }
    }
}

impl Coded for VolumeError {
    fn code(&self) -> Code {
        match self {
            Self::Name(_) | Self::Driver(_) => Code::InvalidArgument,
            Self::NotFound(_) => Code::NotFound,
            Self::OtherDriver { .. } | Self::Taken(_) => Code::AlreadyExists,
            Self::InUse { .. } => Code::FailedPrecondition,
            Self::Storage { source, .. } | Self::Trees(source) => source.code(),
            Self::Registry(error) => error.code(),
        }
    }
}

impl Coded for NetworkError {
    fn code(&self) -> Code {
        match self {
            Self::Unknown { .. } => Code::NotFound,
            Self::BadAddress { .. }
            | Self::BadMac { .. }
            | Self::NoAddresses { .. }
            | Self::OutsideSubnet { .. } => Code::InvalidArgument,
            Self::Conflict { .. } | Self::Reserved { .. } => Code::AlreadyExists,
            Self::Exhausted { .. } => Code::ResourceExhausted,
            Self::NoLink { .. } => Code::FailedPrecondition,
            _ => Code::Internal,
        }
    }
}

impl Coded for DriverError {
    fn code(&self) -> Code {
        match self {
            Self::NoLayer(_) | Self::NoRootfs(_) | Self::NoVolume(_) => Code::NotFound,
            Self::LayerInUse { .. } | Self::Mounted { .. } => Code::FailedPrecondition,
            _ => Code::Internal,
        }
    }
}

impl Coded for RegistryError {
    fn code(&self) -> Code {
        match self {
            Self::Exists { .. } => Code::AlreadyExists,
            Self::Broken { .. } => Code::Unavailable,
            Self::NoRoom { .. } => Code::ResourceExhausted,
            Self::Open { .. } | Self::Newer { .. } | Self::Statement { .. } | Self::Gone { .. } => {
                Code::Internal
            }
        }
    }
}

impl Coded for ExecError {
    fn code(&self) -> Code {
        match self {
            Self::NoCommand | Self::Process(_) => Code::InvalidArgument,
            Self::NotRunning { .. } => Code::FailedPrecondition,
            _ => Code::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_the_whole_chain_once_and_has_the_code_of_its_cause() {
        let error = ContainerError::from(VolumeError::InUse {
            name: "data".parse().unwrap(),
            users: vec!["web".into()],
        });
        let status = of(&error);
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(
            status.message(),
            "the volume data is in use by web; nothing was changed: remove the containers first"
        );
    }
}
