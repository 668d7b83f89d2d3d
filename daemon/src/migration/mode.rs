//! How memory leaves this host, and why not better.

use std::path::Path;

use tranship_checkpoint::criu::probe::{loads_view, tracks_dirty};
use tranship_checkpoint::memory::supported;
use tranship_migrate::host::MemoryMode;

use crate::config::{Config, MemoryWish};

/// Pages that CRIU takes into its images as well would be there twice, and of two moments.
pub const NO_VIEW: &str = "CRIU does not load the library that hides memory from it";

/// The best that kernel and CRIU can do and the configuration allows. CRIU is asked anew each time, so that a newer one needs no
/// restart.
pub async fn of_this_host(config: &Config) -> MemoryMode {
    match config.memory {
        MemoryWish::Auto => match not_live(&config.criu).await {
            None => MemoryMode::Live,
            Some(why) => second_best(&config.criu, why).await,
        },
        MemoryWish::PreDump => second_best(&config.criu, "the configuration asks for it".to_owned()).await,
        MemoryWish::StopAndCopy => MemoryMode::StopAndCopy("the configuration asks for it".to_owned()),
    }
}

/// What there is where memory cannot move live, because of this.
pub async fn second_best(criu: &Path, why: String) -> MemoryMode {
    match tracks_dirty(criu).await {
        Ok(true) => MemoryMode::PreDump(why),
        Ok(false) => MemoryMode::StopAndCopy(format!(
            "{why}, and CRIU finds no soft-dirty pages in this kernel"
        )),
        Err(error) => MemoryMode::StopAndCopy(format!("{} cannot be run: {error}", criu.display())),
    }
}

async fn not_live(criu: &Path) -> Option<String> {
    if let Err(error) = supported() {
        return Some(error.to_string());
    }
    match loads_view(criu).await {
        Ok(true) => None,
        Ok(false) => Some(NO_VIEW.to_owned()),
        Err(error) => Some(format!("{} cannot be run: {error}", criu.display())),
    }
}
