//! Archives made by hand, also such as no tool would make.

use std::collections::BTreeMap;
use std::io::Write as _;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::image::host_architecture;

/// A tar archive under construction.
pub struct Tar(Builder<Vec<u8>>);

impl Tar {
    pub fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    pub fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Regular, path, "", content.as_ref(), |_| {})
    }

    pub fn dir(self, path: &str) -> Self {
        self.entry(EntryType::Directory, path, "", &[], |header| {
            header.set_mode(0o755)
        })
    }

    pub fn link(self, kind: EntryType, path: &str, target: &str) -> Self {
        self.entry(kind, path, target, &[], |_| {})
    }

    /// Any entry; names go into the header as they are.
    pub fn entry(
        mut self,
        kind: EntryType,
        path: &str,
        target: &str,
        content: &[u8],
        change: impl FnOnce(&mut Header),
    ) -> Self {
        let mut header = Header::new_gnu();
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..path.len()].copy_from_slice(path.as_bytes());
        gnu.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        change(&mut header);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    /// An extended header for the next entry.
    pub fn pax(mut self, pairs: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(pairs.iter().copied()).unwrap();
        self
    }

    pub fn end(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

pub fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

pub fn configuration(layers: &[Vec<u8>]) -> Value {
    let ids: Vec<_> = layers
        .iter()
        .map(|layer| format!("sha256:{}", hex(layer)))
        .collect();
    json!({
        "created": "2024-02-03T04:05:06Z", "architecture": host_architecture(), "os": "linux",
        "config": {"Cmd": ["/bin/run"], "Env": ["A=b"], "Labels": null},
        "rootfs": {"type": "layers", "diff_ids": ids},
    })
}

/// An archive in the layout of the OCI, made of blobs.
#[derive(Default)]
pub struct Oci {
    pub blobs: BTreeMap<String, Vec<u8>>,
    pub manifests: Vec<Value>,
}

impl Oci {
    /// Of one image; `pack` compresses its layers.
    pub fn of(layers: &[Vec<u8>], pack: fn(&[u8]) -> Vec<u8>) -> Self {
        let mut oci = Self::default();
        let manifest = oci.image(&configuration(layers), layers, pack);
        oci.manifests.push(manifest);
        oci
    }

    pub fn blob(&mut self, bytes: Vec<u8>, media_type: &str) -> Value {
        let digest = hex(&bytes);
        let descriptor =
            json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()});
        self.blobs.insert(digest, bytes);
        descriptor
    }

    pub fn image(&mut self, config: &Value, layers: &[Vec<u8>], pack: fn(&[u8]) -> Vec<u8>) -> Value {
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| self.blob(pack(layer), "application/vnd.oci.image.layer.v1.tar+gzip"))
            .collect();
        let config = self.blob(
            serde_json::to_vec(config).unwrap(),
            "application/vnd.oci.image.config.v1+json",
        );
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        self.blob(
            serde_json::to_vec(&manifest).unwrap(),
            "application/vnd.oci.image.manifest.v1+json",
        )
    }

    /// The index comes last, as no reader would like it.
    pub fn end(&self) -> Vec<u8> {
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        let mut tar = Tar::new().dir("blobs/").dir("blobs/sha256/");
        for (digest, bytes) in &self.blobs {
            tar = tar.file(&format!("blobs/sha256/{digest}"), bytes);
        }
        tar.file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)
            .file("index.json", index.to_string())
            .end()
    }
}

/// An archive as `docker save` made it before it was also the OCI's.
pub fn docker(layers: &[Vec<u8>], tags: &[&str]) -> Vec<u8> {
    let config = configuration(layers).to_string();
    let names: Vec<_> = (0..layers.len())
        .map(|number| format!("{number:064x}/layer.tar"))
        .collect();
    let name = format!("{}.json", hex(config.as_bytes()));
    let mut tar = Tar::new().file(&name, &config);
    for (path, layer) in names.iter().zip(layers) {
        tar = tar.dir(path.trim_end_matches("layer.tar")).file(path, layer);
    }
    let manifest = json!([{"Config": name, "RepoTags": tags, "Layers": names}]);
    tar.file("manifest.json", manifest.to_string())
        .file("repositories", "{}")
        .end()
}
