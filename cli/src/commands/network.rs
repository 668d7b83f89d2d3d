//! `tranship network`.

use tranship_proto::v1::{self, ListNetworksRequest};

use super::root::Session;
use crate::failure::Failure;
use crate::output::Columns;

/// Verbs.
#[derive(clap::Subcommand)]
pub enum Network {
    /// List networks.
    Ls,
}

impl Network {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let Self::Ls = self;
        let reply = session
            .client()
            .await?
            .list_networks(ListNetworksRequest {})
            .await?;
        let columns = Columns {
            headings: &["NAME", "KIND", "BRIDGE", "SUBNET", "GATEWAY"],
            cells: &|network: &v1::Network| {
                let fields = [
                    &network.name,
                    &network.kind,
                    &network.bridge,
                    &network.subnet,
                    &network.gateway,
                ];
                fields
                    .map(|field| {
                        if field.is_empty() {
                            "-".to_owned()
                        } else {
                            field.clone()
                        }
                    })
                    .into()
            },
            key: &|network: &v1::Network| network.name.clone(),
        };
        session.output.list(&reply.into_inner().networks, &columns)
    }
}
