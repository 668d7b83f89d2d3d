//! An etcd of three members on the testbed's client, which every host reaches: by TLS, with certificates on both sides.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::testbed::Host;
use crate::testbed::layout::address;
use crate::tranship::wait_for;

const MEMBERS: usize = 3;
/// Of the first member: for clients. The next one is for the other members, and so on.
const FIRST_PORT: usize = 2379;
/// The authority of all certificates, and the one certificate that members and clients show, with its key.
const CA: &str = "ca.pem";
const CERTIFICATE: &str = "certificate.pem";
const KEY: &str = "key.pem";
/// For the members to find each other, also on a machine that has much else to do.
const HEALTHY: Duration = Duration::from_secs(30);

/// A running etcd.
#[derive(Debug)]
pub struct Etcd {
    client: Host,
    directory: PathBuf,
    /// As the client numbers them; none for a member that was killed.
    pids: RefCell<[Option<String>; MEMBERS]>,
}

impl Etcd {
    /// Starts every member, and waits until they agree.
    ///
    /// # Errors
    /// One does not start: is etcd-server installed?
    pub fn start(client: &Host) -> Result<Self> {
        let directory = client.layout.disks().join("etcd");
        fs::create_dir_all(&directory)?;
        let own = address(client.name()).context("the client has an address")?;
        write_certificates(&directory, &own.to_string())?;
        let etcd = Self {
            client: client.clone(),
            directory,
            pids: RefCell::default(),
        };
        for member in 0..MEMBERS {
            etcd.start_member(member)?;
        }
        etcd.wait_healthy()?;
        Ok(etcd)
    }

    /// Starts a member that was killed, with what it had on disk.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_member(&self, member: usize) -> Result<()> {
        let (for_clients, for_members) = (port(member), port(member) + 1);
        let all: Vec<_> = (0..MEMBERS)
            .map(|one| format!("m{one}={}", self.url("http", port(one) + 1)))
            .collect();
        let log = self.directory.join(format!("m{member}.log"));
        let script = r#"log="$1"; shift; setsid "$@" </dev/null >>"$log" 2>&1 & echo $!"#;
        let data = self.directory.join(format!("m{member}"));
        let words = [
            "-c".to_owned(),
            script.to_owned(),
            "sh".to_owned(),
            log.display().to_string(),
            "etcd".to_owned(),
            format!("--name=m{member}"),
            format!("--data-dir={}", data.display()),
            format!("--listen-client-urls={}", self.url("https", for_clients)),
            format!("--advertise-client-urls={}", self.url("https", for_clients)),
            "--client-cert-auth".to_owned(),
            format!("--trusted-ca-file={}", self.file(CA)),
            format!("--cert-file={}", self.file(CERTIFICATE)),
            format!("--key-file={}", self.file(KEY)),
            format!("--listen-peer-urls={}", self.url("http", for_members)),
            format!("--initial-advertise-peer-urls={}", self.url("http", for_members)),
            format!("--initial-cluster={}", all.join(",")),
            "--heartbeat-interval=100".to_owned(),
            "--election-timeout=600".to_owned(),
        ];
        let started = self.client.run("sh", words)?;
        self.pids.borrow_mut()[member] = Some(started.text().trim().to_owned());
        Ok(())
    }

    /// Kills a member.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&self, member: usize) -> Result<()> {
        let pid = self.pids.borrow_mut()[member].take();
        let pid = pid.with_context(|| format!("member {member} does not run"))?;
        self.client.run("kill", ["-KILL", pid.as_str()])?;
        Ok(())
    }

    /// Waits until the members that run agree about who leads them.
    ///
    /// # Errors
    /// They do not within 30 s.
    pub fn wait_healthy(&self) -> Result<()> {
        wait_for("etcd to be healthy", HEALTHY, || {
            Ok(self.ask(&["endpoint", "health"]).is_ok())
        })
    }

    /// What is on record about the owners of containers: a line of JSON for each.
    ///
    /// # Errors
    /// Etcd does not answer.
    pub fn owners(&self) -> Result<String> {
        self.ask(&["get", "--prefix", "--print-value-only", "/tranship/containers/"])
    }

    /// Puts it into the configuration of a host, whose daemon takes it at its next start.
    ///
    /// # Errors
    /// The configuration cannot be written.
    pub fn configure(&self, host: &Host) -> Result<()> {
        let path = host.layout.config(host.name());
        let urls: Vec<_> = (0..MEMBERS)
            .map(|one| format!("{:?}", self.url("https", port(one))))
            .collect();
        let more = format!(
            "\n[cluster]\netcd = [{}]\netcd_ca = {:?}\netcd_cert = {:?}\netcd_key = {:?}\n",
            urls.join(", "),
            self.file(CA),
            self.file(CERTIFICATE),
            self.file(KEY),
        );
        Ok(fs::write(&path, fs::read_to_string(&path)? + &more)?)
    }

    /// Takes it out of the configuration of a host again.
    ///
    /// # Errors
    /// The configuration cannot be written.
    pub fn forget(&self, host: &Host) -> Result<()> {
        let path = host.layout.config(host.name());
        let text = fs::read_to_string(&path)?;
        let before = text.split("\n[cluster]").next().unwrap_or_default();
        Ok(fs::write(&path, before)?)
    }

    /// Ends every member, and removes what they had.
    ///
    /// # Errors
    /// One cannot be ended.
    pub fn end(self) -> Result<()> {
        for member in 0..MEMBERS {
            if self.pids.borrow()[member].is_some() {
                self.kill(member)?;
            }
        }
        fs::remove_dir_all(&self.directory)?;
        Ok(())
    }

    fn ask(&self, words: &[&str]) -> Result<String> {
        let urls: Vec<_> = (0..MEMBERS).map(|one| self.url("https", port(one))).collect();
        let options = [
            "ETCDCTL_API=3".to_owned(),
            "etcdctl".to_owned(),
            format!("--endpoints={}", urls.join(",")),
            format!("--cacert={}", self.file(CA)),
            format!("--cert={}", self.file(CERTIFICATE)),
            format!("--key={}", self.file(KEY)),
        ];
        let mut all: Vec<&str> = options.iter().map(String::as_str).collect();
        all.extend(words);
        Ok(self.client.run("env", all)?.text().trim().to_owned())
    }

    fn url(&self, scheme: &str, port: usize) -> String {
        let own = address(self.client.name()).map(|own| own.to_string());
        format!("{scheme}://{}:{port}", own.unwrap_or_default())
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }
}

fn port(member: usize) -> usize {
    FIRST_PORT + 2 * member
}

fn write_certificates(directory: &Path, address: &str) -> Result<()> {
    let named = |name: &str, addresses: Vec<String>| -> Result<CertificateParams> {
        let mut params = CertificateParams::new(addresses)?;
        params.distinguished_name.push(DnType::CommonName, name);
        Ok(params)
    };
    let (authoritys_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
    let mut authority = named("tests of etcd", Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = authority.self_signed(&authoritys_key)?;
    let issuer = Issuer::new(authority, authoritys_key);
    let certificate = named("etcd", vec![address.to_owned()])?.signed_by(&key, &issuer)?;
    fs::write(directory.join(CA), ca.pem())?;
    fs::write(directory.join(CERTIFICATE), certificate.pem())?;
    fs::write(directory.join(KEY), key.serialize_pem())?;
    Ok(())
}
