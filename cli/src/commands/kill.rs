//! `tranship kill`.

use tranship_proto::v1::KillContainerRequest;

use super::root::Session;
use super::several;
use crate::failure::Failure;

/// Arguments.
#[derive(clap::Args)]
pub struct Kill {
    /// Its name or number.
    #[arg(short, long, default_value = "KILL")]
    signal: String,
    /// Names or ids.
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

impl Kill {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client().await?;
        several::each(session.output, &self.names, async |name| {
            let request = KillContainerRequest {
                name: name.to_owned(),
                signal: self.signal.clone(),
            };
            client.clone().kill_container(request).await?;
            Ok(name.to_owned())
        })
        .await
    }
}
