//! What a wire between hosts must withstand: every way of not being a host of the cluster, each refused for its own
//! reason, and none in the way of the next good host.

#![expect(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

#[path = "wire/certificates.rs"]
mod certificates;
#[path = "wire/client.rs"]
mod client;
#[path = "wire/cluster.rs"]
mod cluster;
#[path = "common/etcd.rs"]
#[expect(dead_code, reason = "members are paused in the tests of the arbiter")]
mod etcd;
#[path = "wire/found.rs"]
mod found;
#[path = "wire/joining.rs"]
mod joining;

use std::time::Duration;

use certificates::{expired, genuine, named, of_stranger, own, signed_by_a_host};
use client::{Client, Shown, send_raw};
use cluster::TestHost;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;
use tranship_daemon::peers::HostStore;
use tranship_daemon::peers::tls::{ALPN_CONTROL, ALPN_DATA};
use tranship_proto::frame::{FrameHeader, FrameKind};
use tranship_proto::ids::MigrationId;
use tranship_proto::v1::{
    JoinRequest, PreflightRequest, QueryMigrationRequest, StreamHello, SyncHostsRequest,
};

async fn pair() -> (TestHost, TestHost) {
    let a = TestHost::first("a").await;
    let b = TestHost::joined("b", &a).await;
    (a, b)
}

fn hello(migration: MigrationId, token: &[u8]) -> Vec<u8> {
    let payload = StreamHello {
        page_stream: 3,
        migration_id: migration.to_string(),
        data_token: token.to_vec(),
    }
    .encode_to_vec();
    let length = u32::try_from(payload.len()).unwrap();
    let mut bytes = FrameHeader {
        kind: FrameKind::Hello,
        tree: 0,
        length,
        offset: 0,
    }
    .encode()
    .to_vec();
    bytes.extend(payload);
    bytes
}

/// `from` can call `to` and send it data.
async fn are_connected(from: &TestHost, to: &TestHost) {
    let reply = from
        .peers
        .control(&to.name())
        .unwrap()
        .preflight(PreflightRequest::default())
        .await;
    assert_eq!(reply.unwrap().into_inner().warnings, [from.name().to_string()]);

    let migration = MigrationId::generate();
    let mut expected = to
        .peers
        .data_streams()
        .expect(migration, &from.name(), b"token")
        .unwrap();
    let mut sending = from.peers.open_data(&to.name()).await.unwrap();
    sending.write_all(&hello(migration, b"token")).await.unwrap();
    sending.write_all(b"cargo").await.unwrap();
    sending.shutdown().await.unwrap();
    let arrived = expected.next(Duration::from_secs(5)).await.unwrap();
    let (peer, mut receiving) = (arrived.peer, arrived.tls);
    assert_eq!(arrived.page_stream, 3);
    let mut bytes = Vec::new();
    receiving.read_to_end(&mut bytes).await.unwrap();
    assert_eq!((peer.name, bytes.as_slice()), (from.name(), &b"cargo"[..]));
}

/// Whoever shows this is closed out for `reason`, on both protocols, and the next good host is served.
async fn is_refused(shows: impl Fn(&TestHost) -> Shown, reason: &str) {
    let (a, b) = pair().await;
    for protocol in [ALPN_CONTROL, ALPN_DATA] {
        let before = a.refused(reason);
        Client::new(shows(&a), protocol)
            .must_be_closed_out(a.address())
            .await;
        assert_eq!(a.refused(reason), before + 1, "not counted under {reason}");
    }
    are_connected(&b, &a).await;
}

#[tokio::test]
async fn two_hosts_of_a_cluster_reach_each_other() {
    let (a, b) = pair().await;
    are_connected(&a, &b).await;
    are_connected(&b, &a).await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    is_refused(|_| of_stranger("b"), "handshake").await;
}

#[tokio::test]
async fn a_certificate_that_has_ended_is_refused() {
    is_refused(|a| expired(&a.pki(), "b"), "handshake").await;
}

#[tokio::test]
async fn a_host_cannot_sign_for_another() {
    is_refused(|a| signed_by_a_host(&a.pki(), "b"), "handshake").await;
}

#[tokio::test]
async fn a_genuine_certificate_of_an_unknown_host_is_refused() {
    is_refused(|a| genuine(&a.pki(), "z", 1), "host").await;
}

#[tokio::test]
async fn a_genuine_certificate_of_a_later_host_of_that_name_is_refused() {
    is_refused(|a| genuine(&a.pki(), "b", 2), "host").await;
}

#[tokio::test]
async fn a_certificate_must_name_one_host_and_nothing_else() {
    let uri = "tranship://host/b/1";
    for (dns, uris) in [
        (&["*"][..], &["tranship://host/*/1"][..]),
        (&["b", "a"], &[uri]),
        (&["b"], &[]),
        (&[], &[uri]),
        (&["b"], &["tranship://host/a/1"]),
        (&["b"], &[uri, "tranship://host/a/1"]),
        (&["B"], &["tranship://host/B/1"]),
        (&["b"], &["tranship://host/b/01"]),
        (&[], &[]),
    ] {
        is_refused(|a| named(&a.pki(), dns, uris), "certificate").await;
    }
}

