//! What an operator does with the cluster: begin it, invite, join, look, remove.

mod error;

use std::time::Duration;

use futures_util::StreamExt;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpListener;
use tranship_proto::ids::Name;
use tranship_proto::v1::{Host, HostRecord};

pub use error::AdminError;

use super::address::PeerAddress;
use super::cluster::Peers;
use super::connect::ConnectError;
use super::generation::Generation;
use super::hosts::KnownHost;
use super::identity::PeerIdentity;
use super::invite::InviteError;
use super::join::ask_to_join;
use super::membership::Membership;
use super::names::{host_name, machine_name};
use super::pki::{self, Authority, HostKey, Pki};
use super::refusal::chain;
use super::sync;
use super::tls::provider;
use super::token::{JoinToken, Secret};
use crate::clock::now_ms;

/// How long a token is good when nobody says otherwise.
pub const TOKEN_VALID: Duration = Duration::from_secs(3600);

/// Longest a token may be good.
const MAX_TOKEN_VALID: Duration = Duration::from_secs(30 * 24 * 3600);

/// Hosts that are asked at once.
const PROBES: usize = 16;

/// Who this host will be in its cluster, with its port bound.
struct Newcomer {
    name: Name,
    address: PeerAddress,
    listener: TcpListener,
}

impl Peers {
    /// Begins a cluster with this host as its first. An empty text takes the configured or natural value.
    ///
    /// # Errors
    /// This host is in a cluster, or has no usable name, address or port.
    pub async fn init(&self, name: &str, advertise: &str) -> Result<Host, AdminError> {
        let newcomer = self.newcomer(name, advertise).await?;
        let identity = PeerIdentity {
            name: newcomer.name.clone(),
            incarnation: Generation::FIRST.incarnation(),
        };
        let (authority, key) = (Authority::generate(identity.name.as_str())?, HostKey::generate()?);
        let certificate = authority.issue(&identity, &key.request()?)?;
        let host = KnownHost {
            name: newcomer.name.clone(),
            address: newcomer.address.clone(),
            generation: Generation::FIRST,
            removed: false,
        };
        let ca = authority.certificate_pem().to_owned();
        let files = Files {
            ca,
            authority: Some(authority),
            certificate,
            key,
        };
        self.settle(newcomer, files, vec![host.record()]).await
    }

    /// Makes a token with which one other host can join. Zero is [`TOKEN_VALID`]. Returns it with the time it ends.
    ///
    /// # Errors
    /// This host is in no cluster, or has not the key to let others in.
    pub async fn create_token(&self, valid: Duration) -> Result<(String, i64), AdminError> {
        let member = self.inner.member().ok_or(ConnectError::NotMember)?;
        if member.authority.is_none() {
            return Err(InviteError::NoAuthority.into());
        }
        let valid = if valid.is_zero() { TOKEN_VALID } else { valid };
        if valid > MAX_TOKEN_VALID {
            return Err(AdminError::TokenValidity);
        }
        let own = self.inner.hosts.get(&member.identity.name);
        let address = own
            .ok_or_else(|| AdminError::NoSuchHost(member.identity.name.to_string()))?
            .address;
        let secret = Secret::generate(provider().secure_random)?;
        let now_ms = now_ms();
        let expires_ms = now_ms.saturating_add(i64::try_from(valid.as_millis()).unwrap_or(i64::MAX));
        self.inner
            .hosts
            .add_token(&secret.hash(), now_ms, expires_ms)
            .await?;
        let token = JoinToken {
            address,
            fingerprint: member.fingerprint(),
            secret,
        };
        Ok((token.to_string(), expires_ms))
    }

    /// Joins the cluster that a token invites to.
    ///
    /// # Errors
    /// This host is in a cluster, or the other host cannot be reached, is another cluster's, or does not let it in.
    pub async fn join(&self, token: &str, name: &str, advertise: &str) -> Result<Host, AdminError> {
        let token: JoinToken = token.parse()?;
        let newcomer = self.newcomer(name, advertise).await?;
        let key = HostKey::generate()?;
        let welcome = ask_to_join(&token, &newcomer.name, &newcomer.address, &key).await?;
        let files = Files {
            ca: welcome.ca_pem,
            authority: None,
            certificate: welcome.certificate_pem,
            key,
        };
        self.settle(newcomer, files, welcome.hosts).await
    }

    /// The hosts of the cluster by name; `probe` asks each whether it answers.
    ///
    /// # Errors
    /// This host is in no cluster.
    pub async fn list(&self, probe: bool) -> Result<Vec<Host>, AdminError> {
        let member = self.inner.member().ok_or(ConnectError::NotMember)?;
        let listed = self.hosts().into_iter().map(|host| async {
            if probe && host.name != member.identity.name {
                self.probe(host).await
            } else {
                self.shown(&host)
            }
        });
        Ok(futures_util::stream::iter(listed)
            .buffered(PROBES)
            .collect()
            .await)
    }

