//! `tranship stop`.

use std::time::Duration;

use tranship_proto::v1::StopContainerRequest;

use super::root::Session;
use super::several;
use crate::failure::Failure;
use crate::units;

/// Arguments.
#[derive(clap::Args)]
pub struct Stop {
    /// Until SIGKILL; the container's own without it.
    #[arg(short, long, value_name = "SECONDS", value_parser = units::duration)]
    time: Option<Duration>,
    /// Names or ids.
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

impl Stop {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let timeout_s = self
            .time
            .map(|time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
        let client = session.client().await?;
        several::each(session.output, &self.names, async |name| {
            let request = StopContainerRequest {
                name: name.to_owned(),
                timeout_s,
            };
            client.clone().stop_container(request).await?;
            Ok(name.to_owned())
        })
        .await
    }
}
