//! `tranship inspect`.

use tranship_proto::v1::NameRequest;

use super::root::Session;
use super::several;
use crate::failure::Failure;

/// Arguments.
#[derive(clap::Args)]
pub struct Inspect {
    /// Names or ids.
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

impl Inspect {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client().await?;
        several::inspect(session.output, &self.names, async |name| {
            let request = NameRequest {
                name: name.to_owned(),
            };
            Ok(client.clone().inspect_container(request).await?.into_inner())
        })
        .await
    }
}