    /// Removes a host from the cluster, and tells it and all others. Its containers go on; it cannot connect any more.
    ///
    /// # Errors
    /// There is no such host, or nobody could be invited without it.
    pub async fn remove(&self, name: &str) -> Result<(), AdminError> {
        let member = self.inner.member().ok_or(ConnectError::NotMember)?;
        let known = host_name(name).ok().and_then(|name| self.inner.hosts.get(&name));
        let host = known
            .filter(|host| !host.removed)
            .ok_or_else(|| AdminError::NoSuchHost(name.to_owned()))?;
        let is_self = host.name == member.identity.name;
        if is_self && member.authority.is_some() && !self.inner.others().is_empty() {
            return Err(AdminError::LastAuthority(host.name));
        }
        let gone = KnownHost {
            generation: host.generation.changed(),
            removed: true,
            ..host.clone()
        };
        // Whoever is left first is told first: a removed host is nobody's to talk to.
        let (first, later) = if is_self {
            (self.inner.others(), false)
        } else {
            (vec![host], true)
        };
        self.tell_all(first, &gone).await;
        self.inner.take_records(vec![gone.record()]).await?;
        self.inner.channels.forget(&gone.name);
        if later {
            self.tell_all(self.inner.others(), &gone).await;
        }
        tracing::info!(peer = %gone.name, "host removed from the cluster");
        Ok(())
    }

    async fn tell_all(&self, hosts: Vec<KnownHost>, gone: &KnownHost) {
        let told = futures_util::stream::iter(hosts).for_each_concurrent(PROBES, |host| async move {
            let sent = match self.inner.client(&host.name) {
                Ok(client) => sync::send(client, &host.name, vec![gone.record()])
                    .await
                    .map(drop),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = sent {
                let error = chain(&error);
                tracing::warn!(peer = %host.name, error, "the host was not told of a removal");
            }
        });
        told.await;
    }

    async fn newcomer(&self, name: &str, advertise: &str) -> Result<Newcomer, AdminError> {
        if let Some(member) = self.inner.member() {
            return Err(AdminError::AlreadyMember(member.identity.name.clone()));
        }
        let settings = &self.inner.settings;
        let name = match (&settings.name, name) {
            (Some(configured), "") => configured.clone(),
            (None, "") => machine_name()?,
            (configured, wanted) => {
                let wanted = host_name(wanted)?;
                match configured {
                    Some(configured) if *configured != wanted => {
                        return Err(AdminError::NameConflict {
                            configured: configured.clone(),
                            wanted,
                        });
                    }
                    _ => wanted,
                }
            }
        };
        let asked: Option<PeerAddress> = if advertise.is_empty() {
            settings.peer.advertise.clone()
        } else {
            Some(advertise.parse()?)
        };
        let address = settings.peer.listen;
        let failed = |source| AdminError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let natural = (!bound.ip().is_unspecified()).then(|| bound.into());
        Ok(Newcomer {
            name,
            address: asked.or(natural).ok_or(AdminError::NoAddress)?,
            listener,
        })
    }

    /// Makes this host a member: the hosts first, the certificates last. They decide whether it is one after a restart.
    async fn settle(
        &self,
        newcomer: Newcomer,
        files: Files,
        hosts: Vec<HostRecord>,
    ) -> Result<Host, AdminError> {
        let inner = &self.inner;
        inner.hosts.replace(hosts).await?;
        let Files {
            ca,
            authority,
            certificate,
            key,
        } = files;
        pki::write(
            &inner.settings.pki,
            &ca,
            authority.as_ref(),
            &certificate,
            &key.pem(),
        )?;
        let pki = Pki::load(&inner.settings.pki)?.ok_or(ConnectError::NotMember)?;
        let member = Membership::new(pki, newcomer.listener)?;
        inner.channels.clear();
        inner.membership.send_replace(Some(std::sync::Arc::new(member)));
        inner.sync_now.notify_one();
        tracing::info!(host = %newcomer.name, address = %newcomer.address, "this host is in a cluster now");
        let known = inner.hosts.get(&newcomer.name);
        known
            .map(|host| self.shown(&host))
            .ok_or_else(|| AdminError::NoSuchHost(newcomer.name.to_string()))
    }

    fn shown(&self, host: &KnownHost) -> Host {
        let is_self = self.identity().is_some_and(|own| own.name == host.name);
        let version = if is_self {
            env!("CARGO_PKG_VERSION").to_owned()
        } else {
            String::new()
        };
        Host {
            name: host.name.to_string(),
            address: host.address.to_string(),
            reachable: is_self,
            is_self,
            version,
            error: String::new(),
        }
    }

    async fn probe(&self, host: KnownHost) -> Host {
        let shown = self.shown(&host);
        match sync::tell(&self.inner, &host).await {
            Ok(reply) => Host {
                reachable: true,
                version: reply.version,
                ..shown
            },
            Err(error) => Host {
                reachable: false,
                error: chain(&error),
                ..shown
            },
        }
    }
}

/// What makes this host a member after a restart.
struct Files {
    ca: String,
    authority: Option<Authority>,
    certificate: String,
    key: HostKey,
}

/// Reads the first certificate of a PEM text.
pub(super) fn certificate(pem: &str) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).ok()
}
