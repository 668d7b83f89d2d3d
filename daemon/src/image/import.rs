//! The way of an archive into the storage driver.

use std::io::Read;
use std::path::Path;

use tranship_proto::ids::Digest;
use tranship_proto::v1;
use tranship_storage_drivers::driver::StorageDriver;

use super::changes::{Change, run_config};
use super::config::host_architecture;
use super::documents::{self, parse};
use super::error::ImportError;
use super::layer::{LayerSource, bring, digest_of};
use super::members::Members;
use super::reference::Reference;
use super::spool::Spool;
use super::{docker, oci};
use crate::clock;

/// What a user says about an archive.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// The image's name; none takes the archive's own.
    pub name: Option<Reference>,
    /// For a root file system: what a container of the image runs.
    pub changes: Vec<Change>,
}

impl ImportOptions {
    /// From the texts of a request; an empty name is none.
    ///
    /// # Errors
    /// [`ImportError::Name`] or [`ImportError::Change`].
    pub fn parse(name: &str, changes: &[String]) -> Result<Self, ImportError> {
        let named = match name {
            "" => None,
            text => Some(text.parse().map_err(|source| ImportError::Name {
                name: text.to_owned(),
                source,
            })?),
        };
        let changes = changes
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_, _>>()?;
        Ok(Self { name: named, changes })
    }
}

/// What is to be done with an image archive.
pub(super) struct Plan {
    pub manifest: Known,
    pub configuration: String,
    pub names: Vec<Reference>,
    pub layers: Vec<LayerSource>,
}

/// Whether an archive has a manifest.
pub(super) enum Known {
    /// This one, checked.
    Digest(Digest),
    /// None; it is written from what the archive has.
    Nothing,
}

/// Reads an archive to its end and makes an image of it: one of the OCI's or Docker's layout with its layers, anything
/// else a root file system of one layer; tar, compressed by gzip, zstd or not at all. Its layers are then in the driver;
/// the caller keeps the image. Blocks: to be called where that does no harm.
///
/// The same content makes the same image. `spool` is a directory on a real disk with room for the uncompressed archive.
///
/// # Errors
/// [`ImportError`]; no image has been made then, and nothing is left in `spool` or half-made in the driver.
pub fn import(
    stream: impl Read,
    options: &ImportOptions,
    driver: &dyn StorageDriver,
    spool: &Path,
) -> Result<v1::Image, ImportError> {
    let spool = Spool::fill(stream, spool)?;
    let image = match Members::find(&spool)? {
        Some(members) => import_archive(&members, options, driver)?,
        None => import_rootfs(&spool, options, driver)?,
    };
    tracing::info!(image = image.digest, names = ?image.names, layers = image.layers.len(), "imported an image");
    Ok(image)
}

fn import_archive(
    members: &Members<'_>,
    options: &ImportOptions,
    driver: &dyn StorageDriver,
) -> Result<v1::Image, ImportError> {
    if !options.changes.is_empty() {
        return Err(ImportError::Changes);
    }
    let mut plan = match (members.has(oci::INDEX), members.has(docker::MANIFEST)) {
        (true, _) => oci::plan(members)?,
        (false, true) => docker::plan(members)?,
        (false, false) => {
            let why = format!("it has neither {} nor {}", oci::INDEX, docker::MANIFEST);
            return Err(ImportError::Layout(why));
        }
    };
    if plan.names.is_empty() && members.has(docker::MANIFEST) {
        plan.names = docker::names(members)?;
    }
    let mut sizes = Vec::new();
    for (number, source) in plan.layers.iter().enumerate() {
        let (stream, _) = members.open(&source.member)?;
        sizes.push((source.diff_id.clone(), bring(stream, number + 1, source, driver)?));
    }
    let digest = match plan.manifest {
        Known::Digest(digest) => digest,
        Known::Nothing => digest_of_image(&plan.configuration, &sizes)?,
    };
    image(digest, plan.configuration, plan.names, sizes, options)
}

fn import_rootfs(
    spool: &Spool,
    options: &ImportOptions,
    driver: &dyn StorageDriver,
) -> Result<v1::Image, ImportError> {
    let run = run_config(&options.changes);
    let layer = spool.digest.clone();
    let source = LayerSource {
        member: String::new(),
        blob: None,
        diff_id: layer.clone(),
    };
    let bytes = bring(spool.whole(), 1, &source, driver)?;
    let configuration = documents::configuration(&run, host_architecture(), &layer)?;
    let sizes = vec![(layer, bytes)];
    let digest = digest_of_image(&configuration, &sizes)?;
    image(digest, configuration, Vec::new(), sizes, options)
}

fn digest_of_image(configuration: &str, layers: &[(Digest, u64)]) -> Result<Digest, ImportError> {
    let size = configuration.len() as u64;
    let manifest = documents::manifest(&digest_of(configuration.as_bytes()), size, layers)?;
    Ok(digest_of(manifest.as_bytes()))
}

fn image(
    digest: Digest,
    configuration: String,
    names: Vec<Reference>,
    layers: Vec<(Digest, u64)>,
    options: &ImportOptions,
) -> Result<v1::Image, ImportError> {
    let parsed: oci_spec::image::ImageConfiguration = parse("the configuration", configuration.as_bytes())?;
    let created = parsed
        .created()
        .as_ref()
        .and_then(|text| text.parse::<jiff::Timestamp>().ok());
    let names = options.name.clone().map_or(names, |name| vec![name]);
    Ok(v1::Image {
        digest: digest.to_string(),
        names: names.iter().map(ToString::to_string).collect(),
        size_bytes: layers
            .iter()
            .fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes)),
        layers: layers.into_iter().map(|(digest, _)| digest.to_string()).collect(),
        created_ms: created.map_or_else(clock::now_ms, |time| time.as_millisecond()),
        architecture: parsed.architecture().to_string(),
        config_json: configuration,
    })
}

/// A document as the text that is kept.
pub(super) fn as_text(name: &str, bytes: Vec<u8>) -> Result<String, ImportError> {
    String::from_utf8(bytes).map_err(|source| ImportError::Document {
        name: name.to_owned(),
        source: Box::new(source),
    })
}
