//! Coming, staying and going.

use std::time::Duration;

use tonic::Code;
use tranship_daemon::peers::{AdminError, refusal::chain, tls::ALPN_CONTROL};
use tranship_proto::v1::{PreflightRequest, SyncHostsRequest};

use crate::are_connected;
use crate::certificates::own;
use crate::client::Client;
use crate::cluster::TestHost;

/// The attempt fails and says each part; the host is still in no cluster.
async fn cannot_join(host: &TestHost, token: &str, name: &str, code: Code, parts: &[&str]) {
    let error = host.peers.join(token, name, "").await.unwrap_err();
    let text = chain(&error);
    assert_eq!(error.code(), code, "{text}");
    for part in parts {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
    assert!(host.peers.identity().is_none());
    assert!(!host.pki().exists());
}

#[tokio::test]
async fn a_token_lets_one_host_in() {
    let a = TestHost::first("a").await;
    let token = a.token().await;
    let b = TestHost::new().await;
    let joined = b.peers.join(&token, "b", "").await.unwrap();
    assert_eq!((joined.name.as_str(), joined.is_self), ("b", true));

    let c = TestHost::new().await;
    cannot_join(
        &c,
        &token,
        "c",
        Code::PermissionDenied,
        &["used before", "host token"],
    )
    .await;
    let good = a.token().await;
    c.peers.join(&good, "c", "").await.unwrap();
    are_connected(&b, &a).await;
}

#[tokio::test]
async fn a_token_ends() {
    let a = TestHost::first("a").await;
    let (token, _) = a.peers.create_token(Duration::from_millis(1)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let b = TestHost::new().await;
    cannot_join(
        &b,
        &token,
        "b",
        Code::PermissionDenied,
        &["expired", "host token"],
    )
    .await;
    assert!(matches!(
        a.peers.create_token(Duration::from_secs(31 * 24 * 3600)).await,
        Err(AdminError::TokenValidity)
    ));
}

#[tokio::test]
async fn a_token_without_its_secret_is_worth_nothing() {
    let a = TestHost::first("a").await;
    let token = a.token().await;
    let guess = format!("{}:{}", token.rsplit_once(':').unwrap().0, "0".repeat(32));
    let b = TestHost::new().await;
    cannot_join(&b, &guess, "b", Code::PermissionDenied, &["not known"]).await;
    cannot_join(&b, "tranship", "b", Code::InvalidArgument, &["not a token"]).await;
    b.peers.join(&token, "b", "").await.unwrap();
}

#[tokio::test]
async fn another_cluster_never_sees_the_secret() {
    let (a, other) = (TestHost::first("a").await, TestHost::first("a").await);
    let token = a.token().await;
    // The token's address leads to the other cluster.
    let astray = token.replace(&a.address().to_string(), &other.address().to_string());
    let b = TestHost::new().await;
    cannot_join(
        &b,
        &astray,
        "b",
        Code::PermissionDenied,
        &["another cluster", "was not used"],
    )
    .await;
    b.peers.join(&token, "b", "").await.unwrap();
}

#[tokio::test]
async fn a_name_that_is_taken_leaves_the_token_good() {
    let a = TestHost::first("a").await;
    let _b = TestHost::joined("b", &a).await;
    let token = a.token().await;
    let c = TestHost::new().await;
    cannot_join(&c, &token, "b", Code::AlreadyExists, &["host named b", "--name"]).await;
    cannot_join(&c, &token, "a", Code::AlreadyExists, &["host named a"]).await;
    cannot_join(&c, &token, "B", Code::InvalidArgument, &["lower-case"]).await;
    c.peers.join(&token, "c", "").await.unwrap();
}

#[tokio::test]
async fn nobody_at_the_tokens_address_is_said_so() {
    let a = TestHost::first("a").await;
    let token = a.token().await;
    let (address, b) = (a.address().to_string(), TestHost::new().await);
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let astray = token.replace(&address, &closed.to_string());
    cannot_join(
        &b,
        &astray,
        "b",
        Code::Unavailable,
        &[&closed.to_string(), "refused", "was not used"],
    )
    .await;
}

#[tokio::test]
async fn a_cluster_is_begun_once() {
    let a = TestHost::first("a").await;
    let again = a.peers.init("a", "").await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);
    assert!(
        again.to_string().contains("in a cluster already, as a"),
        "{again}"
    );
    let other = TestHost::first("x").await;
    let token = other.token().await;
    assert!(matches!(
        a.peers.join(&token, "a2", "").await,
        Err(AdminError::AlreadyMember(_))
    ));
}

#[tokio::test]
async fn outside_a_cluster_there_is_nothing_to_do_but_join() {
    let host = TestHost::new().await;
    for error in [
        host.peers.create_token(Duration::ZERO).await.unwrap_err(),
        host.peers.list(false).await.unwrap_err(),
        host.peers.remove("a").await.unwrap_err(),
    ] {
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.to_string().contains("host init"), "{error}");
    }
    assert!(host.peers.control(&"a".parse().unwrap()).is_err());
}

