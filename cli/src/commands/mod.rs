//! The verbs, one file each, named as they are typed.
//!
//! [`root`] is the command line as a whole; [`several`] does one thing to many names, as most of Docker's verbs do;
//! [`spec`] reads the words that say what a container gets; [`follow`] sees a migration to its end and [`timeline`]
//! prints one.

mod root;
mod several;

mod completion;
mod exec;
mod follow;
mod host;
mod image;
mod info;
mod inspect;
mod kill;
mod logs;
mod migrate;
mod network;
mod pause;
mod ps;
mod retry;
mod rm;
mod run;
mod spec;
mod stop;
mod timeline;
mod version;
mod volume;
mod wait;

pub use root::{Arguments, dispatch};
