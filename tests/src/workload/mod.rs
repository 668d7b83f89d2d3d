//! What is moved: the jobs of the program `workload`, each of which knows what its memory must hold and looks.
//!
//! A job that finds something wrong says so on its standard error, begins the line with `WRONG`, and ends with exit code 1:
//! a container that still runs, and whose log has no such line, has lost nothing so far. [`questions`] lets a test ask
//! for a check at once; [`counting`] is a server whose clients notice every request that was lost or done twice.
//!
//! [`generations`] and [`dirtier`] write pages in order and at random, [`remapper`] changes the map itself, [`many`] has many
//! processes or many threads, [`locks`] holds locks on files.

pub mod counting;
pub mod dirtier;
pub mod generations;
pub mod locks;
pub mod many;
pub mod pace;
pub mod page;
pub mod questions;
pub mod random;
pub mod remapper;

/// Ends the process loudly: from a thread that has nobody to hand an error to.
pub fn end_with(error: &anyhow::Error) -> ! {
    eprintln!("WRONG: {error:#}");
    std::process::exit(1);
}
