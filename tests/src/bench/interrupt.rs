//! Ctrl-C. The bench then ends at its next step, so that everything it made is taken down on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

/// Whether somebody wants the bench to end.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens for SIGINT and SIGTERM from now on.
    ///
    /// # Errors
    /// The kernel refuses the handlers.
    pub fn listen() -> Result<Self> {
        let interrupt = Self::default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("cannot listen for signals")?;
        let (mut int, mut term) = {
            let _inside = runtime.enter();
            (
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
            )
        };
        let flag = interrupt.0.clone();
        std::thread::spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
                    flag.store(true, Ordering::Relaxed);
                    eprintln!("bench: ending; everything is taken down first");
                }
            });
        });
        Ok(interrupt)
    }

    /// To be called between steps.
    ///
    /// # Errors
    /// A signal has come.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }
}
