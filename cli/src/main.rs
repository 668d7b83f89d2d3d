//! `tranship`: parses, calls the daemon, prints.
//!
//! A verb of the command line is a file in [`commands`]; [`connect`] reaches the daemon, [`output`] prints, [`failure`] knows
//! the exit codes. Data goes to stdout, talk to stderr.

mod commands;
mod connect;
mod failure;
mod json;
mod output;
mod tarball;
mod terminal;
mod units;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::commands::Arguments;
use crate::failure::{DAEMON_FAILED, is_run_or_exec};

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("tranship: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = match runtime.block_on(commands::dispatch(arguments)) {
        Ok(code) => code,
        Err(failure) => {
            failure.print();
            failure.exit_code()
        }
    };
    // A read of the terminal may still be under way and would hold up an orderly end.
    runtime.shutdown_timeout(Duration::ZERO);
    ExitCode::from(code)
}

/// Help and version are answers; anything else is exit code 2, or Docker's 125 for `run` and `exec`.
fn usage(error: &clap::Error) -> ExitCode {
    // Where stdout or stderr is closed there is nobody to tell.
    let _ = error.print();
    match error.exit_code() {
        0 => ExitCode::SUCCESS,
        _ if is_run_or_exec(std::env::args().skip(1)) => ExitCode::from(DAEMON_FAILED),
        _ => ExitCode::from(2),
    }
}
