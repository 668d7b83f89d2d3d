//! `tranship version`.

use tranship_proto::v1::InfoRequest;

use super::root::Session;
use crate::failure::Failure;
use crate::output::Format;

/// No arguments.
#[derive(clap::Args)]
pub struct Version {}

#[derive(serde::Serialize)]
struct Versions {
    client: &'static str,
    server: Option<String>,
}

impl Version {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let output = session.output;
        let answer = match session.client().await {
            Ok(mut client) => client.info(InfoRequest {}).await.map_err(Failure::from),
            Err(failure) => Err(failure),
        };
        let (server, failure) = match answer {
            Ok(info) => (Some(info.into_inner().version), None),
            Err(failure) => (None, Some(failure)),
        };
        let client = env!("CARGO_PKG_VERSION");
        if output.format == Format::Json {
            output.record(&Versions { client, server })?;
        } else {
            output.line(&format!("Client: {client}"))?;
            server.map_or(Ok(()), |server| output.line(&format!("Server: {server}")))?;
        }
        failure.map_or(Ok(()), Err)
    }
}
