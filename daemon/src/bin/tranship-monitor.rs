//! The monitor of one container: started by `transhipd`, outlives it. What it does is in the library, at
//! `runtime::monitor`.

use std::process::ExitCode;

fn main() -> ExitCode {
    tranship_daemon::runtime::monitor::program::run()
}
