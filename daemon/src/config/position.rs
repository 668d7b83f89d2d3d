//! Finds the line of a key, and turns the parser's refusals into ours.

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::error::ConfigError;

/// A parsed text that still knows where each key stands.
pub(super) struct Document {
    file: PathBuf,
    text: String,
    keys: Vec<Key>,
}

struct Key {
    path: String,
    name: Range<usize>,
    value: Range<usize>,
}

impl Document {
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut document = Self {
            file: file.to_owned(),
            text: text.to_owned(),
            keys: Vec::new(),
        };
        let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            file: file.to_owned(),
            line: document.line(error.span().map_or(0, |span| span.start)),
            problem: error.message().to_owned(),
        })?;
        collect(table.get_ref(), "", &mut document.keys);
        Ok(document)
    }

    /// A refusal of the value of `key`, such as `peer.listen`. A key that is missing has the line of its table.
    pub fn value(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        let tables = std::iter::successors(Some(key), |path| path.rsplit_once('.').map(|(table, _)| table));
        let place = |path| self.keys.iter().find(|known| known.path == path);
        let line = tables
            .into_iter()
            .find_map(place)
            .map(|known| self.line(known.name.start));
        ConfigError::Value {
            file: self.file.clone(),
            line,
            key: key.to_owned(),
            problem: problem.into(),
        }
    }

    /// The refusal for what the parser found in a text that is TOML.
    pub fn refuse(&self, error: &toml::de::Error) -> ConfigError {
        let span = error.span().unwrap_or_default();
        let line = self.line(span.start);
        let key = self.key_at(&span);
        match UnknownField::find(error.message()) {
            Some(unknown) => ConfigError::UnknownKey {
                file: self.file.clone(),
                line,
                key: key.unwrap_or(unknown.name).to_owned(),
                suggestion: closest(unknown.name, &unknown.known).map(str::to_owned),
                known: unknown.known.iter().map(|&name| name.to_owned()).collect(),
            },
            None => ConfigError::Value {
                file: self.file.clone(),
                line: Some(line),
                key: key.unwrap_or_default().to_owned(),
                problem: format!("does not fit: {}", error.message()),
            },
        }
    }

    fn line(&self, offset: usize) -> usize {
        self.text
            .bytes()
            .take(offset)
            .filter(|&byte| byte == b'\n')
            .count()
            + 1
    }

    fn key_at(&self, span: &Range<usize>) -> Option<&str> {
        let named = self.keys.iter().find(|key| key.name == *span);
        let holds = |key: &&Key| key.value.start <= span.start && span.end <= key.value.end;
        let found = named.or_else(|| self.keys.iter().filter(holds).min_by_key(|key| key.value.len()));
        found.map(|key| key.path.as_str())
    }
}

fn collect(table: &DeTable<'_>, prefix: &str, keys: &mut Vec<Key>) {
    for (name, value) in table {
        let path = format!("{prefix}{}", name.get_ref());
        keys.push(Key {
            path: path.clone(),
            name: name.span(),
            value: value.span(),
        });
        if let Some(inner) = value.get_ref().as_table() {
            collect(inner, &format!("{path}."), keys);
        }
    }
}

/// What serde's message about an unknown field says.
struct UnknownField<'a> {
    name: &'a str,
    known: Vec<&'a str>,
}

impl<'a> UnknownField<'a> {
    fn find(message: &'a str) -> Option<Self> {
        let rest = message.strip_prefix("unknown field ")?;
        let mut quoted = rest.split('`').skip(1).step_by(2);
        Some(Self {
            name: quoted.next()?,
            known: quoted.collect(),
        })
    }
}

/// The known name that is at most a third of its letters away.
fn closest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let near = known
        .iter()
        .map(|&candidate| (distance(name, candidate), candidate));
    near.filter(|(steps, candidate)| steps * 3 <= candidate.len().max(3))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Letters to insert, drop, replace or swap with their neighbour to get from one text to the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(rows[i - 2][j - 2] + 1);
            }
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_near_and_another_word_is_far() {
        assert_eq!(distance("path", "paht"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("listen", "lisen"), 1);
        assert_eq!(closest("lisen", &["advertise", "listen"]), Some("listen"));
        assert_eq!(closest("colour", &["advertise", "listen"]), None);
    }
}
