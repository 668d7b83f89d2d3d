//! A real etcd cluster on loopback: members that are killed, started again, paused and let go on. All of it ends with the test.

use std::fs::File;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use etcd_client::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tranship_daemon::config::EtcdConfig;

/// For a cluster to have a leader, also on a machine that has much else to do.
const HEALTHY: Duration = Duration::from_secs(30);

pub struct EtcdCluster {
    dir: tempfile::TempDir,
    /// Client port and peer port of each member.
    ports: Vec<(u16, u16)>,
    members: Vec<Option<Child>>,
}

impl EtcdCluster {
    /// Starts that many members and waits for their leader.
    pub async fn start(members: usize) -> Self {
        let mut cluster = Self {
            dir: tempfile::tempdir().unwrap(),
            ports: free_ports(members),
            members: (0..members).map(|_| None).collect(),
        };
        for member in 0..members {
            cluster.start_member(member);
        }
        cluster.leader().await;
        cluster
    }

    pub fn config(&self) -> EtcdConfig {
        EtcdConfig {
            endpoints: (0..self.ports.len())
                .map(|member| self.endpoint(member))
                .collect(),
            prefix: "/test".into(),
            tls: None,
        }
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// The member that the others follow, once all that run agree.
    pub async fn leader(&self) -> usize {
        let asked = async {
            loop {
                if let Some(leader) = self.agreed_leader().await {
                    return leader;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(HEALTHY, asked).await.expect("no leader")
    }

    /// As after a power cut of its machine, but for its page cache.
    pub fn kill(&mut self, member: usize) {
        if let Some(mut child) = self.members[member].take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts a member that was killed, with what it had on disk.
    pub fn start_member(&mut self, member: usize) {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let (client, peer) = self.ports[member];
        let all = (0..self.ports.len()).map(|number| format!("m{number}={}", url(self.ports[number].1)));
        let log = File::create(self.dir.path().join(format!("m{member}.log"))).unwrap();
        // It ends with the thread that has started it, also where that is killed.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "etcd", "--name", &format!("m{member}")])
            .arg("--data-dir")
            .arg(self.dir.path().join(format!("m{member}")))
            .args([
                "--listen-client-urls",
                &url(client),
                "--advertise-client-urls",
                &url(client),
            ])
            .args([
                "--listen-peer-urls",
                &url(peer),
                "--initial-advertise-peer-urls",
                &url(peer),
            ])
            .args(["--initial-cluster", &all.collect::<Vec<_>>().join(",")])
            .args(["--heartbeat-interval", "100", "--election-timeout", "600"])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .expect("etcd cannot be started: install etcd-server, or run make setup");
        self.members[member] = Some(child);
    }

    pub fn pause(&self, member: usize) {
        self.signal(member, Signal::SIGSTOP);
    }

    pub fn resume(&self, member: usize) {
        self.signal(member, Signal::SIGCONT);
    }

    fn signal(&self, member: usize, signal: Signal) {
        let child = self.members[member].as_ref().expect("the member was killed");
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    }

    fn endpoint(&self, member: usize) -> String {
        format!("http://127.0.0.1:{}", self.ports[member].0)
    }

    async fn agreed_leader(&self) -> Option<usize> {
        let mut seen = Vec::new();
        for (member, child) in self.members.iter().enumerate() {
            if child.is_some() {
                let asking = async {
                    let mut client = Client::connect([self.endpoint(member)], None).await.ok()?;
                    let status = client.status().await.ok()?;
                    Some((status.leader(), status.header()?.member_id(), member))
                };
                seen.push(
                    tokio::time::timeout(Duration::from_secs(1), asking)
                        .await
                        .ok()??,
                );
            }
        }
        let leader = seen.first()?.0;
        if seen.iter().any(|(other, ..)| *other != leader) {
            return None;
        }
        Some(seen.iter().find(|(_, own, _)| *own == leader)?.2)
    }
}

impl Drop for EtcdCluster {
    fn drop(&mut self) {
        for child in self.members.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// All are bound at once, so that they differ.
fn free_ports(members: usize) -> Vec<(u16, u16)> {
    let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
    let held: Vec<_> = (0..members).map(|_| (bind(), bind())).collect();
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    held.iter()
        .map(|(client, peer)| (port(client), port(peer)))
        .collect()
}
