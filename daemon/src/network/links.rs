//! Links, addresses and routes of one network namespace, by netlink. Thin: what is asked for in which order, and why, is
//! in the files that use it.

use std::net::IpAddr;
use std::time::Duration;

use futures_util::{Stream, StreamExt, TryStreamExt};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::error::NetworkError;
use super::mac::MacAddr;
use super::neighbours::Neighbour;

/// The kernel answers netlink at once; this long means that it will not.
const LIMIT: Duration = Duration::from_secs(10);

/// A netlink connection.
#[derive(Clone)]
pub(super) struct Links {
    handle: Handle,
}

/// A link as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Option<[u8; 6]>,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
    pub alias: Option<String>,
    pub mtu: u32,
    pub up: bool,
    pub is_bridge: bool,
    /// Frames that were to leave by it and did not.
    pub dropped: u64,
}

impl Links {
    /// A connection to the calling thread's network namespace. Inside a runtime only.
    pub(super) fn open() -> Result<Self, NetworkError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(NetworkError::io("open a netlink socket"))?;
        // Ends when the last handle goes.
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// The link of that name, if there is one.
    pub(super) async fn find(&self, name: &str) -> Result<Option<Link>, NetworkError> {
        let what = format!("look for the link {name}");
        match first(&what, self.handle.link().get().match_name(name).execute()).await {
            Ok(message) => Ok(message.map(|message| Link::from(&message))),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a link.
    pub(super) async fn add(&self, what: &str, message: LinkMessage) -> Result<(), NetworkError> {
        deadline(what, self.handle.link().add(message).execute()).await
    }

    /// Changes a link, all in one message.
    pub(super) async fn change(&self, what: &str, message: LinkMessage) -> Result<(), NetworkError> {
        deadline(what, self.handle.link().change(message).execute()).await
    }

    /// Removes a link; gone already is as good.
    pub(super) async fn delete(&self, index: u32) -> Result<(), NetworkError> {
        match deadline("remove a link", self.handle.link().del(index).execute()).await {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
            result => result,
        }
    }

    /// Tells a bridge that a MAC is behind this port of it, wherever it has been; as if a frame had come from there.
    pub(super) async fn learn(&self, port: u32, mac: MacAddr) -> Result<(), NetworkError> {
        self.station(port, mac, NeighbourFlags::Controller).await
    }

    /// As [`Self::learn`], but the bridge believes it whatever frames come from elsewhere, until it is told better.
    pub(super) async fn pin(&self, port: u32, mac: MacAddr) -> Result<(), NetworkError> {
        self.station(port, mac, NeighbourFlags::Controller | NeighbourFlags::Sticky)
            .await
    }

    async fn station(&self, port: u32, mac: MacAddr, flags: NeighbourFlags) -> Result<(), NetworkError> {
        let request = self.handle.neighbours().add_bridge(port, &mac.bytes()).replace();
        let request = request.state(NeighbourState::Reachable).flags(flags);
        deadline("tell a bridge where a container is", request.execute()).await
    }

    /// Tells the kernel of a neighbour on a link, as something that was true a while ago.
    pub(super) async fn remember(&self, link: u32, neighbour: &Neighbour) -> Result<(), NetworkError> {
        let request = self.handle.neighbours().add(link, IpAddr::V4(neighbour.ip));
        let request = request
            .replace()
            .link_layer_address(&neighbour.mac.bytes())
            .state(NeighbourState::Stale);
        deadline("tell a container of a neighbour", request.execute()).await
    }

    /// The addresses of a link.
    pub(super) async fn addresses(&self, index: u32) -> Result<Vec<AddressMessage>, NetworkError> {
        all(
            "list addresses",
            self.handle.address().get().set_link_index_filter(index).execute(),
        )
        .await
    }

    /// Gives a link an address; there already is as good.
    pub(super) async fn add_address(&self, message: AddressMessage) -> Result<(), NetworkError> {
        let mut request = self.handle.address().add(0, IpAddr::from([0, 0, 0, 0]), 0);
        *request.message_mut() = message;
        match deadline("add an address", request.execute()).await {
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
            result => result,
        }
    }

    /// Takes an address from a link.
    pub(super) async fn delete_address(&self, message: AddressMessage) -> Result<(), NetworkError> {
        deadline("remove an address", self.handle.address().del(message).execute()).await
    }

    /// All routes of both families.
    pub(super) async fn routes(&self) -> Result<Vec<RouteMessage>, NetworkError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut wanted = RouteMessageBuilder::<IpAddr>::new().build();
            wanted.header.address_family = family;
            routes.extend(all("list routes", self.handle.route().get(wanted).execute()).await?);
        }
        Ok(routes)
    }

    /// Adds a route beside those there are to the same destination; there already is as good.
    pub(super) async fn append_route(&self, route: RouteMessage) -> Result<(), NetworkError> {
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewRoute(route));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND;
        let mut handle = self.handle.clone();
        let answer = async move {
            let mut answers = handle.request(request)?;
            while let Some(answer) = answers.next().await {
                if let NetlinkPayload::Error(error) = answer.payload
                    && error.code.is_some()
                {
                    return Err(rtnetlink::Error::NetlinkError(error));
                }
            }
            Ok(())
        };
        match deadline("add a route", answer).await {
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
            result => result,
        }
    }

    /// Removes a route; gone already is as good.
    pub(super) async fn delete_route(&self, route: RouteMessage) -> Result<(), NetworkError> {
        match deadline("remove a route", self.handle.route().del(route).execute()).await {
            Err(error) if error.errno() == Some(libc::ESRCH) => Ok(()),
            result => result,
        }
    }
}

impl From<&LinkMessage> for Link {
    fn from(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            ..Self::default()
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok(),
                LinkAttribute::Controller(index) => link.master = (*index != 0).then_some(*index),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Stats64(stats) => link.dropped = stats.tx_dropped,
                LinkAttribute::LinkInfo(infos) => {
                    link.is_bridge = infos
                        .iter()
                        .any(|info| matches!(info, LinkInfo::Kind(InfoKind::Bridge)));
                }
                _ => {}
            }
        }
        link
    }
}

/// An address's own part of its message: the local one where a link has two ends.
pub(super) fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    find(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    })
    .or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    })
}

/// The link a route leaves by.
pub(super) fn link_of(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

async fn deadline<T>(
    what: &str,
    work: impl Future<Output = Result<T, rtnetlink::Error>>,
) -> Result<T, NetworkError> {
    match tokio::time::timeout(LIMIT, work).await {
        Ok(result) => result.map_err(NetworkError::netlink(what)),
        Err(_) => Err(NetworkError::Deadline {
            what: what.to_owned(),
            limit: LIMIT,
        }),
    }
}

async fn first<T>(
    what: &str,
    stream: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Option<T>, NetworkError> {
    let mut stream = std::pin::pin!(stream);
    deadline(what, async { stream.next().await.transpose() }).await
}

async fn all<T>(
    what: &str,
    stream: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, NetworkError> {
    deadline(what, stream.try_collect()).await
}
