//! `tranship rm`.

use tranship_proto::v1::RemoveContainerRequest;

use super::root::Session;
use super::several;
use crate::failure::Failure;

/// Arguments.
#[derive(clap::Args)]
pub struct Rm {
    /// Kill those that run.
    #[arg(short, long)]
    force: bool,
    /// Also remove volumes that nobody else mounts and that no user has named.
    #[arg(short, long)]
    volumes: bool,
    /// Names or ids.
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

impl Rm {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client().await?;
        several::each(session.output, &self.names, async |name| {
            let request = RemoveContainerRequest {
                name: name.to_owned(),
                force: self.force,
                volumes: self.volumes,
            };
            client.clone().remove_container(request).await?;
            Ok(name.to_owned())
        })
        .await
    }
}
