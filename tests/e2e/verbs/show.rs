//! `--format json`.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{begin, words};

#[test]
fn every_verb_that_shows_something_shows_it_as_json() -> Result<()> {
    let scenario = begin()?;
    let a = scenario.host("a")?;
    a.tranship(&words(
        "run -d",
        "--name box --network none -v data:/data busybox sleep 86400",
    ))?;
    for (verb, key, value) in [
        ("ps -a", "/spec/name", "box"),
        ("inspect box", "/0/spec/name", "box"),
        ("volume ls", "/name", "data"),
        ("volume inspect data", "/0/used_by/0", "box"),
        ("image ls", "/architecture", "amd64"),
        ("network ls", "/kind", ""),
        ("host ls", "/name", "a"),
        ("info", "/host", "a"),
        ("version", "/server", ""),
    ] {
        let text = a.tranship(&words("--format json", verb))?;
        let values = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
        let values = values
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| format!("{verb}: {text}"))?;
        let first = values.first().with_context(|| format!("{verb} shows nothing"))?;
        let found = first.pointer(key).and_then(Value::as_str);
        let is_right = found.is_some_and(|found| value.is_empty() || value == found);
        // Architectures differ; what matters is that one is named.
        ensure!(
            is_right || key == "/architecture" && found.is_some(),
            "{verb}: {key} is {found:?}"
        );
    }
    let none = a.tranship(&["--format", "json", "migrate", "ls"])?;
    ensure!(none.is_empty(), "no migration, and yet: {none}");
    let refused = a.try_tranship(&["--format", "json", "migrate", "box", "nowhere"])?;
    let refused: Value = serde_json::from_slice(&refused.stdout)?;
    let id = refused["id"].as_str().context("a migration has an id")?;
    for verb in [
        &["migrate", "ls"][..],
        &["migrate", "status", id],
        &["migrate", "watch", id],
    ] {
        let answer = a.try_tranship(&[&["--format", "json"], verb].concat())?;
        let record: Value = serde_json::from_slice(&answer.stdout).with_context(|| format!("{verb:?}"))?;
        ensure!(
            record["id"] == id && record["outcome"] == "refused",
            "{verb:?}: {record:#}"
        );
    }
    scenario.end()
}
