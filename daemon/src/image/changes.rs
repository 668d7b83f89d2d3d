//! Docker's `--change` instructions for a root file system that comes without a configuration.

use std::str::FromStr;

use super::documents::{Nothing, RunConfig};

/// Why a text is no change.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChangeError {
    /// An instruction nobody knows.
    #[error("{0:?} is none of CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR")]
    Unknown(String),
    /// An instruction without what it needs.
    #[error("{instruction} needs {wants}, not {text:?}")]
    Form {
        /// The instruction.
        instruction: &'static str,
        /// What follows it.
        wants: &'static str,
        /// What follows it here.
        text: String,
    },
}

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// What runs when nobody says otherwise, or the arguments of the entrypoint.
    Cmd(Vec<String>),
    /// What always runs.
    Entrypoint(Vec<String>),
    /// Variables, KEY=VALUE.
    Env(Vec<(String, String)>),
    /// Ports; for people to read.
    Expose(Vec<String>),
    /// Labels.
    Label(Vec<(String, String)>),
    /// What `stop` sends first.
    StopSignal(String),
    /// USER[:GROUP].
    User(String),
    /// Paths that are meant for volumes; for people to read.
    Volume(Vec<String>),
    /// Where it runs.
    Workdir(String),
}

impl FromStr for Change {
    type Err = ChangeError;

    fn from_str(text: &str) -> Result<Self, ChangeError> {
        let text = text.trim();
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = rest.trim();
        Ok(match word.to_ascii_uppercase().as_str() {
            "CMD" => Self::Cmd(command("CMD", rest)?),
            "ENTRYPOINT" => Self::Entrypoint(command("ENTRYPOINT", rest)?),
            "ENV" => Self::Env(pairs("ENV", rest)?),
            "EXPOSE" => Self::Expose(words("EXPOSE", "ports", rest)?),
            "LABEL" => Self::Label(pairs("LABEL", rest)?),
            "STOPSIGNAL" => Self::StopSignal(one("STOPSIGNAL", "a signal", rest)?),
            "USER" => Self::User(one("USER", "USER[:GROUP]", rest)?),
            "VOLUME" => Self::Volume(list("VOLUME", "paths", rest)?),
            "WORKDIR" => Self::Workdir(absolute(rest)?),
            _ => return Err(ChangeError::Unknown(word.to_owned())),
        })
    }
}

/// The configuration that the changes make, one after the other.
pub(super) fn run_config(changes: &[Change]) -> RunConfig {
    let mut config = RunConfig::default();
    for change in changes {
        match change.clone() {
            Change::Cmd(command) => config.cmd = command,
            Change::Entrypoint(command) => config.entrypoint = command,
            Change::Env(pairs) => pairs.into_iter().for_each(|(key, value)| {
                config.env.retain(|known| known.split('=').next() != Some(&key));
                config.env.push(format!("{key}={value}"));
            }),
            Change::Expose(ports) => {
                let protocol = |port: String| {
                    if port.contains('/') {
                        port
                    } else {
                        format!("{port}/tcp")
                    }
                };
                config
                    .exposed_ports
                    .extend(ports.into_iter().map(|port| (protocol(port), Nothing {})));
            }
            Change::Label(pairs) => config.labels.extend(pairs),
            Change::StopSignal(signal) => config.stop_signal = signal,
            Change::User(user) => config.user = user,
            Change::Volume(paths) => config
                .volumes
                .extend(paths.into_iter().map(|path| (path, Nothing {}))),
            Change::Workdir(path) => config.working_dir = path,
        }
    }
    config
}

/// `["program", "argument"]`, or text for a shell.
fn command(instruction: &'static str, text: &str) -> Result<Vec<String>, ChangeError> {
    let wants = "a command, or a list such as [\"program\", \"argument\"]";
    if text.starts_with('[') {
        return list(instruction, wants, text);
    }
    let text = one(instruction, wants, text)?;
    Ok(vec!["/bin/sh".to_owned(), "-c".to_owned(), text])
}

