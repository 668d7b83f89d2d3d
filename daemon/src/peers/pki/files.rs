//! The certificates and keys on disk.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::issue::{Authority, HostKey, IssueError};
use crate::peers::identity::PeerIdentity;

const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const HOST_CERTIFICATE: &str = "host.pem";
const HOST_KEY: &str = "host.key";

/// What this host shows and believes.
pub struct Pki {
    /// The cluster's authority.
    pub ca: CertificateDer<'static>,
    /// The authority with its key, on the host that began the cluster.
    pub authority: Option<Authority>,
    /// This host's certificate.
    pub host: CertificateDer<'static>,
    /// This host's key.
    pub host_key: PrivateKeyDer<'static>,
}

/// The folder of certificates cannot be used as it is.
#[derive(Debug, thiserror::Error)]
pub enum PkiFileError {
    /// Reading or writing failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Others could have read the key.
    #[error(
        "{} can be read by others than its owner (mode {mode:04o}); if nobody did, make it private with chmod {wanted:04o}",
        path.display()
    )]
    Open {
        /// The file or folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they should be.
        wanted: u32,
    },
    /// The file does not hold what its name says.
    #[error("{} is not a {what} in PEM: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What the parser says.
        problem: String,
    },
    /// The authority cannot be used.
    #[error("cannot use the cluster's authority in {}", path.display())]
    Authority {
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: IssueError,
    },
}

impl Pki {
    /// Reads the folder; `None` where there is none, because this host is in no cluster.
    ///
    /// # Errors
    /// A file is missing or spoiled, or a key can be read by others.
    pub fn load(folder: &Path) -> Result<Option<Self>, PkiFileError> {
        if !folder.try_exists().map_err(io_error("look for", folder))? {
            return Ok(None);
        }
        refuse_open(folder, 0o700)?;
        Ok(Some(Self {
            ca: certificate(&folder.join(CA_CERTIFICATE))?,
            authority: load_authority(folder)?,
            host: certificate(&folder.join(HOST_CERTIFICATE))?,
            host_key: private_key(&folder.join(HOST_KEY))?,
        }))
    }
}

/// Writes the folder, all of it or nothing; durable on return.
///
/// # Errors
/// The disk is full or not writable, or there is such a folder already.
pub fn write(
    folder: &Path,
    ca_pem: &str,
    authority: Option<&Authority>,
    host_pem: &str,
    host_key_pem: &str,
) -> Result<(), PkiFileError> {
    let parent = folder.parent().unwrap_or(Path::new("/"));
    let draft = folder.with_extension("new");
    match fs::remove_dir_all(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("remove", &draft)(error));
        }
        _ => {}
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(parent)
        .map_err(io_error("make", parent))?;
    DirBuilder::new()
        .mode(0o700)
        .create(&draft)
        .map_err(io_error("make", &draft))?;
    write_file(&draft.join(CA_CERTIFICATE), ca_pem)?;
    if let Some(authority) = authority {
        write_file(&draft.join(CA_KEY), &authority.key_pem())?;
    }
    write_file(&draft.join(HOST_CERTIFICATE), host_pem)?;
    write_file(&draft.join(HOST_KEY), host_key_pem)?;
    sync(&draft)?;
    fs::rename(&draft, folder).map_err(io_error("put in place", folder))?;
    sync(parent)
}

/// Makes a new certificate for the key that is there, where the authority's key is there too; durable on return.
///
/// # Errors
/// The certificate could not be made or written; the one before is still there.
pub fn renew(folder: &Path, authority: &Authority, host: &PeerIdentity) -> Result<(), PkiFileError> {
    let issued = HostKey::load(&read(&folder.join(HOST_KEY))?)
        .and_then(|key| key.request())
        .and_then(|request| authority.issue(host, &request));
    let pem = issued.map_err(|source| PkiFileError::Authority {
        path: folder.to_owned(),
        source,
    })?;
    let (path, draft) = (folder.join(HOST_CERTIFICATE), folder.join("host.pem.new"));
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("remove", &draft)(error));
        }
        _ => {}
    }
    write_file(&draft, &pem)?;
    fs::rename(&draft, &path).map_err(io_error("put in place", &path))?;
    sync(folder)
}

/// Puts the folder out of the way: this host is in no cluster any more. Returns where it is now.
///
/// # Errors
/// It could not be renamed.
pub fn move_aside(folder: &Path, now_ms: i64) -> Result<PathBuf, PkiFileError> {
    let aside = folder.with_extension(format!("removed-{now_ms}"));
    fs::rename(folder, &aside).map_err(io_error("put aside", folder))?;
    sync(folder.parent().unwrap_or(Path::new("/")))?;
    Ok(aside)
}

