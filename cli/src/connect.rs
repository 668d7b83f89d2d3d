//! Reaches the daemon: a unix socket, or TCP where somebody forwards one.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;
use tranship_proto::v1::tranship_client::TranshipClient;

use crate::failure::Failure;

/// Where the daemon listens unless told otherwise.
pub const DEFAULT_HOST: &str = "unix:///run/tranship/transhipd.sock";

/// A daemon on the same machine answers at once or is not there.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// The daemon's API.
pub type Client = TranshipClient<Channel>;

/// The address of a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// HOST:PORT.
    Tcp(String),
}

/// Text that is no address.
#[derive(Debug, thiserror::Error)]
#[error("not an address of a daemon: write it as unix:///path or tcp://host:port")]
pub struct BadAddress;

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        if let Some(path) = text.strip_prefix("unix://").filter(|path| path.starts_with('/')) {
            return Ok(Self::Unix(path.into()));
        }
        let place = text.strip_prefix("tcp://").ok_or(BadAddress)?;
        let (host, port) = place.rsplit_once(':').ok_or(BadAddress)?;
        match port.parse::<u16>() {
            Ok(_) if !host.is_empty() => Ok(Self::Tcp(place.to_owned())),
            _ => Err(BadAddress),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(place) => write!(f, "tcp://{place}"),
        }
    }
}

/// Connects, so that a daemon that is not there is known before anything else.
///
/// # Errors
/// Nothing answers at the address within 5 s.
pub async fn connect(address: &Address) -> Result<Client, Failure> {
    let channel = match address {
        Address::Tcp(place) => {
            let endpoint = Endpoint::from_shared(format!("http://{place}"));
            let endpoint = endpoint.map_err(|error| unreachable(address, &error))?;
            endpoint.connect_timeout(CONNECT_DEADLINE).connect().await
        }
        Address::Unix(path) => {
            let path = path.clone();
            let dial = service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            });
            // The authority is never looked up: the socket's path is where the connection goes.
            let endpoint = Endpoint::from_static("http://localhost").connect_timeout(CONNECT_DEADLINE);
            endpoint.connect_with_connector(dial).await
        }
    };
    Ok(TranshipClient::new(
        channel.map_err(|error| unreachable(address, &error))?,
    ))
}

/// The innermost cause is the one that says something.
fn unreachable(address: &Address, error: &dyn std::error::Error) -> Failure {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    Failure::Unreachable {
        address: address.to_string(),
        cause: cause.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_sockets_and_host_with_port_are_addresses() {
        assert_eq!(
            "unix:///run/x".parse::<Address>().unwrap(),
            Address::Unix("/run/x".into())
        );
        assert_eq!(
            "tcp://[::1]:7".parse::<Address>().unwrap(),
            Address::Tcp("[::1]:7".into())
        );
        for bad in [
            "",
            "/run/x",
            "unix://run/x",
            "tcp://host",
            "tcp://:80",
            "tcp://h:99999",
            "http://h:80",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad:?} was taken");
        }
    }

    #[tokio::test]
    async fn a_missing_socket_is_told_with_its_path_and_reason() {
        let error = connect(&Address::Unix("/nonexistent/s".into()))
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("unix:///nonexistent/s") && error.contains("No such file"),
            "{error}"
        );
    }
}
