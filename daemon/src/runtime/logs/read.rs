//! Reading a log, and waiting for more of it.

use std::io::{self, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::inotify;
use tokio::fs::File;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncSeekExt, BufReader, Interest};
use tokio::sync::mpsc;
use tranship_proto::v1::LogChunk;

use super::super::error::LogError;
use super::super::find;
use super::super::paths::ContainerPaths;
use super::super::sys;
use super::record::{self, MAX_RECORD_BYTES};
use super::tail;

/// Chunks that wait for a slow reader; at 16 KiB each they are 1 MiB.
const WAITING_CHUNKS: usize = 64;

/// Read from the file at once.
const READ_BYTES: usize = 64 << 10;

/// How often a follower looks whether there is still somebody who could write: a monitor that was killed says nothing.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Which part of a log is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Number of lines from the end; none is all.
    pub tail: Option<u64>,
    /// Go on with what is written later, until the container has ended.
    pub follow: bool,
}

/// The log of a container in chunks, oldest first; the channel ends with the log. A container that has written
/// nothing, or has none yet, has an empty log. Dropping the receiver ends the reading.
///
/// # Errors
/// The log cannot be opened; an error later on arrives in the channel, as its last item.
pub async fn read(
    paths: &ContainerPaths,
    options: LogOptions,
) -> Result<mpsc::Receiver<Result<LogChunk, LogError>>, LogError> {
    let (sender, receiver) = mpsc::channel(WAITING_CHUNKS);
    // Watched before it is read, so that nothing falls in between.
    let watch = if options.follow {
        Some(Watch::of(paths)?)
    } else {
        None
    };
    // The monitor makes the log before anything runs.
    let Some(file) = open(paths, options).await? else {
        return Ok(receiver);
    };
    let reader = Reader {
        paths: paths.clone(),
        input: BufReader::with_capacity(READ_BYTES, file),
        line: Vec::new(),
    };
    tokio::spawn(async move {
        if let Err(error) = reader.run(watch, &sender).await {
            sender.send(Err(error)).await.ok();
        }
    });
    Ok(receiver)
}

async fn open(paths: &ContainerPaths, options: LogOptions) -> Result<Option<File>, LogError> {
    let path = paths.log();
    let failed = |source| LogError::Read {
        path: path.clone(),
        source,
    };
    let mut file = match File::open(&path).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if let Some(lines) = options.tail {
        let length = file.metadata().await.map_err(failed)?.len();
        let copy = file.try_clone().await.map_err(failed)?.into_std().await;
        let start = tokio::task::spawn_blocking(move || tail::start_of_last(&copy, length, lines))
            .await
            .map_err(|error| failed(io::Error::other(error)))?
            .map_err(failed)?;
        file.seek(SeekFrom::Start(start)).await.map_err(failed)?;
    }
    Ok(Some(file))
}

struct Reader {
    paths: ContainerPaths,
    input: BufReader<File>,
    /// The record that is being read; empty while a too long one is skipped.
    line: Vec<u8>,
}

type Sender = mpsc::Sender<Result<LogChunk, LogError>>;

impl Reader {
    async fn run(mut self, watch: Option<Watch>, to: &Sender) -> Result<(), LogError> {
        loop {
            // Asked before reading: what was written before the end is then in what is read.
            let over = watch.is_none() || self.is_over();
            self.read_to_end(to).await?;
            match &watch {
                Some(watch) if !over && !to.is_closed() => watch.changed(to).await?,
                _ => return Ok(()),
            }
        }
    }

    /// Whether nobody will write any more.
    fn is_over(&self) -> bool {
        match (find::exit_status(&self.paths), find::record(&self.paths)) {
            (Ok(None), Ok(Some(record))) => !record.monitor.is_alive(),
            _ => true,
        }
    }

    async fn read_to_end(&mut self, to: &Sender) -> Result<(), LogError> {
        let mut byte_count = 1;
        let mut buffer = vec![0; READ_BYTES];
        while byte_count > 0 {
            let failed = |source| LogError::Read {
                path: self.paths.log(),
                source,
            };
            byte_count = self.input.read(&mut buffer).await.map_err(failed)?;
            for part in buffer[..byte_count].split_inclusive(|&byte| byte == b'\n') {
                if self.line.len() + part.len() <= MAX_RECORD_BYTES {
                    self.line.extend_from_slice(part);
                }
                if part.ends_with(b"\n") {
                    let chunk = record::decode(&self.line);
                    self.line.clear();
                    if let Some(chunk) = chunk
                        && to.send(Ok(chunk)).await.is_err()
                    {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }
}

/// Tells when something in the bundle changes: more in the log, or the record of the end.
struct Watch {
    inotify: AsyncFd<OwnedFd>,
    path: PathBuf,
}

impl Watch {
    fn of(paths: &ContainerPaths) -> Result<Self, LogError> {
        let path = paths.bundle.clone();
        let watch = || {
            let inotify = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
            let flags = inotify::WatchFlags::MODIFY
                | inotify::WatchFlags::MOVED_TO
                | inotify::WatchFlags::DELETE_SELF;
            inotify::add_watch(&inotify, &path, flags)?;
            sys::watch(inotify, Interest::READABLE)
        };
        match watch() {
            Ok(inotify) => Ok(Self { inotify, path }),
            Err(source) => Err(LogError::Watch { path, source }),
        }
    }

    /// Returns at the next change, after some seconds, or when nobody listens any more.
    async fn changed(&self, to: &Sender) -> Result<(), LogError> {
        let failed = |source| LogError::Watch {
            path: self.path.clone(),
            source,
        };
        tokio::select! {
            ready = self.inotify.readable() => {
                let mut ready = ready.map_err(failed)?;
                let mut events = [0; 4096];
                // What changed does not matter; that the queue is empty does.
                while ready.try_io(|fd| Ok(rustix::io::read(fd, &mut events)?)).is_ok_and(|read| read.is_ok()) {}
                Ok(())
            }
            () = tokio::time::sleep(LOOK_AGAIN) => Ok(()),
            () = to.closed() => Ok(()),
        }
    }
}
