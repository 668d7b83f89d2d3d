//! `volume` and `image`.

use std::fs;

use anyhow::{Context, Result, ensure};
use tranship_tests::command;
use tranship_tests::images;
use tranship_tests::testbed::Host;

use super::{begin, failed, words};

#[test]
fn volumes_and_images_come_and_go_unless_they_are_in_use() -> Result<()> {
    let scenario = begin()?;
    let a = scenario.host("a")?;
    volumes(a)?;
    imports(a)?;
    scenario.end()
}

fn volumes(a: &Host) -> Result<()> {
    ensure!(
        a.tranship(&["volume", "create", "--label", "for=tests", "data"])? == "data",
        "volume create"
    );
    let volume = a.tranship_json(&["volume", "inspect", "data"])?;
    ensure!(
        volume["name"] == "data" && volume["labels"]["for"] == "tests" && volume["driver"] == "overlay",
        "inspect: {volume:#}"
    );
    let place = volume["mountpoint"].as_str().context("it has a mountpoint")?;
    a.tranship(&words(
        "run --rm --network none -v data:/data busybox sh -c",
        "@echo kept >/data/file",
    ))?;
    ensure!(
        fs::read_to_string(a.path(place).join("file"))? == "kept\n",
        "the volume's file"
    );
    a.tranship(&words(
        "run -d",
        "--name user --network none -v data:/data busybox sleep 86400",
    ))?;
    ensure!(
        a.exec("user", &["cat", "/data/file"])? == "kept",
        "a second container reads something else"
    );
    let listed = a.tranship(&["volume", "ls"])?;
    ensure!(
        listed.contains("data") && listed.contains("user"),
        "volume ls:\n{listed}"
    );
    failed(&a.try_tranship(&["volume", "rm", "data"])?, 1, "user")?;
    failed(&a.try_tranship(&["image", "rm", "busybox"])?, 1, "user")?;
    a.tranship(&["rm", "-f", "user"])?;
    ensure!(a.tranship(&["volume", "rm", "data"])? == "data", "volume rm");
    failed(
        &a.try_tranship(&["volume", "inspect", "data"])?,
        1,
        "no volume data",
    )?;
    ensure!(
        a.tranship(&["-q", "volume", "ls"])?.is_empty(),
        "volume ls after rm"
    );
    Ok(())
}

/// The same root file system, as a directory and as a tar.
fn imports(a: &Host) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let archive = images::archive("busybox")?;
    command::succeed(
        command::command("tar", ["-xf"])
            .arg(&archive)
            .arg("-C")
            .arg(folder.path()),
        command::SHORT,
    )?;
    fs::write(folder.path().join("made"), "from a directory\n")?;
    let from = folder.path().to_string_lossy().into_owned();
    failed(
        &a.try_tranship(&["image", "import", &from])?,
        2,
        "no name of its own",
    )?;
    a.tranship(&["image", "import", "-c", "CMD cat /made", &from, "folder:1"])?;
    let cat = a.tranship(&words("run --rm --network none", "folder:1"))?;
    ensure!(cat == "from a directory", "the image of a directory says {cat:?}");
    a.tranship(&["image", "import", &archive.to_string_lossy(), "again:latest"])?;
    let listed = a.tranship(&["image", "ls"])?;
    for name in ["busybox", "folder:1", "again"] {
        ensure!(listed.contains(name), "image ls does not show {name}:\n{listed}");
    }
    a.tranship(&["image", "rm", "folder:1", "again:latest"])?;
    let listed = a.tranship(&["image", "ls"])?;
    ensure!(
        !listed.contains("folder") && !listed.contains("again"),
        "image ls after rm:\n{listed}"
    );
    failed(&a.try_tranship(&["image", "rm", "folder:1"])?, 1, "folder:1")?;
    failed(&a.try_tranship(&words("run -d", "folder:1"))?, 125, "folder:1")?;
    // The layer that both had is still the other's.
    a.tranship(&words("run --rm --network none", "busybox true"))?;
    Ok(())
}
