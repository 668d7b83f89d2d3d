//! How memory leaves this host, and why not better.

use std::path::Path;

use tranship_checkpoint::criu::probe::loads_view;
use tranship_checkpoint::memory::supported;
use tranship_migrate::host::MemoryMode;

/// Pages that CRIU takes into its images as well would be there twice, and of two moments.
pub const NO_VIEW: &str = "CRIU does not load the library that hides memory from it";

/// What kernel and CRIU can do. CRIU is asked anew each time, so that a newer one needs no restart.
pub async fn of_this_host(criu: &Path) -> MemoryMode {
    if let Err(error) = supported() {
        return MemoryMode::StopAndCopy(error.to_string());
    }
    match loads_view(criu).await {
        Ok(true) => MemoryMode::Live,
        Ok(false) => MemoryMode::StopAndCopy(NO_VIEW.to_owned()),
        Err(error) => MemoryMode::StopAndCopy(format!("{} cannot be run: {error}", criu.display())),
    }
}
