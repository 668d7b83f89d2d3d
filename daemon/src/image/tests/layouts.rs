//! Archives of images: several layers, documents and digests.

use std::fs;
use std::path::Path;

use serde_json::json;
use tar::EntryType;

use super::Store;
use super::archives::{Oci, Tar, configuration, docker, gzip, hex, zstd};
use crate::image::{ImageConfig, host_architecture};

fn plain(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

/// Three layers of which the upper two take things away.
fn layers() -> Vec<Vec<u8>> {
    let lowest = Tar::new()
        .file("bin/run", "v1")
        .file("etc/old", "x")
        .file("etc/kept", "x")
        .file("data/a", "lower")
        .file("data/sub/b", "lower")
        .file("remade/lower", "x")
        .link(EntryType::Symlink, "sh", "bin/run");
    let middle = Tar::new()
        .file("bin/run", "v2")
        .file("etc/.wh.old", "")
        .file("data/new", "middle")
        .file("data/.wh..wh..opq", "")
        .file(".wh.sh", "");
    // A directory that was removed and made again, told in either order; and notes that aufs left.
    let upper = Tar::new()
        .file(".wh.remade", "")
        .file("remade/upper", "x")
        .file("etc/kept", "again")
        .file("etc/.wh.kept", "")
        .file(".wh..wh.aufs", "");
    vec![lowest.end(), middle.end(), upper.end()]
}

fn listing(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                left.push(path);
            } else {
                found.push(format!("{name}={}", fs::read_to_string(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

const SEEN: [&str; 4] = [
    "bin/run=v2",
    "data/new=middle",
    "etc/kept=again",
    "remade/upper=x",
];

#[test]
fn upper_layers_hide_what_they_took_away() {
    let layers = layers();
    for (kind, archive) in [
        ("oci", Oci::of(&layers, gzip).end()),
        ("oci, zstd", Oci::of(&layers, zstd).end()),
        ("oci, all of it packed", gzip(&Oci::of(&layers, plain).end())),
        ("docker", docker(&layers, &["web:1"])),
        ("docker, packed layers", docker_with_packed_layers(&layers)),
    ] {
        let store = Store::new();
        let image = store
            .import(&archive)
            .unwrap_or_else(|error| panic!("{kind}: {}", super::chain(&error)));
        let ids: Vec<_> = layers
            .iter()
            .map(|layer| format!("sha256:{}", hex(layer)))
            .collect();
        assert_eq!(image.layers, ids, "{kind}");
        assert_eq!(
            image.size_bytes,
            layers.iter().map(|layer| layer.len() as u64).sum::<u64>(),
            "{kind}"
        );
        assert_eq!(store.in_rootfs(&image, listing), SEEN, "{kind}");
        assert_eq!(image.created_ms, 1_706_933_106_000, "{kind}");
        assert_eq!(ImageConfig::of(&image).unwrap().cmd, ["/bin/run"], "{kind}");
    }
}

/// Podman's form: the configuration speaks of the uncompressed layers, the archive has them compressed.
fn docker_with_packed_layers(layers: &[Vec<u8>]) -> Vec<u8> {
    let config = configuration(layers).to_string();
    let config_name = format!("{}.json", hex(config.as_bytes()));
    let mut tar = Tar::new();
    let mut names = Vec::new();
    for layer in layers {
        let name = format!("{}.tar", hex(layer));
        tar = tar.file(&name, gzip(layer));
        names.push(name);
    }
    let manifest = json!([{"Config": config_name, "RepoTags": null, "Layers": names}]);
    tar.file(&config_name, &config)
        .file("manifest.json", manifest.to_string())
        .end()
}

#[test]
fn layers_that_are_there_are_not_extracted_again_but_checked_again() {
    let store = Store::new();
    let layers = layers();
    let first = store.import(&Oci::of(&layers, gzip).end()).unwrap();
    assert_eq!(store.import(&Oci::of(&layers, gzip).end()).unwrap(), first);
    let mut oci = Oci::of(&layers, gzip);
    let blob = oci.blobs.get_mut(&hex(&gzip(&layers[1]))).unwrap();
    *blob = gzip(&layers[0]);
    let error = super::chain(&store.import(&oci.end()).unwrap_err());
    assert!(
        error.starts_with("layer 2 as it is in the archive is sha256:"),
        "{error}"
    );
}

#[test]
fn the_digest_of_an_image_is_that_of_its_manifest_and_names_are_the_archives_or_the_users() {
    let store = Store::new();
    let layers = vec![Tar::new().file("a", "b").end()];
    let mut oci = Oci::of(&layers, gzip);
    let digest = oci.manifests[0]["digest"].as_str().unwrap().to_owned();
    oci.manifests[0]["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    let image = store.import(&oci.end()).unwrap();
    assert_eq!(
        (image.digest, image.names),
        (digest.clone(), vec![]),
        "a tag alone is no name"
    );
    oci.manifests[0]["annotations"]["io.containerd.image.name"] = json!("docker.io/library/web:2");
    assert_eq!(store.import(&oci.end()).unwrap().names, ["web:2"]);
    let named = store.import_as(&oci.end(), "mine", &[]).unwrap();
    assert_eq!(
        (named.names, named.digest),
        (vec!["mine:latest".to_owned()], digest)
    );

    let saved = docker(&layers, &["web:1", "docker.io/team/web:latest"]);
    assert_eq!(store.import(&saved).unwrap().names, ["web:1", "team/web:latest"]);
    let error = store.import_as(&saved, "", &["CMD x"]).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("an image archive brings its configuration"),
        "{error}"
    );
}

#[test]
fn of_several_platforms_this_hosts_is_taken() {
    let store = Store::new();
    let layers = vec![Tar::new().file("a", "here").end()];
    let foreign = vec![Tar::new().file("a", "elsewhere").end()];
    let mut oci = Oci::default();
    let platform = |architecture: &str| json!({"os": "linux", "architecture": architecture});
    let mut mine = oci.image(&configuration(&layers), &layers, gzip);
    mine["platform"] = platform(host_architecture());
    let mut config = configuration(&foreign);
    config["architecture"] = json!("s390x");
    let mut other = oci.image(&config, &foreign, gzip);
    other["platform"] = platform("s390x");
    let mut attestation = other.clone();
    attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    let inner = json!({"schemaVersion": 2, "manifests": [other, mine, attestation]});
    let index = oci.blob(
        inner.to_string().into_bytes(),
        "application/vnd.oci.image.index.v1+json",
    );
    oci.manifests = vec![index];
    let tree = store.tree(&store.import(&oci.end()).unwrap());
    assert_eq!(fs::read_to_string(tree.join("a")).unwrap(), "here");

    oci.manifests = vec![other.clone()];
    let image = store.import(&oci.end()).unwrap();
    assert_eq!(image.architecture, "s390x", "importing is no running");
    oci.manifests = vec![other.clone(), other];
    let error = store.import(&oci.end()).unwrap_err().to_string();
    assert_eq!(
        error,
        "the archive holds 2 images (linux/s390x, linux/s390x): import one at a time"
    );
}

#[test]
fn documents_that_do_not_fit_together_are_refused() {
    let layers = layers();
    let refusal = |archive: &[u8]| Store::new().refusal(archive);

    let mut oci = Oci::default();
    let mut config = configuration(&layers);
    config["rootfs"]["diff_ids"].as_array_mut().unwrap().pop();
    let manifest = oci.image(&config, &layers, gzip);
    oci.manifests.push(manifest);
    assert!(refusal(&oci.end()).contains("has 2 layers and its manifest 3"));

    let mut oci = Oci::of(&layers, gzip);
    let name = oci.manifests[0]["digest"]
        .as_str()
        .unwrap()
        .trim_start_matches("sha256:")
        .to_owned();
    oci.blobs.get_mut(&name).unwrap().push(b' ');
    assert!(refusal(&oci.end()).starts_with("a document is sha256:"));
    oci.blobs.remove(&name);
    assert_eq!(
        refusal(&oci.end()),
        format!("the image archive mentions blobs/sha256/{name} and does not have it")
    );

    let mut oci = Oci::default();
    let mut config = configuration(&layers);
    config["rootfs"]["diff_ids"][0] = json!(format!("sha256:{}", "0".repeat(64)));
    let manifest = oci.image(&config, &layers, gzip);
    oci.manifests.push(manifest);
    let error = refusal(&oci.end());
    assert!(
        error.starts_with("layer 1 is sha256:") && error.ends_with(&"0".repeat(64)),
        "{error}"
    );

    let error = refusal(&Tar::new().file("oci-layout", "{}").end());
    assert!(
        error.ends_with("it has neither index.json nor manifest.json"),
        "{error}"
    );
    let error = refusal(&Tar::new().file("index.json", "[]").end());
    assert!(
        error.starts_with("index.json of the image archive cannot be understood"),
        "{error}"
    );
    let error = refusal(&docker(&[], &[]));
    assert!(error.ends_with("it has no layer"), "{error}");
}
