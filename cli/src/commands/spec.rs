//! The words of `run` that say what a container gets: mounts, environment, labels.

use std::fs;
use std::path::{Path, PathBuf};

use tranship_proto::v1::{Mount, MountKind};

use crate::failure::Failure;
use crate::units;

/// KEY=VALUE, or KEY alone for an empty value.
pub fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err("a label is KEY=VALUE".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// `-v`: VOLUME:/path[:ro] or /host/path:/path[:ro].
pub fn volume(text: &str) -> Result<Mount, String> {
    let mut parts = text.split(':');
    let (Some(source), Some(target), options, None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err("a mount is VOLUME:/path[:ro] or /host/path:/path[:ro]".to_owned());
    };
    let mut mount = Mount {
        read_only: false,
        ..source_of(source)?
    };
    mount.target = absolute(target)?;
    for option in options.iter().flat_map(|options| options.split(',')) {
        match option {
            "ro" => mount.read_only = true,
            "rw" => mount.read_only = false,
            other => return Err(format!("{other:?} is no option of a mount here: ro and rw are")),
        }
    }
    Ok(mount)
}

/// A name is a volume, an absolute path a bind mount.
fn source_of(source: &str) -> Result<Mount, String> {
    let kind = match source {
        "" => return Err("a mount needs a volume's name or a path of the host".to_owned()),
        path if path.starts_with('/') => MountKind::Bind,
        name if name.contains('/') || name.starts_with('.') => {
            return Err(format!(
                "{name:?} is neither a volume's name nor an absolute path of the host"
            ));
        }
        _ => MountKind::Volume,
    };
    Ok(Mount {
        kind: kind.into(),
        source: source.to_owned(),
        ..Mount::default()
    })
}

/// `--tmpfs`: /path[:size=64m,ro].
pub fn tmpfs(text: &str) -> Result<Mount, String> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let mut mount = Mount {
        kind: MountKind::Tmpfs.into(),
        target: absolute(target)?,
        ..Mount::default()
    };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", size)) => {
                mount.size_bytes = units::size(size).map_err(|error| error.to_string())?
            }
            None if option == "ro" => mount.read_only = true,
            None if option == "rw" => mount.read_only = false,
            _ => {
                return Err(format!(
                    "{option:?} is no option of a tmpfs here: size, ro and rw are"
                ));
            }
        }
    }
    Ok(mount)
}

/// `--mount`: type=volume|bind|tmpfs,source=...,target=...[,readonly][,tmpfs-size=64m].
pub fn mount(text: &str) -> Result<Mount, String> {
    let mut mount = Mount {
        kind: MountKind::Volume.into(),
        ..Mount::default()
    };
    for word in text.split(',') {
        let (key, value) = word.split_once('=').unwrap_or((word, "true"));
        match (key, value) {
            ("type", "volume") => mount.set_kind(MountKind::Volume),
            ("type", "bind") => mount.set_kind(MountKind::Bind),
            ("type", "tmpfs") => mount.set_kind(MountKind::Tmpfs),
            ("source" | "src", value) => mount.source = value.to_owned(),
            ("target" | "destination" | "dst", value) => mount.target = absolute(value)?,
            ("readonly" | "ro", "true" | "1") => mount.read_only = true,
            ("readonly" | "ro", "false" | "0") => mount.read_only = false,
            ("tmpfs-size", size) => {
                mount.size_bytes = units::size(size).map_err(|error| error.to_string())?
            }
            _ => {
                return Err(format!(
                    "{word:?} is not known: type, source, target, readonly and tmpfs-size are"
                ));
            }
        }
    }
    let fits = match mount.kind() {
        MountKind::Volume => !mount.source.is_empty() && !mount.source.contains('/'),
        MountKind::Bind => mount.source.starts_with('/'),
        _ => mount.source.is_empty(),
    };
    if !fits {
        return Err(
            "a volume needs its name as source, a bind mount an absolute path, a tmpfs none".to_owned(),
        );
    }
    if mount.target.is_empty() {
        return Err("a mount needs a target".to_owned());
    }
    Ok(mount)
}

