//! Images: import, ls, rm.

use std::io::{self, Read};

use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use tranship_proto::ids::Digest;
use tranship_proto::v1::{
    Empty, Image, ImportImageRequest, ImportImageStart, ListImagesReply, NameRequest, import_image_request,
};
use tranship_storage_drivers::driver::DriverError;

use super::status::{self, Coded};
use crate::daemon::Daemon;
use crate::image::{self, ImportError, ImportOptions, NameError, Removal};
use crate::registry::RegistryError;

/// Pieces of an archive between the client and the importer.
const WAITING_PIECES: usize = 16;

/// Why an image is not imported or removed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The archive is none, or cannot be kept.
    #[error("the image was not imported")]
    Import(#[from] ImportError),
    /// No such image, or it is in use.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A layer of a removed image.
    #[error("the image is removed, but one of its layers is not")]
    Layer(#[from] DriverError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

pub async fn import(daemon: &Daemon, mut requests: Streaming<ImportImageRequest>) -> Result<Image, Status> {
    let start = first(&mut requests).await?;
    let options = ImportOptions::parse(&start.name, &start.changes);
    let options = options.map_err(|error| status::of(&ImageError::from(error)))?;
    let (pieces, archive) = mpsc::channel(WAITING_PIECES);
    let keeping = status::to_its_end(import_and_keep(daemon.clone(), options, Archive::new(archive)));
    let (kept, ()) = tokio::join!(keeping, pass_on(requests, pieces));
    kept
}

pub async fn list(daemon: &Daemon) -> Result<ListImagesReply, Status> {
    let images = daemon
        .registry
        .images()
        .list()
        .await
        .map_err(|error| status::of(&error))?;
    Ok(ListImagesReply { images })
}

pub async fn remove(daemon: &Daemon, request: NameRequest) -> Result<Empty, Status> {
    status::to_its_end(remove_named(daemon.clone(), request.name)).await?;
    Ok(Empty {})
}

async fn first(requests: &mut Streaming<ImportImageRequest>) -> Result<ImportImageStart, Status> {
    match requests.message().await? {
        Some(ImportImageRequest {
            part: Some(import_image_request::Part::Start(start)),
        }) => Ok(start),
        _ => Err(Status::invalid_argument(
            "the first request of an import must carry its start",
        )),
    }
}

async fn import_and_keep(
    daemon: Daemon,
    options: ImportOptions,
    archive: Archive,
) -> Result<Image, ImageError> {
    let _changing = daemon.images_changing.lock().await;
    let (storage, spool) = (daemon.storage.clone(), daemon.paths.state_dir().to_owned());
    let imported = crate::blocking::run(move || {
        let driver = storage.default_driver();
        image::import(archive, &options, driver.as_ref(), &spool)
    });
    let image = imported.await?;
    daemon.registry.images().put(image.clone()).await?;
    let digest = image.digest.parse::<Digest>().ok();
    let kept = match digest {
        Some(digest) => daemon.registry.images().get(&digest).await?,
        None => None,
    };
    // With all its names, those of earlier imports too.
    Ok(kept.unwrap_or(image))
}

async fn remove_named(daemon: Daemon, name: String) -> Result<(), ImageError> {
    let _changing = daemon.images_changing.lock().await;
    let images = daemon.registry.images();
    let containers = daemon.registry.containers().list().await?;
    let users: Vec<_> = containers
        .iter()
        .map(|record| (record.image_digest.to_string(), record.name.to_string()))
        .collect();
    match image::plan_removal(&images.list().await?, &users, &name)? {
        Removal::Name(name) => {
            images.remove_name(&name).await?;
        }
        Removal::Image { digest, layers } => {
            images.remove(&digest).await?;
            let driver = daemon.storage.default_driver();
            crate::blocking::run(move || {
                layers
                    .iter()
                    .try_for_each(|layer| driver.remove_layer(layer).map(|_outcome| ()))
            })
            .await?;
        }
    }
    Ok(())
}

/// A piece of the archive, its proper end, or why there will be no more.
type Piece = io::Result<Option<Vec<u8>>>;

/// Ends with the archive, or as soon as the importer wants no more of it.
async fn pass_on(mut requests: Streaming<ImportImageRequest>, pieces: mpsc::Sender<Piece>) {
    loop {
        let piece = match requests.message().await {
            Ok(Some(ImportImageRequest {
                part: Some(import_image_request::Part::Data(bytes)),
            })) => Ok(Some(bytes)),
            Ok(Some(_)) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a request of the import carries no data",
            )),
            Ok(None) => Ok(None),
            Err(status) => Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                status.message().to_owned(),
            )),
        };
        let is_last = !matches!(piece, Ok(Some(_)));
        if pieces.send(piece).await.is_err() || is_last {
            return;
        }
    }
}

/// The archive as the importer reads it, on a thread that may block. A client that goes away is an error, not the end.
struct Archive {
    pieces: mpsc::Receiver<Piece>,
    current: io::Cursor<Vec<u8>>,
    ended: bool,
}

impl Archive {
    fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Self {
            pieces,
            current: io::Cursor::default(),
            ended: false,
        }
    }
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.current.read(buffer)?;
            if read > 0 || self.ended || buffer.is_empty() {
                return Ok(read);
            }
            let gone = || io::Error::new(io::ErrorKind::UnexpectedEof, "the client went away");
            match self.pieces.blocking_recv().ok_or_else(gone)?? {
                Some(piece) => self.current = io::Cursor::new(piece),
                None => self.ended = true,
            }
        }
    }
}

impl Coded for ImageError {
    fn code(&self) -> tonic::Code {
        match self {
            Self::Import(error) => import_code(error),
            Self::Name(NameError::Unknown(_)) => tonic::Code::NotFound,
            Self::Name(NameError::Ambiguous { .. }) => tonic::Code::InvalidArgument,
            Self::Name(_) => tonic::Code::FailedPrecondition,
            Self::Layer(error) => error.code(),
            Self::Registry(error) => error.code(),
        }
    }
}

/// Whose fault it is: mostly the archive's.
fn import_code(error: &ImportError) -> tonic::Code {
    match error {
        ImportError::Driver(error) => error.code(),
        ImportError::Spool { .. } => tonic::Code::Internal,
        _ => tonic::Code::InvalidArgument,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: Vec<Piece>) -> io::Result<Vec<u8>> {
        let (sender, receiver) = mpsc::channel(8);
        pieces
            .into_iter()
            .for_each(|piece| sender.try_send(piece).unwrap());
        drop(sender);
        let mut all = Vec::new();
        Archive::new(receiver).read_to_end(&mut all).map(|_| all)
    }

    #[test]
    fn pieces_are_read_as_one_and_empty_ones_are_no_end() {
        let pieces = vec![
            Ok(Some(b"ab".to_vec())),
            Ok(Some(Vec::new())),
            Ok(Some(b"c".to_vec())),
            Ok(None),
        ];
        assert_eq!(read(pieces).unwrap(), b"abc");
    }

    #[test]
    fn a_client_that_goes_away_in_the_middle_is_an_error() {
        let error = read(vec![Ok(Some(b"ab".to_vec()))]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let reset = io::Error::from(io::ErrorKind::ConnectionAborted);
        assert!(read(vec![Ok(Some(b"ab".to_vec())), Err(reset)]).is_err());
    }
}