fn list(instruction: &'static str, wants: &'static str, text: &str) -> Result<Vec<String>, ChangeError> {
    if text.starts_with('[') {
        return serde_json::from_str(text).map_err(|_| form(instruction, wants, text));
    }
    words(instruction, wants, text)
}

fn words(instruction: &'static str, wants: &'static str, text: &str) -> Result<Vec<String>, ChangeError> {
    let text = one(instruction, wants, text)?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

fn one(instruction: &'static str, wants: &'static str, text: &str) -> Result<String, ChangeError> {
    if text.is_empty() {
        Err(form(instruction, wants, text))
    } else {
        Ok(text.to_owned())
    }
}

fn absolute(text: &str) -> Result<String, ChangeError> {
    if text.starts_with('/') {
        Ok(text.to_owned())
    } else {
        Err(form("WORKDIR", "an absolute path", text))
    }
}

/// `KEY=VALUE KEY="VALUE WITH SPACES"`, or the older `KEY VALUE`.
fn pairs(instruction: &'static str, text: &str) -> Result<Vec<(String, String)>, ChangeError> {
    let bad = || form(instruction, "KEY=VALUE", text);
    let words = split_quoted(text).ok_or_else(bad)?;
    let first = words.first().ok_or_else(bad)?;
    if !first.contains('=') {
        let (key, value) = text.split_once(char::is_whitespace).ok_or_else(bad)?;
        return Ok(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    let pair = |word: &String| match word.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(bad()),
    };
    words.iter().map(pair).collect()
}

/// Words, with quotes and backslashes as a shell has them; none where a quote does not end.
fn split_quoted(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (None, ' ' | '\t') => words.extend(word.take()),
            (None, '"' | '\'') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (Some(open), close) if open == close => quote = None,
            (None | Some('"'), '\\') => word.get_or_insert_default().push(letters.next()?),
            (_, letter) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

fn form(instruction: &'static str, wants: &'static str, text: &str) -> ChangeError {
    ChangeError::Form {
        instruction,
        wants,
        text: text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(changes: &[&str]) -> RunConfig {
        let changes: Vec<Change> = changes.iter().map(|text| text.parse().unwrap()).collect();
        run_config(&changes)
    }

    #[test]
    fn both_forms_of_a_command_are_read() {
        let config = made(&[r#"ENTRYPOINT ["/init", "a b"]"#, "CMD echo $HOME  x"]);
        assert_eq!(config.entrypoint, ["/init", "a b"]);
        assert_eq!(config.cmd, ["/bin/sh", "-c", "echo $HOME  x"]);
    }

    #[test]
    fn a_later_change_counts() {
        let config = made(&[
            "ENV A=1 B='x y'",
            "env A=\"2 \\\" 3\"",
            "ENV OLD form of it",
            "USER a",
            "USER b:c",
        ]);
        assert_eq!(config.env, ["B=x y", "A=2 \" 3", "OLD=form of it"]);
        assert_eq!(config.user, "b:c");
    }

    #[test]
    fn the_rest_of_the_instructions_are_kept() {
        let config = made(&[
            "EXPOSE 6379 53/udp",
            "LABEL a=b",
            "STOPSIGNAL SIGINT",
            "WORKDIR /data",
            "VOLUME /a /b",
        ]);
        assert_eq!(
            config.exposed_ports.keys().collect::<Vec<_>>(),
            ["53/udp", "6379/tcp"]
        );
        assert_eq!(config.volumes.len(), 2);
        assert_eq!(
            (config.stop_signal.as_str(), config.working_dir.as_str()),
            ("SIGINT", "/data")
        );
        assert_eq!(config.labels["a"], "b");
    }

    #[test]
    fn what_is_no_change_is_named() {
        let error = "RUN ls".parse::<Change>().unwrap_err();
        assert!(error.to_string().starts_with("\"RUN\" is none of CMD"), "{error}");
        for bad in [
            "CMD",
            "CMD [\"a\"",
            "ENV",
            "ENV A",
            "ENV =x y=z",
            "ENV A='x",
            "WORKDIR data",
            "",
        ] {
            assert!(bad.parse::<Change>().is_err(), "{bad:?}");
        }
    }
}
