//! The documents say what is there: paths, names, links, configuration keys. Needs no root and no testbed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Folders whose names make a word in backticks a path of the repository.
const FOLDERS: [&str; 9] = [
    "proto",
    "storage-drivers",
    "checkpoint",
    "migrate",
    "daemon",
    "cli",
    "tests",
    "scripts",
    "docs",
];

/// Crates whose modules must all be in the code map.
const CRATES: [&str; 7] = [
    "proto",
    "storage-drivers",
    "checkpoint",
    "migrate",
    "daemon",
    "cli",
    "tests",
];

/// Words that begin a definition, as the documents quote them and as the code has them.
const DEFINITIONS: [&str; 5] = ["fn", "struct", "enum", "trait", "const"];

#[test]
fn paths_and_names_of_the_documents_are_in_the_code() -> Result<()> {
    for (document, least) in [
        ("docs/ARCHITECTURE.md", 150),
        ("docs/RECOVERY.md", 60),
        ("docs/PROTOCOL.md", 15),
    ] {
        let mut checked = 0;
        let mut wrong = Vec::new();
        for section in prose(&read(document)?).split("\n## ") {
            let mut place = None;
            for word in quoted(section) {
                match judge(word, &mut place)? {
                    Verdict::Fine => checked += 1,
                    Verdict::NotOurs => {}
                    Verdict::Wrong(why) => wrong.push(format!("{document}: `{word}`: {why}")),
                }
            }
        }
        ensure!(wrong.is_empty(), "\n{}", wrong.join("\n"));
        ensure!(
            checked >= least,
            "only {checked} names were checked in {document}: is its form still what this test reads?"
        );
    }
    Ok(())
}

#[test]
fn every_module_has_a_place_in_the_code_map() -> Result<()> {
    let text = read("docs/ARCHITECTURE.md")?;
    let map = text
        .split("\n## Code map")
        .nth(1)
        .context("there is no code map")?;
    let map = map.split("\n## ").next().unwrap_or_default();
    let words: BTreeSet<&str> = quoted(map).collect();
    let mut missing = Vec::new();
    for name in CRATES {
        for entry in fs::read_dir(root().join(name).join("src"))? {
            let file = entry?.file_name().to_string_lossy().into_owned();
            let path = format!("{name}/src/{file}");
            if file != "lib.rs" && !file.starts_with('.') && !words.contains(path.as_str()) {
                missing.push(path);
            }
        }
    }
    ensure!(missing.is_empty(), "not in the code map: {}", missing.join(", "));
    Ok(())
}

#[test]
fn links_between_documents_lead_somewhere() -> Result<()> {
    let mut links = 0;
    let mut broken = Vec::new();
    for document in documents()? {
        let text = read(&document)?;
        let folder = Path::new(&document).parent().unwrap_or(Path::new(""));
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") {
                continue;
            }
            links += 1;
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() {
                PathBuf::from(&document)
            } else {
                folder.join(file)
            };
            let good = match fs::read_to_string(root().join(&path)) {
                Err(_) => false,
                Ok(_) if heading.is_empty() => true,
                Ok(there) => headings(&there).any(|found| found == heading),
            };
            if !good {
                broken.push(format!("{document}: {target}"));
            }
        }
    }
    ensure!(broken.is_empty(), "broken links: {}", broken.join(", "));
    ensure!(links >= 10, "only {links} links were found");
    Ok(())
}

#[test]
fn every_configuration_key_is_documented_and_no_other() -> Result<()> {
    let code = read("daemon/src/config/file.rs")?;
    let known: BTreeSet<String> = code
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(':'))
        .map(|(key, _)| key.to_owned())
        .filter(|key| !["migrate", "peer", "storage", "network", "overlay"].contains(&key.as_str()))
        .collect();
    let text = read("docs/OPERATING.md")?;
    let section = text
        .split("\n## Configuration")
        .nth(1)
        .context("there is no section on the configuration")?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let told: BTreeSet<String> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter_map(|key| key.rsplit('.').next().map(str::to_owned))
        .collect();
    ensure!(
        known.len() >= 20,
        "the keys were not found in the code: {known:?}"
    );
    ensure!(
        known == told,
        "only in the code: {:?}; only in the document: {:?}",
        known.difference(&told),
        told.difference(&known)
    );
    Ok(())
}

enum Verdict {
    Fine,
    /// Nothing that this test knows how to look up: a command, a flag, a message.
    NotOurs,
    Wrong(String),
}

/// `place` is the path that was named last: definitions are looked for there.
fn judge(word: &str, place: &mut Option<PathBuf>) -> Result<Verdict> {
    let first = word.split('/').next().unwrap_or_default();
    if FOLDERS.contains(&first) && word != first || word == "scripts" {
        let path = root().join(word);
        let verdict = if path.exists() {
            Verdict::Fine
        } else {
            Verdict::Wrong("there is no such path".into())
        };
        *place = Some(path);
        return Ok(verdict);
    }
    let wanted = match word.split_once(' ') {
        Some((kind, name)) if DEFINITIONS.contains(&kind) => vec![format!("{kind} {name}")],
        _ => match word.split_once("::") {
            Some((kind, name)) => vec![kind.to_owned(), format!("fn {name}")],
            None => return Ok(Verdict::NotOurs),
        },
    };
    let Some(place) = place else {
        return Ok(Verdict::Wrong("no file was named before it".into()));
    };
    let code = source(place)?;
    match wanted.iter().find(|text| !has_word(&code, text)) {
        None => Ok(Verdict::Fine),
        Some(text) => Ok(Verdict::Wrong(format!("`{text}` is not in {}", place.display()))),
    }
}

/// Whether `text` stands in `code` and does not go on as a longer name.
fn has_word(code: &str, text: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(text).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + text.len()..].chars().next();
        !before.is_some_and(part_of_name) && !after.is_some_and(part_of_name)
    })
}

/// A file, or all Rust files directly in a folder.
fn source(place: &Path) -> Result<String> {
    if place.is_file() {
        return Ok(fs::read_to_string(place)?);
    }
    let mut all = String::new();
    for entry in fs::read_dir(place).with_context(|| format!("cannot list {}", place.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&fs::read_to_string(path)?);
        }
    }
    Ok(all)
}

/// The text without its blocks of code.
fn prose(text: &str) -> String {
    text.split("\n```").step_by(2).collect::<Vec<_>>().join("\n")
}

/// What stands between backticks, in order.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Headings as links name them.
fn headings(text: &str) -> impl Iterator<Item = String> {
    text.lines().filter_map(|line| {
        let title = line
            .strip_prefix('#')?
            .trim_start_matches('#')
            .trim()
            .to_lowercase();
        let kept = title
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        Some(kept.collect::<String>().replace(' ', "-"))
    })
}

fn documents() -> Result<Vec<String>> {
    let mut all = vec!["README.md".to_owned()];
    for entry in fs::read_dir(root().join("docs"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".md") {
            all.push(format!("docs/{name}"));
        }
    }
    Ok(all)
}

fn read(document: &str) -> Result<String> {
    fs::read_to_string(root().join(document)).with_context(|| format!("cannot read {document}"))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
