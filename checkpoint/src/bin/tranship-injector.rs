//! Takes userfaultfds out of processes: started by `transhipd`, finishes what it has begun when that is killed. What it does is in
//! the library, at `memory::injector`.

use std::process::ExitCode;

fn main() -> ExitCode {
    tranship_checkpoint::memory::injector::run()
}