fn load_authority(folder: &Path) -> Result<Option<Authority>, PkiFileError> {
    let key_path = folder.join(CA_KEY);
    if !key_path.try_exists().map_err(io_error("look for", &key_path))? {
        return Ok(None);
    }
    refuse_open(&key_path, 0o600)?;
    let loaded = Authority::load(&read(&folder.join(CA_CERTIFICATE))?, &read(&key_path)?);
    loaded.map(Some).map_err(|source| PkiFileError::Authority {
        path: folder.to_owned(),
        source,
    })
}

fn certificate(path: &Path) -> Result<CertificateDer<'static>, PkiFileError> {
    CertificateDer::from_pem_slice(read(path)?.as_bytes()).map_err(|error| PkiFileError::Content {
        path: path.to_owned(),
        what: "certificate",
        problem: error.to_string(),
    })
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, PkiFileError> {
    refuse_open(path, 0o600)?;
    // The parser's words could quote the key.
    PrivateKeyDer::from_pem_slice(read(path)?.as_bytes()).map_err(|_| PkiFileError::Content {
        path: path.to_owned(),
        what: "private key",
        problem: "it has no such part".to_owned(),
    })
}

fn refuse_open(path: &Path, wanted: u32) -> Result<(), PkiFileError> {
    let mode = fs::metadata(path).map_err(io_error("look at", path))?.mode() & 0o7777;
    if mode & 0o077 == 0 {
        Ok(())
    } else {
        Err(PkiFileError::Open {
            path: path.to_owned(),
            mode,
            wanted,
        })
    }
}

fn read(path: &Path) -> Result<String, PkiFileError> {
    fs::read_to_string(path).map_err(io_error("read", path))
}

fn write_file(path: &Path, text: &str) -> Result<(), PkiFileError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(io_error("make", path))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(io_error("write", path))
}

fn sync(folder: &Path) -> Result<(), PkiFileError> {
    File::open(folder)
        .and_then(|opened| opened.sync_all())
        .map_err(io_error("sync", folder))
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PkiFileError {
    move |source| PkiFileError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::issue::ends_ms;
    use super::*;

    fn written() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("pki");
        let authority = Authority::generate("a").unwrap();
        let key = HostKey::generate().unwrap();
        let identity = PeerIdentity {
            name: "a".parse().unwrap(),
            incarnation: 1,
        };
        let host = authority.issue(&identity, &key.request().unwrap()).unwrap();
        write(
            &folder,
            authority.certificate_pem(),
            Some(&authority),
            &host,
            &key.pem(),
        )
        .unwrap();
        (dir, folder)
    }

    #[test]
    fn what_is_written_is_private_and_is_read_again() {
        let (_dir, folder) = written();
        let pki = Pki::load(&folder).unwrap().unwrap();
        assert!(pki.authority.is_some());
        assert_eq!(
            PeerIdentity::of_certificate(&pki.host).unwrap().name.as_str(),
            "a"
        );
        for file in fs::read_dir(&folder).unwrap() {
            assert_eq!(file.unwrap().metadata().unwrap().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        for (file, mode) in [("host.key", 0o640), ("ca.key", 0o604), (".", 0o750)] {
            let (_dir, folder) = written();
            let path = folder.join(file);
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = Pki::load(&folder).err().expect("was taken").to_string();
            assert!(
                error.contains("can be read by others") && error.contains("chmod"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_renewed_certificate_is_of_the_same_host_and_key() {
        let (_dir, folder) = written();
        let before = Pki::load(&folder).unwrap().unwrap();
        let identity = PeerIdentity::of_certificate(&before.host).unwrap();
        renew(&folder, &before.authority.unwrap(), &identity).unwrap();
        let after = Pki::load(&folder).unwrap().unwrap();
        assert_ne!(after.host, before.host);
        assert_eq!(PeerIdentity::of_certificate(&after.host).unwrap(), identity);
        assert!(ends_ms(&after.host) >= ends_ms(&before.host));
        let key = HostKey::load(&fs::read_to_string(folder.join(HOST_KEY)).unwrap()).unwrap();
        assert!(key.is_of(&after.host) && key.is_of(&before.host));
    }

    #[test]
    fn a_second_cluster_does_not_overwrite_the_first() {
        let (_dir, folder) = written();
        let before = fs::read(folder.join("host.key")).unwrap();
        assert!(write(&folder, "x", None, "y", "z").is_err());
        assert_eq!(fs::read(folder.join("host.key")).unwrap(), before);
    }

    #[test]
    fn a_spoiled_key_is_not_quoted() {
        let (_dir, folder) = written();
        fs::write(folder.join("host.key"), "secret").unwrap();
        let error = Pki::load(&folder).err().expect("was taken").to_string();
        assert!(error.contains("host.key") && !error.contains("secret"), "{error}");
        assert!(Pki::load(&folder.join("none")).unwrap().is_none());
    }
}
