//! The JSON documents of an image: read as the image format has them, and written for images that come without.

use std::collections::BTreeMap;

use oci_spec::image::ImageConfiguration;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tranship_proto::ids::Digest;

use super::error::ImportError;
use super::limits::MAX_LAYERS;

/// What `--change` can set, as the image format names it; also how it is written. Fields in this order and maps in the
/// order of their keys, so that the same image always has the same bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct RunConfig {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Nothing>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, Nothing>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
}

/// `{}`, which the image format has as the values of sets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Nothing {}

#[derive(Serialize)]
struct Configuration<'a> {
    architecture: &'a str,
    os: &'a str,
    config: &'a RunConfig,
    rootfs: RootFs<'a>,
}

#[derive(Serialize)]
struct RootFs<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    diff_ids: Vec<&'a Digest>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    schema_version: u32,
    media_type: &'a str,
    config: Descriptor<'a>,
    layers: Vec<Descriptor<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor<'a> {
    media_type: &'a str,
    digest: &'a Digest,
    size: u64,
}

/// Reads a document.
pub(super) fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, ImportError> {
    serde_json::from_slice(bytes).map_err(|source| ImportError::Document {
        name: name.to_owned(),
        source: Box::new(source),
    })
}

/// The configuration of an image that is one root file system.
pub(super) fn configuration(
    run: &RunConfig,
    architecture: &str,
    layer: &Digest,
) -> Result<String, ImportError> {
    let rootfs = RootFs {
        kind: "layers",
        diff_ids: vec![layer],
    };
    write(
        "the configuration",
        &Configuration {
            architecture,
            os: "linux",
            config: run,
            rootfs,
        },
    )
}

/// The manifest of an image that comes without one: its layers are known uncompressed.
pub(super) fn manifest(
    configuration: &Digest,
    size: u64,
    layers: &[(Digest, u64)],
) -> Result<String, ImportError> {
    let media_type = "application/vnd.oci.image.layer.v1.tar";
    let config = Descriptor {
        media_type: "application/vnd.oci.image.config.v1+json",
        digest: configuration,
        size,
    };
    let layers = layers.iter().map(|(digest, size)| Descriptor {
        media_type,
        digest,
        size: *size,
    });
    let manifest = Manifest {
        schema_version: 2,
        media_type: "application/vnd.oci.image.manifest.v1+json",
        config,
        layers: layers.collect(),
    };
    write("the manifest", &manifest)
}

fn write(name: &str, document: &impl Serialize) -> Result<String, ImportError> {
    serde_json::to_string(document).map_err(|source| ImportError::Document {
        name: name.to_owned(),
        source: Box::new(source),
    })
}

/// The hashes of an image's uncompressed layers, of which there must be as many as it has layers.
pub(super) fn diff_ids(
    name: &str,
    configuration: &ImageConfiguration,
    layers: usize,
) -> Result<Vec<Digest>, ImportError> {
    let listed = configuration.rootfs().diff_ids();
    if listed.len() != layers {
        let why = format!(
            "its configuration has {} layers and its manifest {layers}",
            listed.len()
        );
        return Err(ImportError::Layout(why));
    }
    if layers == 0 {
        return Err(ImportError::Layout("it has no layer".to_owned()));
    }
    if layers > MAX_LAYERS {
        return Err(ImportError::TooMuch {
            what: "layers",
            limit: MAX_LAYERS as u64,
        });
    }
    let parsed = listed.iter().map(|text| text.parse::<Digest>());
    parsed
        .collect::<Result<_, _>>()
        .map_err(|source| ImportError::Document {
            name: name.to_owned(),
            source: Box::new(source),
        })
}
