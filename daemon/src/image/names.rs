//! Which image a text means, and what removing it takes away. Pure: the images are the registry's.

use std::collections::BTreeSet;

use tranship_proto::ids::Digest;
use tranship_proto::v1;

use super::reference::Reference;

/// Fewest digits of a digest that stand for it.
const MIN_DIGITS: usize = 4;

/// Why a text does not mean an image that can be removed, or any.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    /// Nothing has that name.
    #[error("there is no image {0:?}: import it, or see `tranship image ls`")]
    Unknown(String),
    /// The digits begin more than one digest.
    #[error("{text:?} begins the digests of {count} images: give more digits")]
    Ambiguous {
        /// What was given.
        text: String,
        /// How many there are.
        count: usize,
    },
    /// A container was made from it.
    #[error("the image {image} is used by container {container}: remove the container first")]
    InUse {
        /// The image, as it was called.
        image: String,
        /// One of its containers.
        container: String,
    },
    /// A digest was given for an image that several names lead to.
    #[error("the image {image} has several names ({}): remove them one by one", names.join(", "))]
    SeveralNames {
        /// What was given.
        image: String,
        /// Its names.
        names: Vec<String>,
    },
}

/// What there is to do to remove an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Take this name away; the image has others, or is in use under another.
    Name(String),
    /// Forget the image, then remove these layers, which no other image has.
    Image {
        /// The image.
        digest: Digest,
        /// The layers to remove, the uppermost first.
        layers: Vec<Digest>,
    },
}

/// The image a text means: a name, a digest, or the beginning of one.
///
/// # Errors
/// [`NameError::Unknown`] and [`NameError::Ambiguous`].
pub fn resolve<'a>(images: &'a [v1::Image], text: &str) -> Result<&'a v1::Image, NameError> {
    if let Some(named) = by_name(images, text) {
        return Ok(named.0);
    }
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let digits = digits
        .rsplit_once("@sha256:")
        .map_or(digits, |(_, digits)| digits);
    let is_digits = digits.len() >= MIN_DIGITS && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let begins = |image: &&v1::Image| {
        image
            .digest
            .strip_prefix("sha256:")
            .is_some_and(|hex| is_digits && hex.starts_with(digits))
    };
    let found: Vec<_> = images.iter().filter(begins).collect();
    match found.as_slice() {
        [only] => Ok(only),
        [] => Err(NameError::Unknown(text.to_owned())),
        several => Err(NameError::Ambiguous {
            text: text.to_owned(),
            count: several.len(),
        }),
    }
}

/// What removing `text` means. `users` has a pair of image digest and container name for every container.
///
/// # Errors
/// [`NameError`]; nothing is to be done then.
pub fn plan_removal(
    images: &[v1::Image],
    users: &[(String, String)],
    text: &str,
) -> Result<Removal, NameError> {
    let image = resolve(images, text)?;
    let name = by_name(images, text).map(|(_, name)| name);
    match (name, image.names.len()) {
        (Some(name), 2..) => return Ok(Removal::Name(name)),
        (None, 2..) => {
            return Err(NameError::SeveralNames {
                image: text.to_owned(),
                names: image.names.clone(),
            });
        }
        _ => {}
    }
    if let Some((_, container)) = users.iter().find(|(digest, _)| *digest == image.digest) {
        let container = container.clone();
        return Err(NameError::InUse {
            image: text.to_owned(),
            container,
        });
    }
    let others = images.iter().filter(|other| other.digest != image.digest);
    let kept: BTreeSet<&String> = others.flat_map(|other| &other.layers).collect();
    let unknown = |_| NameError::Unknown(text.to_owned());
    let layers = image.layers.iter().rev().filter(|layer| !kept.contains(layer));
    Ok(Removal::Image {
        digest: image.digest.parse().map_err(unknown)?,
        layers: layers
            .map(|layer| layer.parse())
            .collect::<Result<_, _>>()
            .map_err(unknown)?,
    })
}

fn by_name<'a>(images: &'a [v1::Image], text: &str) -> Option<(&'a v1::Image, String)> {
    let name = text.parse::<Reference>().ok()?.to_string();
    let image = images.iter().find(|image| image.names.contains(&name))?;
    Some((image, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(seed: u8) -> Digest {
        Digest::from_sha256(&[seed; 32])
    }

    fn images() -> Vec<v1::Image> {
        let image = |seed: u8, names: &[&str], layers: &[u8]| v1::Image {
            digest: digest(seed).to_string(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            layers: layers.iter().map(|layer| digest(*layer).to_string()).collect(),
            ..v1::Image::default()
        };
        vec![
            image(0xaa, &["redis:latest", "cache:1"], &[1, 2]),
            image(0xab, &["web:latest"], &[1, 3, 4]),
            image(0xac, &[], &[5]),
        ]
    }

    #[test]
    fn an_image_is_found_by_name_digest_and_the_beginning_of_one() {
        let images = images();
        let found = |text: &str| resolve(&images, text).map(|image| image.digest.clone());
        for text in [
            "redis",
            "docker.io/library/redis:latest",
            "cache:1",
            "aaaa",
            &digest(0xaa).to_string(),
        ] {
            assert_eq!(found(text), Ok(digest(0xaa).to_string()), "{text}");
        }
        assert_eq!(
            found(&format!("web@{}", digest(0xab))),
            Ok(digest(0xab).to_string())
        );
        for text in ["cache", "aaab", "aaa", ""] {
            assert_eq!(found(text), Err(NameError::Unknown(text.to_owned())));
        }
    }

    #[test]
    fn the_last_name_takes_the_image_and_the_layers_only_it_has() {
        let images = images();
        assert_eq!(
            plan_removal(&images, &[], "redis"),
            Ok(Removal::Name("redis:latest".to_owned()))
        );
        let expected = Removal::Image {
            digest: digest(0xab),
            layers: vec![digest(4), digest(3)],
        };
        assert_eq!(plan_removal(&images, &[], "web"), Ok(expected));
        assert!(matches!(
            plan_removal(&images, &[], "aaaa"),
            Err(NameError::SeveralNames { names, .. }) if names.len() == 2
        ));
    }

    #[test]
    fn an_image_that_a_container_uses_stays_though_a_name_may_go() {
        let images = images();
        let used = |seed: u8| vec![(digest(seed).to_string(), "db".to_owned())];
        let error = plan_removal(&images, &used(0xab), "web").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the image web is used by container db: remove the container first"
        );
        assert!(plan_removal(&images, &used(0xaa), "cache:1").is_ok());
    }
}
