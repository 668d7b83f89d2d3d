//! Whether a tree that runs on a peer's CPU can go on running on this one.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::probe::run_criu;

/// What is compared: `fpu`, because the saved register state must be loadable here (every state component there must
/// exist here, and the save area must have the same size: the C library has measured it), and `ins`, because programs
/// have chosen their instructions at their start. `cpu` would demand the very same model and would refuse moves
/// between hosts that differ in nothing a program can use.
const CAPABILITIES: &str = "--cpu-cap=fpu,ins";

/// The same in CRIU's RPC (`cr_options.h`): a dump with them describes the CPU in its images, and a restore with them wants
/// a description there, and refuses when it is of a CPU that can do more than this one.
pub const CAPABILITY_BITS: u64 = CAP_FPU | CAP_INS | CAP_IMAGE;
const CAP_FPU: u64 = 1;
const CAP_INS: u64 = 4;
/// Without it nothing is written and nothing compared; the command line sets it by itself.
const CAP_IMAGE: u64 = 8;

/// Name of the file that CRIU writes and reads, alone or among the images of a dump.
pub const FILE_NAME: &str = "cpuinfo.img";

/// Largest description that is accepted from a peer; a real one has some hundred bytes.
pub const MAX_CPUINFO: usize = 64 * 1024;

/// How long CRIU may take: it reads CPUID and one small file.
const LIMIT: Duration = Duration::from_secs(10);

/// Why this host's CPU is not known to be good enough.
#[derive(Debug, thiserror::Error)]
pub enum CpuMismatch {
    /// It lacks something.
    #[error("this host's CPU lacks what the peer's has: {}", lines.join("; "))]
    Lacking {
        /// What CRIU says.
        lines: Vec<String>,
    },
    /// The peer's description is too long to be one.
    #[error("a CPU description of {bytes} bytes is over the limit of {MAX_CPUINFO}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The comparison could not be made.
    #[error("the CPUs could not be compared: {0}")]
    Unknown(#[from] CpuError),
}

/// Why CRIU could not describe or compare a CPU.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// CRIU could not be run to its end.
    #[error("criu cpuinfo: {0}")]
    Run(#[source] io::Error),
    /// The file between this process and CRIU could not be used.
    #[error("the file of the CPU description cannot be used: {0}")]
    File(#[source] io::Error),
    /// CRIU refused.
    #[error("criu cpuinfo dump failed: {}", lines.join("; "))]
    Dump {
        /// What it says.
        lines: Vec<String>,
    },
}

/// This host's CPU as `criu` describes it, for [`cpuinfo_check`] on a peer.
pub async fn cpuinfo_dump(criu: &Path) -> Result<Vec<u8>, CpuError> {
    let directory = Scratch::new().map_err(CpuError::File)?;
    let (success, lines) = cpuinfo(criu, "dump", &directory).await?;
    if !success {
        return Err(CpuError::Dump { lines });
    }
    std::fs::read(directory.path().join(FILE_NAME)).map_err(CpuError::File)
}

/// Checks that this host's CPU can do all that the described one can.
pub async fn cpuinfo_check(criu: &Path, peer: &[u8]) -> Result<(), CpuMismatch> {
    if peer.len() > MAX_CPUINFO {
        return Err(CpuMismatch::TooLong { bytes: peer.len() });
    }
    let directory = Scratch::new().map_err(CpuError::File)?;
    std::fs::write(directory.path().join(FILE_NAME), peer).map_err(CpuError::File)?;
    match cpuinfo(criu, "check", &directory).await? {
        (true, _) => Ok(()),
        (false, lines) => Err(CpuMismatch::Lacking { lines }),
    }
}

async fn cpuinfo(criu: &Path, action: &str, directory: &Scratch) -> Result<(bool, Vec<String>), CpuError> {
    let path = directory.path();
    let arguments = [
        "cpuinfo",
        action,
        "--images-dir",
        &path.to_string_lossy(),
        CAPABILITIES,
    ];
    run_criu(criu, &arguments, LIMIT).await.map_err(CpuError::Run)
}

/// A directory of one call: the root of a file system that is mounted nowhere and goes with its last descriptor, however this
/// process ends.
struct Scratch(OwnedFd);

impl Scratch {
    fn new() -> io::Result<Self> {
        let made = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(made.as_fd())?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC
            | MountAttrFlags::MOUNT_ATTR_NOSUID;
        Ok(Self(fsmount(
            made.as_fd(),
            FsMountFlags::FSMOUNT_CLOEXEC,
            attributes,
        )?))
    }

    /// Also for another process, as long as this one has it.
    fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}
