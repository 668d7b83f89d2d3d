//! Which container a user means: by name, by id, or by the beginning of an id that only one has.

use tranship_proto::ids::{ContainerId, Name};

use super::error::ContainerError;

/// What a search needs to know of a container or a tombstone.
pub struct Known<'a> {
    /// Its id.
    pub id: &'a ContainerId,
    /// Its name.
    pub name: &'a Name,
}

/// The position of the one that `text` means. A whole name or id counts before the beginning of one.
pub fn find<'a>(
    text: &str,
    all: impl Iterator<Item = Known<'a>> + Clone,
) -> Result<Option<usize>, ContainerError> {
    let exact = |known: Known<'_>| known.id.as_str() == text || known.name.as_str() == text;
    if let Some(position) = all.clone().position(exact) {
        return Ok(Some(position));
    }
    let is_hex = !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !is_hex {
        return Ok(None);
    }
    let matches: Vec<(usize, Known<'_>)> = all
        .enumerate()
        .filter(|(_, known)| known.id.as_str().starts_with(text))
        .collect();
    match matches.as_slice() {
        [] => Ok(None),
        [(position, _)] => Ok(Some(*position)),
        several => Err(ContainerError::Ambiguous {
            prefix: text.to_owned(),
            matches: several
                .iter()
                .map(|(_, known)| format!("{} ({})", known.id.short(), known.name))
                .collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(text: &str) -> Result<Option<usize>, ContainerError> {
        let mut near = [0xab; 32];
        near[3] = 0xcd;
        let ids = [[0xab; 32], near, [0x11; 32]].map(ContainerId::from_random);
        let names: [Name; 3] = ["web", "db", "abab"].map(|name| name.parse().unwrap());
        find(text, ids.iter().zip(&names).map(|(id, name)| Known { id, name }))
    }

    #[test]
    fn a_name_counts_before_the_beginning_of_an_id() {
        assert_eq!(search("abab").unwrap(), Some(2));
        assert_eq!(search("db").unwrap(), Some(1));
    }

    #[test]
    fn the_beginning_of_one_id_is_enough_and_of_two_is_an_error_that_names_both() {
        let error = search("ababab").unwrap_err().to_string();
        assert!(error.contains("web") && error.contains("db"), "{error}");
        assert_eq!(search("abababcd").unwrap(), Some(1));
        assert_eq!(search("1").unwrap(), Some(2));
    }

    #[test]
    fn nothing_is_found_by_an_empty_text_or_half_a_name() {
        assert_eq!(search("").unwrap(), None);
        assert_eq!(search("we").unwrap(), None);
    }
}
