//! `tranship info`.

use tranship_proto::v1::{InfoReply, InfoRequest};

use super::root::Session;
use crate::failure::Failure;
use crate::output::Format;
use crate::units;

/// No arguments.
#[derive(clap::Args)]
pub struct Info {}

impl Info {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let info = session.client().await?.info(InfoRequest {}).await?.into_inner();
        let output = session.output;
        if output.quiet {
            return output.line(&info.host);
        }
        if output.format == Format::Json {
            return output.record(&info);
        }
        lines(&info)
            .iter()
            .try_for_each(|(name, value)| output.line(&format!("{name:<18}{value}")))?;
        info.warnings
            .iter()
            .for_each(|warning| output.say(&format!("warning: {warning}")));
        Ok(())
    }
}

fn lines(info: &InfoReply) -> Vec<(&'static str, String)> {
    let or_dash = |text: &str| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            text.to_owned()
        }
    };
    vec![
        ("Host:", info.host.clone()),
        ("Version:", info.version.clone()),
        (
            "Containers:",
            format!("{}, {} running", info.containers, info.running),
        ),
        ("Images:", info.images.to_string()),
        ("Storage drivers:", info.storage_drivers.join(", ")),
        ("Runtime:", format!("{} {}", info.runtime, info.runtime_version)),
        ("CRIU:", or_dash(&info.criu_version)),
        ("Cgroups:", info.cgroup_version.clone()),
        ("Kernel:", format!("{} ({})", info.kernel, info.architecture)),
        ("Memory:", units::show_bytes(info.memory_bytes)),
        ("CPUs:", info.cpus.to_string()),
        ("Moves memory:", or_dash(&info.memory_mode)),
        ("Peer address:", or_dash(&info.peer_address)),
    ]
}
