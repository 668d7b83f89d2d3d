//! Builds the libraries that the relay loads into CRIU, for the modules of `src/sys` to embed.
//!
//! They are built here and not as crates of their own because they must not carry the standard library: every program
//! that CRIU starts would have to find that library's own dependencies.

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

/// Libraries to build, each from `src/sys/NAME/preload.rs`.
const LIBRARIES: [&str; 2] = ["undo", "view"];

fn main() -> Result<(), Box<dyn Error>> {
    for name in LIBRARIES {
        build(name)?;
    }
    Ok(())
}

fn build(name: &str) -> Result<(), Box<dyn Error>> {
    let variable = |name: &str| env::var_os(name).ok_or_else(|| format!("cargo has not set {name}"));
    let source = format!("src/sys/{name}/preload.rs");
    println!("cargo::rerun-if-changed=src/sys/{name}");
    let library = PathBuf::from(variable("OUT_DIR")?).join(format!("{name}.so"));
    let mut rustc = Command::new(variable("RUSTC")?);
    rustc
        .args([
            "--edition",
            "2024",
            "--crate-name",
            name,
            "--crate-type",
            "cdylib",
        ])
        .arg("--target")
        .arg(variable("TARGET")?)
        .args(["-C", "panic=abort", "-C", "opt-level=2", "-C", "strip=symbols"])
        // Compiled together with what it uses of `core`, whose own code would want to unwind.
        .args(["-C", "lto=fat"])
        .args(["-C", "link-args=-nostartfiles -lc", "-D", "warnings"]);
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut argument = std::ffi::OsString::from("linker=");
        argument.push(linker);
        rustc.arg("-C").arg(argument);
    }
    let status = rustc.arg("-o").arg(&library).arg(&source).status()?;
    if !status.success() {
        return Err(format!("{source} cannot be built: {status}").into());
    }
    Ok(())
}
