//! `tranship wait`: prints exit codes, one a line, in the order of the names.

use tranship_proto::v1::NameRequest;

use super::root::Session;
use super::several;
use crate::failure::Failure;

/// Arguments.
#[derive(clap::Args)]
pub struct Wait {
    /// Names or ids.
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

impl Wait {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client().await?;
        several::each(session.output, &self.names, async |name| {
            let reply = client
                .clone()
                .wait_container(NameRequest {
                    name: name.to_owned(),
                })
                .await?;
            Ok(reply.into_inner().exit_code.to_string())
        })
        .await
    }
}
