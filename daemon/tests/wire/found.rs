//! Hosts that find each other through a real etcd, where they could not tell each other.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use tranship_daemon::peers::HostStore;

use crate::are_connected;
use crate::cluster::TestHost;
use crate::etcd::EtcdCluster;

#[tokio::test]
async fn hosts_that_both_moved_find_each_other_and_a_removal() {
    let mut etcd = EtcdCluster::start(1).await;
    let config = Some(etcd.config());
    let a = TestHost::new_with(config.clone()).await;
    a.peers.init("a", "").await.unwrap();
    let b = TestHost::new_with(config.clone()).await;
    b.peers.join(&a.token().await, "b", "").await.unwrap();

    // Neither is where the other looks for it, so neither can be told by a sync.
    let (a, b) = (a.stopped().await, b.stopped().await);
    let (a, b) = (a.moved_to(free()).await, b.moved_to(free()).await);
    for _ in 0..200 {
        if sees(&a, &b).await && sees(&b, &a).await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    are_connected(&a, &b).await;
    are_connected(&b, &a).await;

    // A host is removed while b is away, and nobody but etcd is there to tell it.
    let c = TestHost::new_with(config).await;
    c.peers.join(&a.token().await, "c", "").await.unwrap();
    b.until_known("c", true).await;
    let b = b.stopped().await;
    a.peers.remove("c").await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    drop((a.stopped().await, c));
    let b = b.started().await;
    b.until_known("c", false).await;

    // Without etcd a host goes on with what it knows.
    etcd.kill(0);
    let b = b.restarted().await;
    assert!(b.peers.hosts().iter().any(|host| host.name.as_str() == "a"));
}

async fn sees(one: &TestHost, other: &TestHost) -> bool {
    let hosts = one.store.hosts().await.unwrap();
    hosts
        .iter()
        .any(|host| host.name == other.name().as_str() && host.address == other.address().to_string())
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
