//! `transhipd`: the daemon of one host.

fn main() -> std::process::ExitCode {
    tranship_daemon::program::main()
}
