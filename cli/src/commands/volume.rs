//! `tranship volume`.

use tranship_proto::v1::{self, CreateVolumeRequest, ListVolumesRequest, NameRequest};

use super::root::Session;
use super::{several, spec};
use crate::failure::Failure;
use crate::output::Columns;

/// Verbs.
#[derive(clap::Subcommand)]
pub enum Volume {
    /// Make a volume.
    Create {
        /// Storage driver; the daemon's default without it.
        #[arg(short, long, default_value = "")]
        driver: String,
        /// KEY=VALUE.
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = spec::label)]
        labels: Vec<(String, String)>,
        /// A random one without it.
        #[arg(default_value = "")]
        name: String,
    },
    /// List volumes.
    Ls,
    /// Show everything about volumes, as JSON.
    Inspect {
        /// Names.
        #[arg(required = true, value_name = "VOLUME")]
        names: Vec<String>,
    },
    /// Remove volumes and what they hold.
    Rm {
        /// Names.
        #[arg(required = true, value_name = "VOLUME")]
        names: Vec<String>,
    },
}

impl Volume {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let mut client = session.client().await?;
        let output = session.output;
        match self {
            Self::Create { driver, labels, name } => {
                let request = CreateVolumeRequest {
                    name,
                    driver,
                    labels: labels.into_iter().collect(),
                };
                output.line(&client.create_volume(request).await?.into_inner().name)
            }
            Self::Ls => {
                let volumes = client
                    .list_volumes(ListVolumesRequest {})
                    .await?
                    .into_inner()
                    .volumes;
                let columns = Columns {
                    headings: &["DRIVER", "VOLUME NAME", "USED BY"],
                    cells: &|volume: &v1::Volume| {
                        vec![
                            volume.driver.clone(),
                            volume.name.clone(),
                            volume.used_by.join(", "),
                        ]
                    },
                    key: &|volume: &v1::Volume| volume.name.clone(),
                };
                output.list(&volumes, &columns)
            }
            Self::Inspect { names } => {
                several::inspect(output, &names, async |name| {
                    let request = NameRequest {
                        name: name.to_owned(),
                    };
                    Ok(client.clone().inspect_volume(request).await?.into_inner())
                })
                .await
            }
            Self::Rm { names } => {
                several::each(output, &names, async |name| {
                    client
                        .clone()
                        .remove_volume(NameRequest {
                            name: name.to_owned(),
                        })
                        .await?;
                    Ok(name.to_owned())
                })
                .await
            }
        }
    }
}
