//! Fills the memory of a restored container: started by `transhipd`, outlives it. What it does is in the library, at
//! `memory::fill`.

use std::process::ExitCode;

fn main() -> ExitCode {
    tranship_checkpoint::memory::fill::program::run()
}