fn absolute(path: &str) -> Result<String, String> {
    if path.starts_with('/') {
        return Ok(path.to_owned());
    }
    Err(format!("{path:?} is not an absolute path in the container"))
}

/// The environment: files first, then single variables; a name alone takes the value it has here, if any.
///
/// # Errors
/// A file cannot be read, or holds a line that is no variable.
pub fn environment(files: &[PathBuf], variables: &[String]) -> Result<Vec<String>, Failure> {
    let mut all = Vec::new();
    for file in files {
        all.extend(from_file(file)?);
    }
    all.extend(variables.iter().filter_map(|variable| with_value(variable)));
    Ok(all)
}

fn from_file(file: &Path) -> Result<Vec<String>, Failure> {
    let text = fs::read_to_string(file).map_err(Failure::local(format!("cannot read {}", file.display())))?;
    let mut variables = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split('=').next().unwrap_or_default();
        if name.is_empty() || name.contains(char::is_whitespace) {
            let place = format!("{}:{}", file.display(), number + 1);
            return Err(Failure::Usage(format!(
                "{place}: {line:?} is no variable: write NAME=VALUE"
            )));
        }
        variables.extend(with_value(line));
    }
    Ok(variables)
}

fn with_value(variable: &str) -> Option<String> {
    if variable.contains('=') {
        return Some(variable.to_owned());
    }
    std::env::var(variable)
        .ok()
        .map(|value| format!("{variable}={value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_volume_and_a_path_a_bind_mount() {
        let named = volume("data:/var/lib/data").unwrap();
        assert_eq!(
            (named.kind(), named.source.as_str(), named.read_only),
            (MountKind::Volume, "data", false)
        );
        let bound = volume("/srv:/srv:ro").unwrap();
        assert_eq!(
            (bound.kind(), bound.target.as_str(), bound.read_only),
            (MountKind::Bind, "/srv", true)
        );
        for bad in [
            "data",
            "data:",
            "data:rel",
            ":/x",
            "./data:/x",
            "a/b:/x",
            "a:/b:exec",
            "a:/b:ro:x",
        ] {
            assert!(volume(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_tmpfs_has_a_size() {
        let mount = tmpfs("/tmp:size=64m,ro").unwrap();
        assert_eq!((mount.size_bytes, mount.read_only), (64 << 20, true));
        assert!(tmpfs("/tmp:exec").is_err() && tmpfs("tmp").is_err());
    }

    #[test]
    fn the_long_form_is_the_same_as_the_short_one() {
        assert_eq!(
            mount("type=volume,source=d,target=/d,readonly"),
            volume("d:/d:ro")
        );
        assert_eq!(mount("type=bind,src=/s,dst=/d"), volume("/s:/d"));
        assert_eq!(mount("type=tmpfs,dst=/t,tmpfs-size=1m"), tmpfs("/t:size=1m"));
        for bad in [
            "type=nfs,target=/x",
            "type=bind,src=s,dst=/d",
            "type=tmpfs,src=x,dst=/t",
            "source=d",
            "target=/d",
        ] {
            assert!(mount(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_file_of_variables_may_have_comments_and_must_have_names() {
        let folder = std::env::temp_dir().join(format!("tranship-env-{}", std::process::id()));
        fs::write(&folder, "# comment\n\nA=1=2\nNOT_SET_ANYWHERE\n").unwrap();
        let variables = environment(std::slice::from_ref(&folder), &["B=3".to_owned()]).unwrap();
        assert_eq!(variables, ["A=1=2", "B=3"]);
        fs::write(&folder, "bad name=1\n").unwrap();
        let error = environment(std::slice::from_ref(&folder), &[])
            .unwrap_err()
            .to_string();
        assert!(error.contains(":1: "), "{error}");
        fs::remove_file(folder).unwrap();
    }
}
