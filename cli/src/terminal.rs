//! The terminal of `exec -t`: raw while the command runs, and its size handed on.

use std::io::{self, IsTerminal};

use rustix::termios::{self, OptionalActions, Termios};
use tranship_proto::v1::TerminalSize;

/// Stdin in raw mode; as it was before when dropped.
#[derive(Debug)]
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Hands keys on as they are typed, Ctrl-C too.
    ///
    /// # Errors
    /// Stdin is no terminal.
    pub fn enter() -> io::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // The terminal is gone if this fails.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Whether stdin is one.
pub fn is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Rows and columns of the terminal, if there is one.
pub fn size() -> Option<TerminalSize> {
    let size = termios::tcgetwinsize(io::stdout())
        .or_else(|_| termios::tcgetwinsize(io::stdin()))
        .ok()?;
    Some(TerminalSize {
        rows: size.ws_row.into(),
        columns: size.ws_col.into(),
    })
}
