//! Certificates that no authority of ours would sign, and some that it would.

use std::path::Path;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};
use tranship_daemon::peers::PeerIdentity;
use tranship_daemon::peers::pki::{Authority, HostKey, Pki};

use crate::client::Shown;

/// What a host itself shows.
pub fn own(pki: &Path) -> Shown {
    let pki = Pki::load(pki).unwrap().unwrap();
    Some((vec![pki.host, pki.ca], pki.host_key))
}

/// A certificate as the authority signs them, for any name.
pub fn genuine(pki: &Path, name: &str, incarnation: u32) -> Shown {
    issued(
        Pki::load(pki).unwrap().unwrap().authority.as_ref().unwrap(),
        name,
        incarnation,
    )
}

/// A certificate of some other cluster's authority.
pub fn of_stranger(name: &str) -> Shown {
    issued(&Authority::generate("elsewhere").unwrap(), name, 1)
}

fn issued(authority: &Authority, name: &str, incarnation: u32) -> Shown {
    let key = HostKey::generate().unwrap();
    let identity = PeerIdentity {
        name: name.parse().unwrap(),
        incarnation,
    };
    let pem = authority.issue(&identity, &key.request().unwrap()).unwrap();
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    Some((
        vec![certificate],
        PrivateKeyDer::from_pem_slice(key.pem().as_bytes()).unwrap(),
    ))
}

/// A certificate with any names, signed by the authority all the same.
pub fn named(pki: &Path, dns: &[&str], uris: &[&str]) -> Shown {
    odd(pki, "ca", |params| {
        let dns = dns
            .iter()
            .map(|name| SanType::DnsName((*name).try_into().unwrap()));
        let uris = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
        params.subject_alt_names = dns.chain(uris).collect();
    })
}

/// A certificate for host `name` that was good until yesterday.
pub fn expired(pki: &Path, name: &str) -> Shown {
    odd(pki, "ca", |params| {
        params.subject_alt_names = names(name);
        params.not_after = OffsetDateTime::now_utc() - Duration::days(1);
    })
}

/// A certificate for `name` that another host signed with its own key.
pub fn signed_by_a_host(pki: &Path, name: &str) -> Shown {
    let own = CertificateDer::from_pem_slice(&std::fs::read(pki.join("host.pem")).unwrap()).unwrap();
    let (mut chain, key) = odd(pki, "host", |params| params.subject_alt_names = names(name)).unwrap();
    chain.push(own);
    Some((chain, key))
}

fn names(name: &str) -> Vec<SanType> {
    let uri = format!("tranship://host/{name}/1");
    vec![
        SanType::DnsName(name.try_into().unwrap()),
        SanType::URI(uri.as_str().try_into().unwrap()),
    ]
}

fn odd(pki: &Path, signer: &str, change: impl FnOnce(&mut CertificateParams)) -> Shown {
    let read = |end: &str| std::fs::read_to_string(pki.join(format!("{signer}.{end}"))).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("pem"), KeyPair::from_pem(&read("key")).unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    Some((vec![certificate.der().clone()], key))
}
