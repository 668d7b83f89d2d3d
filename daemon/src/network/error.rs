//! What can go wrong with networks.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use super::mac::MacAddr;
use crate::config::Ipv4Network;

/// Why a network, or a container's place in one, is not as asked for. Every operation leaves things as they were when
/// it fails, but for [`NetworkError::Undo`].
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No such network is configured.
    #[error("there is no network {name:?} on this host; it has {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// Those there are.
        known: String,
    },
    /// `none` and `host` give no addresses.
    #[error("the network {network:?} has no addresses of its own: an address or MAC cannot be chosen there")]
    NoAddresses {
        /// The network asked.
        network: String,
    },
    /// Not an address.
    #[error("{text:?} is not an IPv4 address")]
    BadAddress {
        /// What was given.
        text: String,
    },
    /// Not a hardware address of one interface.
    #[error("{text:?} is not a hardware address such as 02:42:0a:4d:00:32")]
    BadMac {
        /// What was given.
        text: String,
    },
    /// The address is not the network's.
    #[error("the address {ip} is not one of {subnet}'s hosts")]
    OutsideSubnet {
        /// The address asked for.
        ip: Ipv4Addr,
        /// The network's addresses.
        subnet: Ipv4Network,
    },
    /// The address is taken by something of this host.
    #[error("the address {ip} belongs to {owner}")]
    Reserved {
        /// The address asked for.
        ip: Ipv4Addr,
        /// Whose it is.
        owner: &'static str,
    },
    /// Somebody on the segment has the address.
    #[error(
        "the address {ip} is in use on the network {network:?}: {mac} answered for it; nothing was changed, choose another"
    )]
    Conflict {
        /// The network probed.
        network: String,
        /// The address asked for.
        ip: Ipv4Addr,
        /// Who answered.
        mac: MacAddr,
    },
    /// No address is left.
    #[error(
        "every address from {first} to {last} is in use on the network {network:?}: remove a container or widen the range"
    )]
    Exhausted {
        /// The network asked.
        network: String,
        /// The lowest tried.
        first: Ipv4Addr,
        /// The highest tried.
        last: Ipv4Addr,
    },
    /// Preparing for a container that comes from elsewhere needs its address and MAC.
    #[error("a container that comes from another host brings its address and MAC; the request has none")]
    Incomplete,
    /// A link the configuration names is not there.
    #[error("the network {network:?} needs the link {link:?}, which this host does not have")]
    NoLink {
        /// The network that needs it.
        network: String,
        /// The name configured.
        link: String,
    },
    /// A link with the bridge's name is something else.
    #[error("the link {link:?} is there and is no bridge: name another in the configuration")]
    NotABridge {
        /// The name configured.
        link: String,
    },
    /// The uplink is a port of something else.
    #[error("the uplink {uplink:?} is already a port of another link: name another in the configuration")]
    UplinkTaken {
        /// The name configured.
        uplink: String,
    },
    /// The container's place in a network is already there, or is gone.
    #[error("{what}")]
    State {
        /// What is not as it should be.
        what: String,
    },
    /// The kernel refused something that is not about one file: links, addresses, routes, namespaces.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file or mount could not be made, read or removed.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel did not answer in time.
    #[error("{what} did not end within {} s", limit.as_secs())]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// Something failed, and so did removing what had been made before: it is still there.
    #[error("{cause}; what had been made by then is left behind, because of another error")]
    Undo {
        /// What failed first, with its sources.
        cause: String,
        /// Why it could not be undone.
        source: Box<NetworkError>,
    },
}

impl NetworkError {
    /// Wraps an answer of the kernel to something that is not about one file.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Wraps an answer of netlink.
    pub(super) fn netlink(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        let what = what.into();
        move |error| {
            let source = match error {
                rtnetlink::Error::NetlinkError(message) => message.to_io(),
                other => io::Error::other(other),
            };
            Self::Io { what, source }
        }
    }

    /// The kernel's number for what went wrong, if it was the kernel.
    pub(super) fn errno(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } | Self::File { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// The error and its sources in one line.
    pub(super) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(error) = next {
            text.push_str(": ");
            text.push_str(&error.to_string());
            next = error.source();
        }
        text
    }
}
