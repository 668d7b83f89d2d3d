//! The store that the hosts of a cluster share, as configured.

use std::path::PathBuf;

use http::Uri;

use super::error::ConfigError;
use super::file::ClusterFile;
use super::position::Document;
use super::values::directory;

const PREFIX: &str = "/tranship";

/// An etcd cluster and the part of it that is Tranship's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// Its members' client addresses, such as `http://10.0.0.1:2379`; at least one.
    pub endpoints: Vec<String>,
    /// What every key begins with, without a slash at its end.
    pub prefix: String,
    /// Certificates, where the members are spoken to by TLS.
    pub tls: Option<EtcdTls>,
}

/// PEM files for TLS to etcd. They are read when a connection is made, so that they can be replaced meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdTls {
    /// The authority of the members' certificates.
    pub ca: PathBuf,
    /// This host's certificate and its key, where etcd wants to see one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Checks `[cluster]`.
pub(super) fn check(document: &Document, file: ClusterFile) -> Result<Option<EtcdConfig>, ConfigError> {
    let others = [
        ("cluster.etcd_prefix", &file.etcd_prefix),
        ("cluster.etcd_ca", &file.etcd_ca),
        ("cluster.etcd_cert", &file.etcd_cert),
        ("cluster.etcd_key", &file.etcd_key),
    ];
    if file.etcd.is_empty() {
        return match others.into_iter().find(|(_, value)| value.is_some()) {
            Some((key, _)) => Err(document.value(key, "has no use without cluster.etcd")),
            None => Ok(None),
        };
    }
    let endpoints = file
        .etcd
        .iter()
        .map(|text| endpoint(text).map_err(|problem| document.value("cluster.etcd", problem)))
        .collect::<Result<Vec<_>, _>>()?;
    let encrypted = |endpoint: &String| endpoint.starts_with("https:");
    let tls = match (endpoints.iter().all(encrypted), endpoints.iter().any(encrypted)) {
        (true, _) => Some(check_tls(document, &file)?),
        (_, true) => return Err(document.value("cluster.etcd", "must not have both http and https")),
        _ => match others.into_iter().skip(1).find(|(_, value)| value.is_some()) {
            Some((key, _)) => return Err(document.value(key, "is for endpoints with https")),
            None => None,
        },
    };
    Ok(Some(EtcdConfig {
        endpoints,
        prefix: check_prefix(document, file.etcd_prefix)?,
        tls,
    }))
}

/// A member's address in its one form, or what is wrong with it.
fn endpoint(text: &str) -> Result<String, String> {
    let form = || format!("must have addresses such as http://10.0.0.1:2379, not {text:?}");
    let uri: Uri = text.parse().map_err(|_| form())?;
    let (scheme, authority) = uri.scheme_str().zip(uri.authority()).ok_or_else(form)?;
    let plain = matches!(scheme, "http" | "https")
        && !authority.host().is_empty()
        && !authority.as_str().contains('@')
        && authority.port_u16().is_some()
        && matches!(uri.path(), "" | "/")
        && uri.query().is_none();
    if plain {
        Ok(format!("{scheme}://{authority}"))
    } else {
        Err(form())
    }
}

fn check_tls(document: &Document, file: &ClusterFile) -> Result<EtcdTls, ConfigError> {
    let path = |key: &str, value: &Option<String>| match value {
        Some(path) => directory(document, key, Some(path.clone()), PathBuf::new),
        None => Err(document.value(key, "is missing")),
    };
    let identity = match (&file.etcd_cert, &file.etcd_key) {
        (None, None) => None,
        (certificate, key) => Some((
            path("cluster.etcd_cert", certificate)?,
            path("cluster.etcd_key", key)?,
        )),
    };
    Ok(EtcdTls {
        ca: path("cluster.etcd_ca", &file.etcd_ca)?,
        identity,
    })
}

fn check_prefix(document: &Document, value: Option<String>) -> Result<String, ConfigError> {
    let prefix = value.unwrap_or_else(|| PREFIX.to_owned());
    match prefix.strip_prefix('/') {
        Some(rest) if rest.split('/').all(|part| !part.is_empty()) => Ok(prefix),
        _ => Err(document.value(
            "cluster.etcd_prefix",
            format!("must be such as \"/tranship\", not {prefix:?}"),
        )),
    }
}
