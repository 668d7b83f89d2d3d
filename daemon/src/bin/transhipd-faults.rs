//! `transhipd`, built with `fault-points`: it dies, or fails, where a test has planned that.

fn main() -> std::process::ExitCode {
    tranship_daemon::migration::obey_plans();
    tranship_daemon::program::main()
}
