//! `workload`: what runs in containers under test. It ends only when something is wrong, or when it is ended.

use std::convert::Infallible;
use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tranship_tests::workload::counting::Server;
use tranship_tests::workload::questions::Questions;
use tranship_tests::workload::{self, dirtier, generations, locks, many, remapper};

/// Programs that know what their memory must hold.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    job: Job,
}

/// A job with `--count-port` also answers counted requests there, from a thread of its own.
#[derive(Subcommand)]
enum Job {
    /// Stamp the number of the pass into every page, in order.
    Generations {
        /// Size of the memory.
        #[arg(long)]
        mib: usize,
        /// How much is stamped per second.
        #[arg(long)]
        mib_per_s: f64,
        /// Port for questions.
        #[arg(long)]
        port: u16,
        /// Port for counted requests.
        #[arg(long)]
        count_port: Option<u16>,
    },
    /// Change pages at random.
    Dirtier {
        /// Size of the memory.
        #[arg(long)]
        mib: usize,
        /// How much is changed per second.
        #[arg(long)]
        mib_per_s: f64,
        /// Port for counted requests.
        #[arg(long)]
        count_port: u16,
    },
    /// Map, unmap, move, advise, protect and fork at random.
    Remapper {
        /// The most that is mapped.
        #[arg(long)]
        mib: usize,
        /// What the course follows from.
        #[arg(long)]
        seed: u64,
        /// Port for questions.
        #[arg(long)]
        port: u16,
    },
    /// Only answer counted requests.
    Count {
        /// Port for counted requests.
        #[arg(long)]
        count_port: u16,
    },
    /// Many processes.
    Processes {
        /// How many.
        #[arg(long)]
        count: usize,
        /// Size of each one's memory.
        #[arg(long)]
        mib: usize,
        /// Port for counted requests.
        #[arg(long)]
        count_port: u16,
    },
    /// One of many processes.
    Process {
        /// Size of its memory.
        #[arg(long)]
        mib: usize,
    },
    /// Hold a lock of each kind in each directory.
    HoldLocks {
        /// The directories.
        directories: Vec<PathBuf>,
    },
    /// Say whether a lock can be had: `got` or `refused`.
    TryLock {
        /// flock, posix or ofd.
        kind: String,
        /// The file.
        path: PathBuf,
    },
    /// Make an empty file.
    Touch {
        /// The file.
        path: PathBuf,
    },
    /// End well if there is such a file.
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Many threads.
    Threads {
        /// How many.
        #[arg(long)]
        count: usize,
        /// Port for counted requests.
        #[arg(long)]
        count_port: u16,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().job) {
        Ok(never) => match never {},
        Err(error) => workload::end_with(&error),
    }
}

fn run(job: Job) -> Result<Infallible> {
    match job {
        Job::Generations {
            mib,
            mib_per_s,
            port,
            count_port,
        } => {
            count_port.map_or(Ok(()), count_beside)?;
            generations::run(mib, mib_per_s, &Questions::open(port)?)
        }
        Job::Dirtier {
            mib,
            mib_per_s,
            count_port,
        } => {
            count_beside(count_port)?;
            dirtier::run(mib, mib_per_s)
        }
        Job::Remapper { mib, seed, port } => remapper::run(mib, seed, &Questions::open(port)?),
        Job::Count { count_port } => Server::open(count_port)?.run(),
        Job::Processes {
            count,
            mib,
            count_port,
        } => {
            count_beside(count_port)?;
            many::processes(count, mib)
        }
        Job::HoldLocks { directories } => locks::hold(&directories),
        Job::TryLock { kind, path } => {
            let had = locks::can_be_had(&path, &kind)?;
            println!("{}", if had { "got" } else { "refused" });
            std::process::exit(0);
        }
        Job::Touch { path } => {
            File::create(path)?;
            std::process::exit(0);
        }
        Job::Exists { path } => std::process::exit(i32::from(!path.exists())),
        Job::Process { mib } => many::process(mib),
        Job::Threads { count, count_port } => {
            count_beside(count_port)?;
            many::threads(count)
        }
    }
}

/// A thread that answers counted requests, and ends the process when one was lost.
fn count_beside(port: u16) -> Result<()> {
    let server = Server::open(port)?;
    std::thread::spawn(move || match server.run() {
        Ok(never) => match never {},
        Err(error) => workload::end_with(&error),
    });
    Ok(())
}
