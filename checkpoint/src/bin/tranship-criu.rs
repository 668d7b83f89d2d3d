//! What runc finds as `criu`: see `tranship_checkpoint::criu::process`.

use std::ffi::OsString;
use std::process::ExitCode;

use tranship_checkpoint::criu::process::{Settings, run};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match run(&arguments, &Settings::from_environment()) {
        Ok(status) => ExitCode::from(status),
        // Silent on purpose: in a restore the standard streams belong to the container.
        Err(_) => ExitCode::FAILURE,
    }
}
