//! Concurrent requests with the same key.

use super::{assert_copies, assert_unavailable, aws, batch, proxy, retry_after, sandbox};
use crate::fault_proxy::{Fault, Op};
use crate::test_app::Response;
use std::time::Duration;

#[tokio::test]
async fn a_concurrent_request_with_the_same_key_waits_and_replays() {
    let aws = aws().await;
    let proxy = proxy(|call| match call.op {
        Op::Send => Fault::SlowResponse(Duration::from_secs(1)),
        _ => Fault::None,
    });
    let (first, second) = (sandbox(&proxy, &aws).await, sandbox(&proxy, &aws).await);
    let request = batch(3).build();
    let (a, b) = tokio::join!(first.send(&request), second.send(&request));
    let responses = [a.response(), b.response()];
    responses.iter().for_each(Response::assert_accepted);
    let replayed = responses.iter().filter(|response| response.header("idempotency-replayed").is_some()).count();
    assert_eq!(replayed, 1);
    assert!(proxy.calls_of(Op::Read).len() <= 12, "the waiting request must poll slowly");
    assert_copies(&aws, 3, 1).await;
}

#[tokio::test]
async fn a_concurrent_request_gets_a_503_if_the_owner_takes_too_long() {
    let aws = aws().await;
    let proxy = proxy(|call| match call.op {
        // The owner keeps its key until the end of its lease.
        Op::Send | Op::Release => Fault::Hang,
        _ => Fault::None,
    });
    let (owner, waiting) = (sandbox(&proxy, &aws).await, sandbox(&proxy, &aws).await);
    let request = batch(3).build();
    let waiting = async {
        proxy.arrival(Op::Send, 1).await;
        waiting.send(&request).await.response()
    };
    let (owner, waiting) = tokio::join!(owner.send(&request), waiting);
    assert_unavailable(&owner.response());
    waiting.assert_error(503, "request_in_progress");
    assert!((1..=3).contains(&retry_after(&waiting)), "{waiting:?}");
    assert!(aws.drain().await.is_empty());
}

#[tokio::test]
async fn a_concurrent_request_gets_a_503_before_its_own_deadline() {
    let aws = aws().await;
    let proxy = proxy(|call| if call.op == Op::Send { Fault::Hang } else { Fault::None });
    let owner = sandbox(&proxy, &aws).await;
    let waiting = proxy.sandbox(&aws, |settings| settings.timeout(Duration::from_millis(2500))).await;
    let request = batch(3).build();
    let waiting = async {
        proxy.arrival(Op::Send, 1).await;
        waiting.send(&request).await.response()
    };
    let (_, waiting) = tokio::join!(owner.send(&request), waiting);
    waiting.assert_error(503, "request_in_progress");
    assert!((2..=5).contains(&retry_after(&waiting)), "{waiting:?}");
}
