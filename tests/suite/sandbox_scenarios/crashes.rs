//! Sandboxes that are killed during a call.

use super::{assert_copies, aws, batch, proxy, sandbox, send_like_an_sdk};
use crate::fault_proxy::{Fault, Op, Payload};
use crate::gateway_event::post;
use crate::runtime_api::epoch_millis;
use crate::sandbox::Outcome;
use std::time::Duration;

#[tokio::test]
async fn an_sdk_client_gets_a_202_although_the_first_sandbox_died_between_claim_and_send() {
    // The shortest and the longest pauses that the jitter can choose.
    for jitter in [0.0, 1.0] {
        let aws = aws().await;
        let proxy = proxy(|call| if call.is(Op::Send, 1) { Fault::KillBefore } else { Fault::None });
        let request = batch(120).build();

        let attempts = send_like_an_sdk(&proxy, &aws, &request, jitter).await;

        assert!(attempts[0].response.is_none(), "the first attempt must die");
        attempts.last().and_then(|attempt| attempt.response.as_ref()).expect("a response").assert_accepted();
        assert_copies(&aws, 120, 1).await;
        let leases = proxy.calls().into_iter().filter_map(|call| match call.payload {
            Payload::Lease(until) => Some(until),
            _ => None,
        });
        assert!(leases.count() >= 2, "there must be a claim and a take-over");
    }
}

#[tokio::test]
async fn the_lease_of_a_dead_owner_ends_within_five_seconds() {
    let aws = aws().await;
    let proxy = proxy(|call| if call.is(Op::Send, 1) { Fault::KillBefore } else { Fault::None });
    let request = post();
    let before = epoch_millis();
    let dying = sandbox(&proxy, &aws).await;
    assert!(matches!(dying.send(&request.build()).await, Outcome::Died));
    let Payload::Lease(lease) = proxy.calls_of(Op::Claim)[0].payload else { panic!("a claim has a lease") };
    assert!((before..=epoch_millis() + 5000).contains(&lease));
}

#[tokio::test]
async fn a_death_after_the_send_leads_to_duplicates_with_the_same_ids() {
    for fault in [Fault::KillAfter, Fault::KillDuring(Duration::from_millis(200))] {
        let aws = aws().await;
        let proxy = proxy(move |call| if call.is(Op::Send, 1) { fault.clone() } else { Fault::None });
        let attempts = send_like_an_sdk(&proxy, &aws, &batch(120).build(), 0.5).await;
        attempts.last().and_then(|attempt| attempt.response.as_ref()).expect("a response").assert_accepted();
        assert_copies(&aws, 120, 2).await;
    }
}

#[tokio::test]
async fn a_death_during_the_completion_leaves_the_202_and_a_retry_gets_a_202_too() {
    for (fault, replayed) in [(Fault::KillBefore, None), (Fault::KillAfter, Some("true"))] {
        let aws = aws().await;
        let kill = fault.clone();
        let proxy = proxy(move |call| if call.is(Op::Complete, 1) { kill.clone() } else { Fault::None });
        let request = batch(3).build();
        let first = send_like_an_sdk(&proxy, &aws, &request, 0.5).await;
        assert_eq!(first.len(), 1, "the sandbox must die after the response");
        let again = send_like_an_sdk(&proxy, &aws, &request, 0.5).await;
        let response = again.last().and_then(|attempt| attempt.response.as_ref()).expect("a response");
        response.assert_accepted();
        assert_eq!(response.header("idempotency-replayed"), replayed, "{fault:?}");
        assert_copies(&aws, 3, if replayed.is_some() { 1 } else { 2 }).await;
    }
}
