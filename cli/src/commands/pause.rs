//! `tranship pause` and `tranship unpause`.

use tranship_proto::v1::NameRequest;

use super::root::Session;
use super::several;
use crate::failure::Failure;

/// Arguments.
#[derive(clap::Args)]
pub struct Pause {
    /// Names or ids.
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

impl Pause {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client().await?;
        several::each(session.output, &self.names, async |name| {
            client
                .clone()
                .pause_container(NameRequest {
                    name: name.to_owned(),
                })
                .await?;
            Ok(name.to_owned())
        })
        .await
    }
}

/// Arguments.
#[derive(clap::Args)]
pub struct Unpause {
    /// Names or ids.
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

impl Unpause {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client().await?;
        several::each(session.output, &self.names, async |name| {
            client
                .clone()
                .unpause_container(NameRequest {
                    name: name.to_owned(),
                })
                .await?;
            Ok(name.to_owned())
        })
        .await
    }
}
