//! The etcd that a cluster's hosts share, as one host reaches it.
//!
//! There is a client for each member, made when it is first used: a daemon starts while etcd is away. A call goes to the member
//! that answered last. Whatever keeps that one from answering, the call goes to the next with what is left of its time: a member
//! that is paused accepts connections and says nothing, which a client that balances by itself would wait for.
//!
//! An attempt that was not answered may still be carried out, even after a later one. So what is sent must not do harm when it
//! comes twice: each change is a transaction on the revision that was seen.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, Identity, TlsOptions, Txn, TxnResponse, WatchOptions, WatchStream,
};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::Code;

use crate::config::{EtcdConfig, EtcdTls};

/// For everything that one question to etcd takes: connections, other members, repetitions.
pub const DEADLINE: Duration = Duration::from_secs(2);

/// The least that a member is waited for: a commit on a slow disk takes a part of it.
const LEAST_ATTEMPT: Duration = Duration::from_millis(400);

/// After every member has failed, before the first is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// Between two questions whether a silent connection is still there, and for the answer. More often than every 5 s
/// etcd takes for an attack.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(2));

/// Etcd has not done what it was asked, or has not said so.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// No member has answered in time. A change may have been made.
    #[error("etcd has not answered within {} s", DEADLINE.as_secs())]
    Away(#[source] AttemptError),
    /// A member has answered with a refusal that another would not take back.
    #[error("etcd refuses the request")]
    Refused(#[source] AttemptError),
}

/// What one member has answered instead.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// Nothing.
    #[error("{0} is silent")]
    Silent(String),
    /// An error, or there is no connection.
    #[error("{endpoint} has failed")]
    Failed {
        /// Its address.
        endpoint: String,
        /// What it, or the connection, says.
        #[source]
        source: Box<etcd_client::Error>,
    },
    /// A certificate or key cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// There was no time for any.
    #[error("no time was left to ask a member")]
    Late,
}

/// One cluster's etcd. Clones are the same.
#[derive(Clone)]
pub struct Etcd(Arc<Inner>);

struct Inner {
    prefix: String,
    tls: Option<EtcdTls>,
    members: Vec<Member>,
    /// Which member is asked first: the one that answered last.
    first: AtomicUsize,
}

struct Member {
    endpoint: String,
    client: Mutex<Option<Client>>,
}

impl Etcd {
    /// Reaches the etcd of `config` when it is asked something.
    #[must_use]
    pub fn new(config: &EtcdConfig) -> Self {
        let member = |endpoint: &String| Member {
            endpoint: endpoint.clone(),
            client: Mutex::default(),
        };
        Self(Arc::new(Inner {
            prefix: config.prefix.clone(),
            tls: config.tls.clone(),
            members: config.endpoints.iter().map(member).collect(),
            first: AtomicUsize::new(0),
        }))
    }

    /// The key of `path` in Tranship's part, such as `/tranship/hosts/a`.
    #[must_use]
    pub fn key(&self, path: &str) -> String {
        format!("{}/{path}", self.0.prefix)
    }

    /// Has a transaction carried out by whichever member answers before `until`. It may be carried out more than once, also
    /// after an error.
    ///
    /// # Errors
    /// [`EtcdError`]; whether it was carried out is unknown.
    pub async fn txn(&self, txn: Txn, until: Instant) -> Result<TxnResponse, EtcdError> {
        let members = &self.0.members;
        let attempt = (DEADLINE / u32::try_from(members.len()).unwrap_or(u32::MAX)).max(LEAST_ATTEMPT);
        let first = self.0.first.load(Ordering::Relaxed);
        let mut last = AttemptError::Late;
        for turn in 0_usize.. {
            if Instant::now() >= until {
                break;
            }
            let number = first.wrapping_add(turn) % members.len();
            let end = until.min(Instant::now() + attempt);
            match self.attempt(&members[number], txn.clone(), end).await {
                Ok(response) => {
                    self.0.first.store(number, Ordering::Relaxed);
                    return Ok(response);
                }
                Err(error) if error.is_final() => return Err(EtcdError::Refused(error)),
                Err(error) => last = error,
            }
            if (turn + 1) % members.len() == 0 {
                sleep(PAUSE).await;
            }
        }
        Err(EtcdError::Away(last))
    }

