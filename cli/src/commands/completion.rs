//! `tranship completion`.

use clap::CommandFactory;
use clap_complete::Shell;

use super::root::{Arguments, Session};
use crate::failure::Failure;

/// Arguments.
#[derive(clap::Args)]
pub struct Completion {
    /// Which shell.
    shell: Shell,
}

impl Completion {
    pub fn run(self, session: &Session) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "tranship", &mut script);
        session.output.line(String::from_utf8_lossy(&script).trim_end())
    }
}
