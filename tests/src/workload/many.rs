//! Many processes, or many threads, each with a little memory that it looks at now and then.

use std::convert::Infallible;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::page::{self, Aligned, PAGES_PER_MIB};

/// Between two looks.
const REST: Duration = Duration::from_secs(1);
/// Pages of a thread.
const THREAD_PAGES: usize = 16;

/// Starts `count` processes of `mib` each and looks after them for ever.
///
/// # Errors
/// One has ended.
pub fn processes(count: usize, mib: usize) -> Result<Infallible> {
    let own = std::env::current_exe().context("cannot tell which program this is")?;
    let start = |_| -> Result<Child> {
        let mut command = Command::new(&own);
        command.args(["process", "--mib", &mib.to_string()]);
        command.spawn().context("cannot start a process")
    };
    let mut children = (0..count).map(start).collect::<Result<Vec<_>>>()?;
    println!("started {count} processes");
    loop {
        for child in &mut children {
            if let Some(status) = child.try_wait()? {
                bail!("process {} ended: {status}", child.id());
            }
        }
        std::thread::sleep(REST);
    }
}

/// One of the processes.
///
/// # Errors
/// A page is not what it has to be, or the process has become another.
pub fn process(mib: usize) -> Result<Infallible> {
    look_for_ever(mib * PAGES_PER_MIB, std::process::id)
}

/// Starts `count` threads and looks after memory of its own for ever.
///
/// # Errors
/// A page is not what it has to be, or a thread has become another.
pub fn threads(count: usize) -> Result<Infallible> {
    for _ in 1..count {
        let builder = std::thread::Builder::new().stack_size(256 << 10);
        builder
            .spawn(|| match look_for_ever(THREAD_PAGES, thread_id) {
                Ok(never) => match never {},
                Err(error) => super::end_with(&error),
            })
            .context("cannot start a thread")?;
    }
    println!("started {count} threads");
    look_for_ever(THREAD_PAGES, thread_id)
}

fn thread_id() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()
}

fn look_for_ever(count: usize, id: impl Fn() -> u32) -> Result<Infallible> {
    let own = id();
    let stamp = |index: usize| u64::from(own) << 32 | index as u64;
    let mut pages: Vec<Aligned> = page::untouched(count);
    for (index, page) in pages.iter_mut().enumerate() {
        page::stamp(&mut page.0, stamp(index));
    }
    loop {
        for (index, page) in pages.iter().enumerate() {
            let wrong = page::first_wrong(&page.0, stamp(index));
            ensure!(wrong.is_none(), "{own}: word {wrong:?} of page {index} is wrong");
        }
        ensure!(id() == own, "{own} has become {}", id());
        std::thread::sleep(REST);
    }
}