#[tokio::test]
async fn without_a_certificate_only_a_join_is_answered() {
    let (a, b) = pair().await;
    let mut client = Client::new(None, ALPN_CONTROL).peer_client(a.address()).await;
    let sync = client.sync_hosts(SyncHostsRequest::default()).await.unwrap_err();
    let preflight = client.preflight(PreflightRequest::default()).await.unwrap_err();
    let query = client
        .query_migration(QueryMigrationRequest::default())
        .await
        .unwrap_err();
    let migrate = client.migrate(tokio_stream::empty()).await.unwrap_err();
    for status in [sync, preflight, query, migrate] {
        assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    }
    let join = client.join(JoinRequest::default()).await.unwrap_err();
    assert_eq!(join.code(), Code::InvalidArgument, "{join}");

    Client::new(None, ALPN_DATA).must_be_closed_out(a.address()).await;
    assert_eq!(a.refused("anonymous"), 1);
    are_connected(&b, &a).await;
}

#[tokio::test]
async fn tls_before_1_3_is_refused() {
    let (a, b) = pair().await;
    let old = Client {
        version: &rustls::version::TLS12,
        ..Client::new(own(&b.pki()), ALPN_CONTROL)
    };
    assert!(old.connect(a.address()).await.is_err());
    assert_eq!(a.refused("handshake"), 1);
    are_connected(&b, &a).await;
}

#[tokio::test]
async fn plain_text_and_garbage_are_refused() {
    let (a, b) = pair().await;
    let h2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let garbage: Vec<u8> = (0..4096u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let record_without_end = [0x16, 3, 1, 0xff, 0xff, 1, 0xff, 0xff, 0xff];
    let inputs: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\n\r\n",
        h2,
        &garbage,
        &[0; 64],
        &record_without_end,
    ];
    for (sent, bytes) in (1..).zip(inputs) {
        send_raw(a.address(), bytes).await;
        assert_eq!(a.refused("handshake") + a.refused("slow"), sent);
    }
    assert!(a.refused("handshake") >= 3);
    are_connected(&b, &a).await;
}

#[tokio::test]
async fn whoever_says_nothing_must_be_closed_out_in_time() {
    let (a, b) = pair().await;
    send_raw(a.address(), b"").await;
    let mut stream = Client::new(own(&b.pki()), ALPN_DATA)
        .connect(a.address())
        .await
        .unwrap();
    let ended = tokio::time::timeout(client::SOON, stream.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_ok(), "a data stream without a greeting was kept");
    assert_eq!(a.refused("slow"), 2);
    are_connected(&b, &a).await;
}

#[tokio::test]
async fn another_protocol_is_refused() {
    let (a, b) = pair().await;
    Client::new(own(&b.pki()), b"http/1.1")
        .must_be_closed_out(a.address())
        .await;
    assert_eq!(a.refused("handshake"), 1);
    let silent = Client {
        protocols: Vec::new(),
        ..Client::new(own(&b.pki()), b"")
    };
    silent.must_be_closed_out(a.address()).await;
    assert_eq!(a.refused("protocol"), 1);
    are_connected(&b, &a).await;
}

#[tokio::test]
async fn a_data_stream_needs_a_greeting_that_somebody_expects() {
    let (a, b) = pair().await;
    let c = TestHost::joined("c", &a).await;
    let migration = MigrationId::generate();
    let mut expected = a
        .peers
        .data_streams()
        .expect(migration, &b.name(), b"right")
        .unwrap();
    let end = FrameHeader {
        kind: FrameKind::End,
        tree: 0,
        length: 0,
        offset: 0,
    }
    .encode()
    .to_vec();
    let attempts = [
        (&b, hello(migration, b"wrong")),
        (&b, hello(migration, b"")),
        (&b, hello(MigrationId::generate(), b"right")),
        (&c, hello(migration, b"right")),
        (&b, end),
        (&b, vec![0xff; 64]),
        (&b, b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ];
    for (refused, (host, bytes)) in (1..).zip(attempts) {
        let mut stream = Client::new(own(&host.pki()), ALPN_DATA)
            .connect(a.address())
            .await
            .unwrap();
        stream.write_all(&bytes).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
        assert_eq!(a.refused("greeting"), refused);
    }
    assert!(
        expected.next(Duration::from_millis(10)).await.is_err(),
        "a wrong stream was handed over"
    );
    drop(expected);
    are_connected(&b, &a).await;
}

#[tokio::test]
async fn only_the_host_that_was_meant_is_talked_to() {
    let (a, b) = pair().await;
    let c = TestHost::joined("c", &a).await;
    // c tells a that b has moved to where c listens.
    let records = a.store.hosts().await.unwrap();
    let mut moved = records.into_iter().find(|record| record.name == "b").unwrap();
    moved.address = c.address().to_string();
    moved.generation += 1;
    let request = SyncHostsRequest { hosts: vec![moved] };
    c.peers
        .control(&a.name())
        .unwrap()
        .sync_hosts(request)
        .await
        .unwrap();

    let error = a.peers.open_data(&b.name()).await.unwrap_err();
    let text = tranship_daemon::peers::refusal::chain(&error);
    assert!(text.contains("the host that answers is c, not b"), "{text}");
    let call = a
        .peers
        .control(&b.name())
        .unwrap()
        .preflight(PreflightRequest::default())
        .await;
    assert_eq!(call.unwrap_err().code(), Code::Unavailable);
    are_connected(&a, &c).await;
}
