//! The process that `exec` adds to a container: confined as the first one is.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tranship_proto::v1::{TerminalSize, UsernsMode};

use super::build::check_ids;
use super::error::SpecError;
use super::process;
use super::user::User;

/// What is asked of an added process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExecProcess<'a> {
    /// Program and arguments.
    pub(crate) command: &'a [String],
    /// On top of the container's.
    pub(crate) env: &'a [String],
    /// `USER[:GROUP]`; empty is the first process's user.
    pub(crate) user: &'a str,
    /// Empty is the first process's.
    pub(crate) workdir: &'a str,
    /// Whether it gets a terminal.
    pub(crate) tty: bool,
    /// The size of that from its first moment.
    pub(crate) size: Option<TerminalSize>,
}

/// The parts of a container's configuration that an added process takes over.
#[derive(Debug, Deserialize)]
struct Config {
    process: FirstProcess,
    linux: Linux,
}

#[derive(Debug, Deserialize)]
struct FirstProcess {
    #[serde(default)]
    env: Vec<String>,
    cwd: String,
    user: Value,
    capabilities: Capabilities,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
struct Capabilities {
    bounding: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Linux {
    #[serde(default, rename = "uidMappings")]
    uid_mappings: Vec<Value>,
}

/// The OCI process of `asked` in the container whose configuration is `config` and whose root filesystem is at `rootfs`.
/// The outer error is of a configuration that is not ours, the inner one of what was asked.
pub(crate) fn exec_process(
    config: &str,
    rootfs: &Path,
    asked: &ExecProcess<'_>,
) -> Result<Result<Value, SpecError>, serde_json::Error> {
    serde_json::from_str::<Config>(config).map(|config| assemble(config, rootfs, asked))
}

fn assemble(config: Config, rootfs: &Path, asked: &ExecProcess<'_>) -> Result<Value, SpecError> {
    let first = config.process;
    let userns = if config.linux.uid_mappings.is_empty() {
        UsernsMode::Host
    } else {
        UsernsMode::Keep
    };
    let mut process = Value::Object(first.rest);
    process["terminal"] = json!(asked.tty);
    if let Some(size) = asked.size {
        process["consoleSize"] = json!({"height": size.rows, "width": size.columns});
    }
    process["args"] = json!(asked.command);
    process["cwd"] = json!(process::workdir(asked.workdir, &first.cwd)?);
    process["env"] = json!(environment(first.env, asked)?);
    let uid = if asked.user.is_empty() {
        process["user"] = first.user.clone();
        first.user["uid"].as_u64().unwrap_or_default()
    } else {
        let user = User::resolve(asked.user, rootfs)?;
        check_ids(&user, userns)?;
        process["user"] = process::user(&user);
        user.uid.into()
    };
    let kept = first.capabilities.bounding;
    let active = if uid == 0 { kept.as_slice() } else { &[] };
    process["capabilities"] =
        json!({"bounding": kept, "effective": active, "permitted": active, "inheritable": [], "ambient": []});
    Ok(process)
}

fn environment(mut environment: Vec<String>, asked: &ExecProcess<'_>) -> Result<Vec<String>, SpecError> {
    if asked.tty {
        process::put(&mut environment, "TERM=xterm")?;
    }
    for entry in asked.env {
        process::put(&mut environment, entry)?;
    }
    Ok(environment)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"process":{"terminal":false,"args":["sh"],"env":["A=1"],"cwd":"/srv","oomScoreAdj":0,
        "user":{"uid":70,"gid":71},"noNewPrivileges":false,
        "capabilities":{"bounding":["CAP_CHOWN"],"effective":[]}},"linux":{"uidMappings":[{"containerID":0}]}}"#;

    fn exec(user: &str, tty: bool) -> Result<Value, SpecError> {
        let dir = tempfile::tempdir().unwrap();
        let (command, env) = (["id".to_owned()], ["B=2".to_owned()]);
        let asked = ExecProcess {
            command: &command,
            env: &env,
            user,
            workdir: "",
            tty,
            size: None,
        };
        exec_process(CONFIG, dir.path(), &asked).unwrap()
    }

    #[test]
    fn an_added_process_is_like_the_first() {
        let process = exec("", false).unwrap();
        assert_eq!(process["user"], json!({"uid": 70, "gid": 71}));
        assert_eq!(process["cwd"], "/srv");
        assert_eq!(process["env"], json!(["A=1", "B=2"]));
        assert_eq!(process["capabilities"]["effective"], json!([]));
        assert_eq!(process["oomScoreAdj"], 0);
    }

    #[test]
    fn root_gets_what_the_container_may_have_and_no_more() {
        let process = exec("0", true).unwrap();
        assert_eq!(process["capabilities"]["effective"], json!(["CAP_CHOWN"]));
        assert_eq!(process["env"], json!(["A=1", "TERM=xterm", "B=2"]));
        assert_eq!(process["terminal"], true);
        assert!(matches!(
            exec("70000", false),
            Err(SpecError::IdOutOfRange { .. })
        ));
    }
}
