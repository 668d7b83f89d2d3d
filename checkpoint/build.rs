//! Builds the library that the relay loads into CRIU, from `src/sys/view/preload.rs`, for `src/sys/view` to embed.
//!
//! It is built here and not as a crate of its own because it must not carry the standard library: every program that
//! CRIU starts would have to find that library's own dependencies.

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    let variable = |name: &str| env::var_os(name).ok_or_else(|| format!("cargo has not set {name}"));
    println!("cargo::rerun-if-changed=src/sys/view");
    let library = PathBuf::from(variable("OUT_DIR")?).join("view.so");
    let mut rustc = Command::new(variable("RUSTC")?);
    rustc
        .args([
            "--edition",
            "2024",
            "--crate-name",
            "view",
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
    let status = rustc
        .arg("-o")
        .arg(&library)
        .arg("src/sys/view/preload.rs")
        .status()?;
    if !status.success() {
        return Err(format!("src/sys/view/preload.rs cannot be built: {status}").into());
    }
    Ok(())
}
