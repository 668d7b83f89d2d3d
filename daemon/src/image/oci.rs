//! The image layout of the OCI: `oci-layout`, `index.json` and everything else below `blobs` by its digest.

use std::collections::HashMap;

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType};
use tranship_proto::ids::Digest;

use super::config::host_architecture;
use super::documents::{diff_ids, parse};
use super::error::ImportError;
use super::import::{Known, Plan};
use super::layer::{LayerSource, check, digest_of};
use super::limits::MAX_INDEX_DEPTH;
use super::members::Members;
use super::reference::Reference;

pub(super) const INDEX: &str = "index.json";

const FULL_NAME: &str = "io.containerd.image.name";
const NAME: &str = "org.opencontainers.image.ref.name";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What is to be done with an archive of this layout.
pub(super) fn plan(members: &Members<'_>) -> Result<Plan, ImportError> {
    let index: ImageIndex = parse(INDEX, &members.document(INDEX)?)?;
    let (descriptor, names) = choose(members, &index, 0)?;
    let name = descriptor.digest().to_string();
    let manifest_digest = sha256(&descriptor)?;
    let manifest: ImageManifest = parse(&name, &blob(members, &descriptor)?)?;
    let configuration_name = manifest.config().digest().to_string();
    let configuration = blob(members, manifest.config())?;
    let parsed: ImageConfiguration = parse(&configuration_name, &configuration)?;
    let ids = diff_ids(&configuration_name, &parsed, manifest.layers().len())?;
    let layers = manifest.layers().iter().zip(ids).map(|(descriptor, diff_id)| {
        let blob = sha256(descriptor)?;
        Ok(LayerSource {
            member: member(&blob),
            blob: Some(blob),
            diff_id,
        })
    });
    Ok(Plan {
        manifest: Known::Digest(manifest_digest),
        configuration: super::import::as_text(&configuration_name, configuration)?,
        names,
        layers: layers.collect::<Result<_, ImportError>>()?,
    })
}

/// The one image of an index: the only one, or the only one for this host.
fn choose(
    members: &Members<'_>,
    index: &ImageIndex,
    depth: usize,
) -> Result<(Descriptor, Vec<Reference>), ImportError> {
    if depth == MAX_INDEX_DEPTH {
        let limit = MAX_INDEX_DEPTH as u64;
        return Err(ImportError::TooMuch {
            what: "indexes within each other",
            limit,
        });
    }
    let images: Vec<_> = index
        .manifests()
        .iter()
        .filter(|found| !is_attestation(found))
        .collect();
    let here: Vec<_> = images
        .iter()
        .copied()
        .filter(|found| is_for_this_host(found))
        .collect();
    let chosen = match (images.as_slice(), here.as_slice()) {
        ([only], _) | (_, [only]) => *only,
        ([], _) => return Err(ImportError::Layout(format!("its {INDEX} lists no image"))),
        _ => {
            return Err(ImportError::Several {
                found: images.iter().map(|it| describe(it)).collect(),
            });
        }
    };
    let names = names(chosen.annotations().as_ref())?;
    if !is_index(chosen) {
        return Ok((chosen.clone(), names));
    }
    let inner: ImageIndex = parse(chosen.digest().as_ref(), &blob(members, chosen)?)?;
    let (descriptor, inner_names) = choose(members, &inner, depth + 1)?;
    Ok((descriptor, if names.is_empty() { inner_names } else { names }))
}

fn is_index(descriptor: &Descriptor) -> bool {
    match descriptor.media_type() {
        MediaType::ImageIndex => true,
        MediaType::Other(other) => other == DOCKER_INDEX,
        _ => false,
    }
}

/// Statements about how an image was built look like images for a platform that does not exist.
fn is_attestation(descriptor: &Descriptor) -> bool {
    descriptor
        .platform()
        .as_ref()
        .is_some_and(|platform| platform.architecture().to_string() == "unknown")
}

fn is_for_this_host(descriptor: &Descriptor) -> bool {
    descriptor.platform().as_ref().is_some_and(|platform| {
        platform.os().to_string() == "linux" && platform.architecture().to_string() == host_architecture()
    })
}

fn describe(descriptor: &Descriptor) -> String {
    let name = descriptor
        .annotations()
        .as_ref()
        .and_then(|all| all.get(FULL_NAME).or(all.get(NAME)));
    let platform = descriptor.platform().as_ref();
    let platform = platform.map(|it| format!("{}/{}", it.os(), it.architecture()));
    match (name, platform) {
        (Some(name), Some(platform)) => format!("{name} for {platform}"),
        (Some(name), None) => name.clone(),
        (None, Some(platform)) => platform,
        (None, None) => descriptor.digest().to_string(),
    }
}

/// Names in the annotations. Some tools write only a tag there, which names nothing.
fn names(annotations: Option<&HashMap<String, String>>) -> Result<Vec<Reference>, ImportError> {
    let Some(annotations) = annotations else {
        return Ok(Vec::new());
    };
    let full = annotations.get(FULL_NAME);
    let other = annotations.get(NAME).filter(|name| name.contains(['/', ':']));
    let Some(name) = full.or(other) else {
        return Ok(Vec::new());
    };
    let parsed = name.parse().map_err(|source| ImportError::Name {
        name: name.clone(),
        source,
    })?;
    Ok(vec![parsed])
}

/// A document by its digest, which it must have.
fn blob(members: &Members<'_>, descriptor: &Descriptor) -> Result<Vec<u8>, ImportError> {
    let digest = sha256(descriptor)?;
    let bytes = members.document(&member(&digest))?;
    check("a document", &digest, &digest_of(&bytes))?;
    Ok(bytes)
}

fn member(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn sha256(descriptor: &Descriptor) -> Result<Digest, ImportError> {
    let text = descriptor.digest().to_string();
    text.parse().map_err(|source| ImportError::Document {
        name: text,
        source: Box::new(source),
    })
}
