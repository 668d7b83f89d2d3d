//! `tranship image`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use indicatif::ProgressBar;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tranship_proto::v1::import_image_request::Part;
use tranship_proto::v1::{self, ImportImageRequest, ImportImageStart, ListImagesRequest, NameRequest};

use super::ps::shortened;
use super::root::Session;
use super::several;
use crate::connect::Client;
use crate::failure::Failure;
use crate::output::Columns;
use crate::{tarball, units};

/// Bytes of an archive in one request.
const BLOCK: usize = 256 << 10;

/// Requests under way to the daemon.
const QUEUE: usize = 8;

/// Verbs.
#[derive(clap::Subcommand)]
pub enum Image {
    /// Make an image of a directory or an archive.
    ///
    /// The archive is a root file system, or what `docker save` or an OCI tool wrote; it may be compressed with gzip or
    /// zstd.
    Import {
        /// CMD, ENTRYPOINT, ENV, USER, WORKDIR or STOPSIGNAL, as in a Dockerfile.
        #[arg(short, long, value_name = "INSTRUCTION")]
        change: Vec<String>,
        /// A directory, a file, or `-` for stdin.
        source: String,
        /// NAME[:TAG]; the archive's own names without it.
        #[arg(default_value = "")]
        name: String,
    },
    /// List images.
    Ls,
    /// Remove images, or one name of an image that has several.
    Rm {
        /// Names or digests.
        #[arg(required = true, value_name = "IMAGE")]
        names: Vec<String>,
    },
}

impl Image {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let mut client = session.client().await?;
        match self {
            Self::Import { change, source, name } => {
                let start = ImportImageStart {
                    name,
                    changes: change,
                };
                let progress = session.output.progress("{spinner} {bytes} sent, {bytes_per_sec}");
                let image = import(client, start, source, progress).await?;
                session
                    .output
                    .say(&format!("imported {}", image.names.join(", ")));
                session.output.line(&image.digest)
            }
            Self::Ls => {
                let images = client
                    .list_images(ListImagesRequest {})
                    .await?
                    .into_inner()
                    .images;
                list(session, &images)
            }
            Self::Rm { names } => {
                several::each(session.output, &names, async |name| {
                    client
                        .clone()
                        .remove_image(NameRequest {
                            name: name.to_owned(),
                        })
                        .await?;
                    Ok(name.to_owned())
                })
                .await
            }
        }
    }
}

fn list(session: &Session, images: &[v1::Image]) -> Result<(), Failure> {
    let columns = Columns {
        headings: &["NAME", "IMAGE ID", "CREATED", "SIZE"],
        cells: &|image: &v1::Image| {
            let names = if image.names.is_empty() {
                "<none>".to_owned()
            } else {
                image.names.join(", ")
            };
            let age = units::show_age(image.created_ms);
            vec![
                names,
                short_digest(&image.digest),
                age,
                units::show_bytes(image.size_bytes),
            ]
        },
        key: &|image: &v1::Image| short_digest(&image.digest),
    };
    session.output.list(images, &columns)
}

fn short_digest(digest: &str) -> String {
    shortened(digest.strip_prefix("sha256:").unwrap_or(digest), 12)
}

/// Streams an archive to the daemon while it is being made.
async fn import(
    mut client: Client,
    start: ImportImageStart,
    source: String,
    progress: ProgressBar,
) -> Result<v1::Image, Failure> {
    check(&source, &start.name)?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let call = client.import_image(ReceiverStream::new(receiver));
    let first = sender.clone();
    let produce = async {
        let sink = Sink {
            sender: first,
            progress: progress.clone(),
        };
        sink.sender
            .send(ImportImageRequest {
                part: Some(Part::Start(start)),
            })
            .await
            .map_err(|_| gone())?;
        let produced = tokio::task::spawn_blocking(move || produce(&source, sink)).await;
        produced.map_err(io::Error::other)?
    };
    tokio::pin!(call, produce);
    // `sender` lives until the archive is complete: a source that fails must not look like one that has ended.
    let image = tokio::select! {
        reply = &mut call => reply?,
        produced = &mut produce => match produced {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                return Err(Failure::local("cannot read the image; nothing was imported")(error));
            }
            // A daemon that listens no longer says why in its answer.
            _ => {
                drop(sender);
                call.await?
            }
        },
    };
    progress.finish_and_clear();
    Ok(image.into_inner())
}

fn check(source: &str, name: &str) -> Result<(), Failure> {
    if source == "-" {
        return Ok(());
    }
    let metadata = std::fs::metadata(source).map_err(Failure::local(format!("cannot read {source}")))?;
    if metadata.is_dir() && name.is_empty() {
        let advice =
            format!("a directory has no name of its own: `tranship image import {source} NAME[:TAG]`");
        return Err(Failure::Usage(advice));
    }
    Ok(())
}

fn produce(source: &str, sink: Sink) -> io::Result<()> {
    let mut sink = io::BufWriter::with_capacity(BLOCK, sink);
    if source == "-" {
        copy(&mut io::stdin().lock(), &mut sink)?;
    } else if Path::new(source).is_dir() {
        tarball::write_directory(Path::new(source), &mut sink)?;
    } else {
        copy(&mut File::open(source)?, &mut sink)?;
    }
    sink.flush()
}

fn copy(source: &mut impl Read, sink: &mut impl Write) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    loop {
        match source.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(length) => sink.write_all(&block[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Requests to the daemon as a writer; only for threads that may block.
struct Sink {
    sender: mpsc::Sender<ImportImageRequest>,
    progress: ProgressBar,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let block = &bytes[..bytes.len().min(BLOCK)];
        let request = ImportImageRequest {
            part: Some(Part::Data(block.to_vec())),
        };
        self.sender.blocking_send(request).map_err(|_| gone())?;
        self.progress.inc(block.len() as u64);
        Ok(block.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the daemon listens no longer")
}
