//! The layout of `docker save` before it was also that of the OCI: `manifest.json`, a configuration, a tar for each layer.

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;
use tranship_proto::ids::Digest;

use super::documents::{diff_ids, parse};
use super::error::ImportError;
use super::import::{Known, Plan, as_text};
use super::layer::{LayerSource, check, digest_of};
use super::members::Members;
use super::reference::Reference;

pub(super) const MANIFEST: &str = "manifest.json";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// What is to be done with an archive of this layout.
pub(super) fn plan(members: &Members<'_>) -> Result<Plan, ImportError> {
    let entry = only_entry(members)?;
    let configuration = members.document(&entry.config)?;
    let found = digest_of(&configuration);
    // The file is named by its hash.
    let stem = entry
        .config
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .trim_end_matches(".json");
    if let Ok(expected) = format!("sha256:{stem}").parse::<Digest>() {
        check("the configuration", &expected, &found)?;
    }
    let parsed: ImageConfiguration = parse(&entry.config, &configuration)?;
    let ids = diff_ids(&entry.config, &parsed, entry.layers.len())?;
    let layers = entry.layers.iter().zip(ids);
    let layers = layers.map(|(member, diff_id)| LayerSource {
        member: member.clone(),
        blob: None,
        diff_id,
    });
    Ok(Plan {
        manifest: Known::Nothing,
        names: names_of(&entry)?,
        layers: layers.collect(),
        configuration: as_text(&entry.config, configuration)?,
    })
}

/// The names that an archive gives its only image, also beside another layout.
pub(super) fn names(members: &Members<'_>) -> Result<Vec<Reference>, ImportError> {
    names_of(&only_entry(members)?)
}

fn only_entry(members: &Members<'_>) -> Result<Entry, ImportError> {
    let mut entries: Vec<Entry> = parse(MANIFEST, &members.document(MANIFEST)?)?;
    match (entries.pop(), entries.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => Err(ImportError::Layout(format!("its {MANIFEST} lists no image"))),
        (Some(last), false) => {
            let all = entries.iter().chain([&last]);
            let named = all.map(|entry| {
                let tags = entry.repo_tags.as_deref().unwrap_or_default();
                tags.first().cloned().unwrap_or_else(|| entry.config.clone())
            });
            Err(ImportError::Several {
                found: named.collect(),
            })
        }
    }
}

fn names_of(entry: &Entry) -> Result<Vec<Reference>, ImportError> {
    let tags = entry.repo_tags.as_deref().unwrap_or_default().iter();
    tags.map(|name| {
        name.parse().map_err(|source| ImportError::Name {
            name: name.clone(),
            source,
        })
    })
    .collect()
}