#[tokio::test]
async fn only_the_host_with_the_key_invites() {
    let a = TestHost::first("a").await;
    let b = TestHost::joined("b", &a).await;
    let error = b.peers.create_token(Duration::ZERO).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.to_string().contains("host init"), "{error}");
}

#[tokio::test]
async fn everybody_learns_of_a_new_host_and_of_a_removed_one() {
    let a = TestHost::first("a").await;
    let b = TestHost::joined("b", &a).await;
    let c = TestHost::joined("c", &a).await;
    b.until_known("c", true).await;
    are_connected(&b, &c).await;
    are_connected(&c, &b).await;

    b.peers.remove("c").await.unwrap();
    a.until_known("c", false).await;
    assert!(c.peers.identity().is_none(), "c was not told");
    assert!(!c.pki().exists());
    let listed = a.peers.list(true).await.unwrap();
    let names: Vec<_> = listed
        .iter()
        .map(|host| (host.name.as_str(), host.reachable))
        .collect();
    assert_eq!(names, [("a", true), ("b", true)]);
    assert_eq!(a.peers.remove("c").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_removed_host_is_out_even_if_it_was_not_told() {
    let a = TestHost::first("a").await;
    let b = TestHost::joined("b", &a).await;
    let before = own(&b.pki());
    let mut kept = Client::new(own(&b.pki()), ALPN_CONTROL)
        .peer_client(a.address())
        .await;
    kept.preflight(PreflightRequest::default()).await.unwrap();

    a.peers.remove("b").await.unwrap();
    let refused = kept.preflight(PreflightRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains("b was removed"), "{refused}");
    let back = SyncHostsRequest { hosts: vec![] };
    assert_eq!(
        kept.sync_hosts(back).await.unwrap_err().code(),
        Code::PermissionDenied
    );

    let refusals = a.refused("host");
    Client::new(before, ALPN_CONTROL)
        .must_be_closed_out(a.address())
        .await;
    assert_eq!(a.refused("host"), refusals + 1);
    assert!(a.peers.control(&"b".parse().unwrap()).is_err());
}

#[tokio::test]
async fn a_name_can_be_used_again_but_not_by_the_removed_host() {
    let a = TestHost::first("a").await;
    let b = TestHost::joined("b", &a).await;
    let removed = own(&b.pki());
    a.peers.remove("b").await.unwrap();

    b.peers.join(&a.token().await, "b", "").await.unwrap();
    are_connected(&a, &b).await;
    are_connected(&b, &a).await;
    let refusals = a.refused("host");
    Client::new(removed, ALPN_CONTROL)
        .must_be_closed_out(a.address())
        .await;
    assert_eq!(a.refused("host"), refusals + 1);
}

#[tokio::test]
async fn a_host_can_leave_and_the_one_with_the_key_only_as_the_last() {
    let a = TestHost::first("a").await;
    let b = TestHost::joined("b", &a).await;
    let error = a.peers.remove("a").await.unwrap_err();
    assert!(matches!(error, AdminError::LastAuthority(_)), "{error}");
    b.peers.remove("b").await.unwrap();
    assert!(b.peers.identity().is_none());
    a.until_known("b", false).await;
    a.peers.remove("a").await.unwrap();
    assert!(a.peers.identity().is_none());
    a.peers.init("a", "").await.unwrap();
}

#[tokio::test]
async fn a_restarted_host_is_who_it_was() {
    let a = TestHost::first("a").await;
    let b = TestHost::joined("b", &a).await;
    are_connected(&a, &b).await;
    let b = b.restarted().await;
    assert_eq!(b.name().as_str(), "b");
    let a = a.restarted().await;
    are_connected(&b, &a).await;
    are_connected(&a, &b).await;
}

#[tokio::test]
async fn a_host_that_was_away_learns_what_it_missed() {
    let a = TestHost::first("a").await;
    let b = TestHost::joined("b", &a).await;
    let c = TestHost::joined("c", &a).await;
    b.until_known("c", true).await;
    let b_was = b.stopped().await;
    a.peers.remove("c").await.unwrap();
    let b = b_was.started().await;
    b.until_known("c", false).await;
    drop(c);
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_listed_with_the_reason() {
    let a = TestHost::first("a").await;
    let b = TestHost::joined("b", &a).await;
    let away = b.stopped().await;
    let listed = a.peers.list(true).await.unwrap();
    let b = listed.iter().find(|host| host.name == "b").unwrap();
    assert!(!b.reachable && b.error.contains("cannot be reached"), "{b:?}");
    drop(away);
}
