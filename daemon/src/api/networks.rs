//! Networks: ls.

use tranship_proto::v1::ListNetworksReply;

use crate::daemon::Daemon;

pub fn list(daemon: &Daemon) -> ListNetworksReply {
    ListNetworksReply {
        networks: daemon.networks.list(),
    }
}