    /// Follows every change below `path` from now on.
    ///
    /// # Errors
    /// The member that answered last does not answer now; the next call goes to another.
    pub async fn watch(&self, path: &str) -> Result<WatchStream, EtcdError> {
        let number = self.0.first.load(Ordering::Relaxed) % self.0.members.len();
        let member = &self.0.members[number];
        let watching = async {
            let mut client = self.client(member).await?;
            let options = WatchOptions::new().with_prefix();
            let stream = client.watch(self.key(path), Some(options)).await;
            stream.map_err(|source| member.failed(source))
        };
        let watched = match timeout(DEADLINE, watching).await {
            Ok(watched) => watched,
            Err(_) => Err(AttemptError::Silent(member.endpoint.clone())),
        };
        watched.map_err(|error| {
            member.put(None);
            self.0.first.store(number.wrapping_add(1), Ordering::Relaxed);
            EtcdError::Away(error)
        })
    }

    async fn attempt(&self, member: &Member, txn: Txn, end: Instant) -> Result<TxnResponse, AttemptError> {
        let asking = async {
            let mut client = self.client(member).await?;
            client.txn(txn).await.map_err(|source| member.failed(source))
        };
        let answer = match timeout_at(end, asking).await {
            Ok(answer) => answer,
            Err(_) => Err(AttemptError::Silent(member.endpoint.clone())),
        };
        if answer.is_err() {
            // The next attempt gets a connection of its own: this one may be to a member that is paused.
            member.put(None);
        }
        answer
    }

    async fn client(&self, member: &Member) -> Result<Client, AttemptError> {
        let known = member
            .client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(client) = known {
            return Ok(client);
        }
        let mut options = ConnectOptions::new()
            .with_connect_timeout(DEADLINE)
            .with_keep_alive(KEEPALIVE.0, KEEPALIVE.1)
            .with_tcp_keepalive(KEEPALIVE.0)
            .with_require_leader(true);
        if let Some(tls) = &self.0.tls {
            options = options.with_tls(read_tls(tls).await?);
        }
        let made = Client::connect([&member.endpoint], Some(options)).await;
        let client = made.map_err(|source| member.failed(source))?;
        member.put(Some(client.clone()));
        Ok(client)
    }
}

impl Member {
    fn put(&self, client: Option<Client>) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = client;
    }

    fn failed(&self, source: etcd_client::Error) -> AttemptError {
        AttemptError::Failed {
            endpoint: self.endpoint.clone(),
            source: Box::new(source),
        }
    }
}

impl AttemptError {
    /// Every member would answer the same, now and later.
    fn is_final(&self) -> bool {
        const FINAL: [Code; 4] = [
            Code::InvalidArgument,
            Code::PermissionDenied,
            Code::Unauthenticated,
            Code::Unimplemented,
        ];
        match self {
            Self::Failed { source, .. } => {
                matches!(&**source, etcd_client::Error::GRpcStatus(status) if FINAL.contains(&status.code()))
            }
            _ => false,
        }
    }
}

async fn read_tls(files: &EtcdTls) -> Result<TlsOptions, AttemptError> {
    let mut options = TlsOptions::new().ca_certificate(Certificate::from_pem(read(&files.ca).await?));
    if let Some((certificate, key)) = &files.identity {
        options = options.identity(Identity::from_pem(read(certificate).await?, read(key).await?));
    }
    Ok(options)
}

async fn read(path: &Path) -> Result<Vec<u8>, AttemptError> {
    tokio::fs::read(path).await.map_err(|source| AttemptError::File {
        path: path.to_owned(),
        source,
    })
}
