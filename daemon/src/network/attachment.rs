//! What a container asks of a network, and what it gets.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tranship_proto::ids::ContainerId;
use tranship_proto::v1;

use super::error::NetworkError;
use super::mac::MacAddr;

/// What a container asks of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkRequest {
    /// Name of a configured network, `none` or `host`.
    pub network: String,
    /// Its address; none lets the network choose.
    pub ip: Option<Ipv4Addr>,
    /// Its MAC; none takes the one of its id.
    pub mac: Option<MacAddr>,
    /// Addresses of this host's containers, whether they run or not: never chosen.
    pub taken: Vec<Ipv4Addr>,
}

impl NetworkRequest {
    /// What a container's spec asks for; an empty network is `default_network`.
    ///
    /// # Errors
    /// [`NetworkError::BadAddress`] and [`NetworkError::BadMac`].
    pub fn from_spec(
        spec: &v1::ContainerSpec,
        default_network: &str,
        taken: Vec<Ipv4Addr>,
    ) -> Result<Self, NetworkError> {
        let network = if spec.network.is_empty() {
            default_network
        } else {
            &spec.network
        };
        Self::parse(network, &spec.ip, &spec.mac, taken)
    }

    /// A request from texts, of which those of address and MAC may be empty.
    ///
    /// # Errors
    /// [`NetworkError::BadAddress`] and [`NetworkError::BadMac`].
    pub fn parse(network: &str, ip: &str, mac: &str, taken: Vec<Ipv4Addr>) -> Result<Self, NetworkError> {
        let ip = match ip {
            "" => None,
            text => Some(text.parse().map_err(|_| NetworkError::BadAddress {
                text: text.to_owned(),
            })?),
        };
        let mac = if mac.is_empty() { None } else { Some(mac.parse()?) };
        Ok(Self {
            network: network.to_owned(),
            ip,
            mac,
            taken,
        })
    }
}

/// A container's place in a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Whose it is.
    pub container: ContainerId,
    /// Name of the network.
    pub network: String,
    /// The container's network namespace, such as `/proc/PID/ns/net`.
    pub netns: PathBuf,
    /// Its interface; none on `none` and `host`.
    pub interface: Option<Interface>,
}

/// One end of a container's cable and the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Address of `eth0` in the container.
    pub ip: Ipv4Addr,
    /// Length of the prefix of its subnet.
    pub prefix_len: u8,
    /// MAC of `eth0` in the container.
    pub mac: MacAddr,
    /// Its default route.
    pub gateway: Option<Ipv4Addr>,
    /// The end outside of the container.
    pub host_link: String,
}
