//! Messages as JSON for scripts: as in the API, but with enumerations as words instead of numbers.

use serde::Serialize;
use serde_json::Value;
use tranship_proto::v1::{ContainerState, MigrationOutcome, MigrationRole, MountKind, Phase, UsernsMode};

use crate::failure::Failure;

/// The JSON value of a message.
///
/// # Errors
/// It cannot be written as JSON; no message of ours is such.
pub fn value(message: &impl Serialize) -> Result<Value, Failure> {
    let mut value = serde_json::to_value(message).map_err(|error| Failure::Local {
        what: "cannot write JSON".into(),
        source: error.into(),
    })?;
    name_enumerations(&mut value);
    Ok(value)
}

/// A container's state in a word.
pub fn state(state: i32) -> String {
    ContainerState::try_from(state).map_or_else(number, |state| word(state.as_str_name(), "CONTAINER_STATE_"))
}

/// A phase in a word.
pub fn phase(phase: i32) -> String {
    Phase::try_from(phase).map_or_else(number, |phase| word(phase.as_str_name(), "PHASE_"))
}

/// A role in a word.
pub fn role(role: i32) -> String {
    MigrationRole::try_from(role).map_or_else(number, |role| word(role.as_str_name(), "MIGRATION_ROLE_"))
}

/// An outcome in a word; `running` where there is none yet.
pub fn outcome(outcome: i32) -> String {
    match MigrationOutcome::try_from(outcome) {
        Ok(MigrationOutcome::Unspecified) => "running".to_owned(),
        Ok(outcome) => word(outcome.as_str_name(), "MIGRATION_OUTCOME_"),
        Err(error) => number(error),
    }
}

fn mount_kind(kind: i32) -> String {
    MountKind::try_from(kind).map_or_else(number, |kind| word(kind.as_str_name(), "MOUNT_KIND_"))
}

fn userns(mode: i32) -> String {
    UsernsMode::try_from(mode).map_or_else(number, |mode| word(mode.as_str_name(), "USERNS_MODE_"))
}

fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

/// A value that a newer daemon knows and this program does not.
fn number(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The API's field names say which numbers are enumerations; labels are strings and stay as they are.
fn name_enumerations(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(name_enumerations),
        Value::Object(fields) => {
            for (name, field) in fields {
                let named = field
                    .as_i64()
                    .and_then(|number| i32::try_from(number).ok())
                    .and_then(|number| {
                        Some(match name.as_str() {
                            "state" => state(number),
                            "phase" => phase(number),
                            "role" => role(number),
                            "outcome" => outcome(number),
                            "kind" => mount_kind(number),
                            "userns" => userns(number),
                            _ => return None,
                        })
                    });
                match named {
                    Some(word) => *field = Value::String(word),
                    None => name_enumerations(field),
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use tranship_proto::v1::{Container, ContainerSpec, Migration, Mount, Network};

    use super::*;

    #[test]
    fn states_and_kinds_are_words() {
        let mount = Mount {
            kind: MountKind::Tmpfs.into(),
            ..Mount::default()
        };
        let spec = ContainerSpec {
            mounts: vec![mount],
            ..ContainerSpec::default()
        };
        let container = Container {
            state: ContainerState::InDoubt.into(),
            spec: Some(spec),
            ..Container::default()
        };
        let value = value(&container).unwrap();
        assert_eq!(value["state"], "in_doubt");
        assert_eq!(value["spec"]["mounts"][0]["kind"], "tmpfs");
        assert_eq!(value["spec"]["userns"], "keep");
    }

    #[test]
    fn a_migration_without_outcome_is_running() {
        let migration = Migration {
            phase: Phase::Drain.into(),
            ..Migration::default()
        };
        let value = value(&migration).unwrap();
        assert_eq!(
            (value["outcome"].as_str(), value["phase"].as_str()),
            (Some("running"), Some("drain"))
        );
    }

    #[test]
    fn text_of_the_same_name_stays_text() {
        let network = Network {
            kind: "l2".to_owned(),
            ..Network::default()
        };
        assert_eq!(value(&network).unwrap()["kind"], "l2");
        let spec = ContainerSpec {
            labels: [("state".into(), "2".into())].into(),
            ..ContainerSpec::default()
        };
        assert_eq!(value(&spec).unwrap()["labels"]["state"], "2");
    }
}
