//! `tranship host`: the hosts that containers can move between.

use std::io;
use std::time::Duration;

use tranship_proto::v1::{
    self, CreateTokenRequest, InitHostRequest, JoinHostRequest, ListHostsRequest, NameRequest,
};

use super::root::Session;
use super::several;
use crate::failure::Failure;
use crate::output::{Columns, Output};
use crate::units;

/// Verbs.
#[derive(clap::Subcommand)]
pub enum Host {
    /// Make this host the first of a cluster.
    Init {
        /// Its name in the cluster; the configured one, or the machine's, without it.
        #[arg(long, default_value = "")]
        name: String,
        /// Where the other hosts reach it: ADDRESS[:PORT].
        #[arg(long, default_value = "")]
        advertise: String,
    },
    /// Print a token with which one other host can join.
    Token {
        /// How long it can be used.
        #[arg(long, default_value = "1h", value_parser = units::duration, value_name = "DURATION")]
        valid: Duration,
    },
    /// Make this host one of the cluster that the token is of.
    Join {
        /// Its name in the cluster; the configured one, or the machine's, without it.
        #[arg(long, default_value = "")]
        name: String,
        /// Where the other hosts reach it: ADDRESS[:PORT].
        #[arg(long, default_value = "")]
        advertise: String,
        /// What `tranship host token` printed on a host of the cluster; `-` reads it from stdin.
        token: String,
    },
    /// List the hosts of the cluster.
    Ls {
        /// Do not ask each of them whether it answers.
        #[arg(long)]
        no_probe: bool,
    },
    /// Remove hosts from the cluster; they cannot connect any more.
    Rm {
        /// Names.
        #[arg(required = true, value_name = "HOST")]
        names: Vec<String>,
    },
}

impl Host {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let mut client = session.client().await?;
        let output = session.output;
        match self {
            Self::Init { name, advertise } => {
                let host = client
                    .init_host(InitHostRequest { name, advertise })
                    .await?
                    .into_inner();
                output.say(&format!(
                    "{} is the first host of a cluster, at {}; `tranship host token` prints what another one needs",
                    host.name, host.address
                ));
                output.line(&host.name)
            }
            Self::Token { valid } => {
                let valid_s = u32::try_from(valid.as_secs()).unwrap_or(u32::MAX).max(1);
                let reply = client
                    .create_token(CreateTokenRequest { valid_s })
                    .await?
                    .into_inner();
                let until = units::show_time(reply.expires_ms);
                output.say(&format!(
                    "on the other host: `tranship host join TOKEN`, once, until {until}"
                ));
                output.line(&reply.token)
            }
            Self::Join {
                name,
                advertise,
                token,
            } => {
                let token = if token == "-" { read_token()? } else { token };
                let host = client
                    .join_host(JoinHostRequest {
                        token,
                        name,
                        advertise,
                    })
                    .await?
                    .into_inner();
                output.say(&format!(
                    "{} has joined the cluster, at {}",
                    host.name, host.address
                ));
                output.line(&host.name)
            }
            Self::Ls { no_probe } => {
                let request = ListHostsRequest { probe: !no_probe };
                let hosts = client.list_hosts(request).await?.into_inner().hosts;
                list(output, &hosts, !no_probe)
            }
            Self::Rm { names } => {
                several::each(output, &names, async |name| {
                    client
                        .clone()
                        .remove_host(NameRequest {
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

fn list(output: Output, hosts: &[v1::Host], probed: bool) -> Result<(), Failure> {
    let status = |host: &v1::Host| match (host.is_self, probed, host.reachable) {
        (true, ..) => "this host".to_owned(),
        (_, false, _) => "-".to_owned(),
        (_, _, true) => "reachable".to_owned(),
        (_, _, false) => format!("unreachable: {}", host.error),
    };
    let columns = Columns {
        headings: &["NAME", "ADDRESS", "VERSION", "STATUS"],
        cells: &|host: &v1::Host| {
            let version = if host.version.is_empty() {
                "-"
            } else {
                &host.version
            };
            vec![
                host.name.clone(),
                host.address.clone(),
                version.to_owned(),
                status(host),
            ]
        },
        key: &|host: &v1::Host| host.name.clone(),
    };
    output.list(hosts, &columns)
}

fn read_token() -> Result<String, Failure> {
    let mut line = String::new();
    io::stdin()
        .read_line(&mut line)
        .map_err(Failure::local("cannot read the token from stdin"))?;
    Ok(line.trim().to_owned())
}
