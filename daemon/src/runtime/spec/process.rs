//! One process of a container, its first or one that `exec` adds: arguments, environment, user, capabilities.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tranship_proto::v1::ContainerSpec;

use super::error::SpecError;
use super::user::User;
use crate::runtime::image_config::ImageConfig;

/// Where programs are looked for when the image does not say.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Program and arguments: the user's command replaces the image's, and the user's entrypoint both of the image's, as
/// in Docker.
pub(super) fn arguments(spec: &ContainerSpec, image: &ImageConfig) -> Result<Vec<String>, SpecError> {
    let entrypoint = if spec.entrypoint_set {
        &spec.entrypoint
    } else {
        &image.entrypoint
    };
    let command = match (spec.command.is_empty(), spec.entrypoint_set) {
        (false, _) => spec.command.as_slice(),
        (true, true) => &[],
        (true, false) => &image.cmd,
    };
    let arguments: Vec<String> = entrypoint.iter().chain(command).cloned().collect();
    match arguments.first() {
        Some(program) if !program.is_empty() => Ok(arguments),
        _ => Err(SpecError::NoCommand),
    }
}

/// The environment: defaults, then the image's, then the user's. HOME is left to runc, which knows the user's.
pub(super) fn environment(hostname: &str, layers: &[&[String]]) -> Result<Vec<String>, SpecError> {
    let mut environment = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
    for entry in layers.iter().copied().flatten() {
        put(&mut environment, entry)?;
    }
    Ok(environment)
}

/// Sets a variable, or removes it if there is no `=`.
pub(super) fn put(environment: &mut Vec<String>, entry: &str) -> Result<(), SpecError> {
    let (name, value) = entry
        .split_once('=')
        .map_or((entry, None), |(name, value)| (name, Some(value)));
    if name.is_empty() || entry.contains('\0') {
        return Err(SpecError::Environment(entry.to_owned()));
    }
    let old = environment
        .iter()
        .position(|known| known.split('=').next() == Some(name));
    match (old, value) {
        (Some(at), Some(_)) => entry.clone_into(&mut environment[at]),
        (Some(at), None) => drop(environment.remove(at)),
        (None, Some(_)) => environment.push(entry.to_owned()),
        (None, None) => {}
    }
    Ok(())
}

/// An absolute working directory; runc makes it if it is missing.
pub(super) fn workdir(asked: &str, otherwise: &str) -> Result<String, SpecError> {
    let path = if asked.is_empty() { otherwise } else { asked };
    match path {
        "" => Ok("/".to_owned()),
        path if path.starts_with('/') => Ok(path.to_owned()),
        path => Err(SpecError::Path {
            what: "the working directory",
            path: path.to_owned(),
        }),
    }
}

/// The OCI `process.user`.
pub(super) fn user(user: &User) -> Value {
    json!({"uid": user.uid, "gid": user.gid, "additionalGids": user.additional_gids})
}

/// The OCI `process.capabilities`. A process that is not root's has none until it runs a program that grants some; nothing is
/// inheritable or ambient, so that file capabilities alone decide.
pub(super) fn capability_sets(uid: u32, kept: &BTreeSet<&'static str>) -> Value {
    let empty = BTreeSet::new();
    let active = if uid == 0 { kept } else { &empty };
    json!({"bounding": kept, "effective": active, "permitted": active, "inheritable": [], "ambient": []})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn entrypoint_and_command_combine_as_in_docker() {
        let image = ImageConfig {
            entrypoint: words(&["/entry"]),
            cmd: words(&["serve"]),
            ..ImageConfig::default()
        };
        let run = |entrypoint: Option<&[&str]>, command: &[&str]| {
            let spec = ContainerSpec {
                entrypoint: words(entrypoint.unwrap_or_default()),
                entrypoint_set: entrypoint.is_some(),
                command: words(command),
                ..ContainerSpec::default()
            };
            arguments(&spec, &image).map(|all| all.join(" "))
        };
        assert_eq!(run(None, &[]).unwrap(), "/entry serve");
        assert_eq!(run(None, &["help"]).unwrap(), "/entry help");
        assert_eq!(run(Some(&["sh"]), &[]).unwrap(), "sh");
        assert_eq!(run(Some(&[]), &["sh", "-c"]).unwrap(), "sh -c");
        assert!(matches!(run(Some(&[]), &[]), Err(SpecError::NoCommand)));
    }

    #[test]
    fn later_variables_replace_and_bare_names_remove() {
        let image = words(&["LANG=C", "PATH=/bin", "GONE=1"]);
        let user = words(&["LANG=de", "GONE", "EMPTY=", "A=b=c"]);
        let all = environment("h", &[&image, &user]).unwrap();
        assert_eq!(all, ["PATH=/bin", "HOSTNAME=h", "LANG=de", "EMPTY=", "A=b=c"]);
        assert!(matches!(
            environment("h", &[&words(&["=x"])]),
            Err(SpecError::Environment(_))
        ));
    }

    #[test]
    fn only_root_has_active_capabilities() {
        let kept = BTreeSet::from(["CAP_CHOWN"]);
        assert_eq!(capability_sets(0, &kept)["effective"], json!(["CAP_CHOWN"]));
        let user = capability_sets(70, &kept);
        assert_eq!(user["effective"], json!([]));
        assert_eq!(user["bounding"], json!(["CAP_CHOWN"]));
    }

    #[test]
    fn a_relative_working_directory_is_refused() {
        assert_eq!(workdir("", "").unwrap(), "/");
        assert_eq!(workdir("", "/srv").unwrap(), "/srv");
        assert_eq!(workdir("/x", "/srv").unwrap(), "/x");
        assert!(workdir("x", "/srv").is_err());
    }
}
