//! Failures of SQS and `DynamoDB`, and the order of the writes.

use super::{assert_copies, assert_unavailable, aws, batch, proxy, sandbox};
use crate::fault_proxy::{Fault, Op, Payload};
use crate::gateway_event::post;
use crate::runtime_api::epoch_millis;
use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[tokio::test]
async fn the_completion_runs_after_the_response_and_before_the_next_request() {
    let aws = aws().await;
    let proxy = proxy(|call| match call.op {
        Op::Complete => Fault::SlowResponse(Duration::from_millis(500)),
        _ => Fault::None,
    });
    let sandbox = sandbox(&proxy, &aws).await;
    let first = sandbox.invoke("first", &post().key("first").build()).await;
    let second = sandbox.invoke("second", &post().key("second").build()).await;
    first.outcome.response().assert_accepted();
    second.outcome.response().assert_accepted();
    sandbox.idle().await;
    let completions = proxy.calls_of(Op::Complete);
    assert_eq!(completions.iter().map(|call| &*call.label).collect::<Vec<_>>(), ["first", "second"]);
    let responded = completions[0].responded.expect("a response");
    assert!(first.ended < responded, "the client must not wait for the write");
    assert!(second.started.expect("started") >= responded, "the sandbox must finish the write before the next request");
}

#[tokio::test]
async fn a_message_that_sqs_refuses_repeatedly_is_sent_again_alone() {
    let aws = aws().await;
    let refusing = Arc::new(AtomicBool::new(true));
    let switch = refusing.clone();
    let proxy = proxy(move |call| match call.op {
        Op::Send if switch.load(Ordering::Relaxed) => Fault::Partial(call.entries_with(137)),
        _ => Fault::None,
    });
    let request = batch(500).build();
    let sandbox = sandbox(&proxy, &aws).await;
    for _ in 0..2 {
        assert_unavailable(&sandbox.send(&request).await.response());
    }
    refusing.store(false, Ordering::Relaxed);
    sandbox.send(&request).await.response().assert_accepted();
    assert_copies(&aws, 500, 1).await;
    let sends = proxy.calls_of(Op::Send);
    assert_eq!(sends[0].entries().len(), 10);
    assert!(
        sends.len() >= 5 && sends[1..].iter().all(|send| send.entries().len() == 1),
        "only the refused message is sent again"
    );
}

#[tokio::test]
async fn a_failed_completion_leaves_the_202_and_is_logged() {
    let aws = aws().await;
    let proxy = proxy(|call| match call.op {
        Op::Complete => Fault::Error(500, "InternalServerError"),
        _ => Fault::None,
    });
    let sandbox = sandbox(&proxy, &aws).await;
    sandbox.send(&batch(60).build()).await.response().assert_accepted();
    let logs = sandbox.sandbox.end().await;
    assert!(proxy.calls_of(Op::Complete).len() > 3, "the function must retry beyond the retries of the SDK");
    assert_copies(&aws, 60, 1).await;
    let line = logs.iter().find(|line| line["message"] == "request").expect("a request line");
    assert_eq!((&line["completion"], &line["level"], &line["status"]), (&json!("failed"), &json!("WARN"), &json!(202)));
}

#[tokio::test]
async fn after_a_failed_release_the_lease_ends_by_itself() {
    let aws = aws().await;
    let refusing = Arc::new(AtomicBool::new(true));
    let switch = refusing.clone();
    let proxy = proxy(move |call| match call.op {
        Op::Release => Fault::Error(400, "ProvisionedThroughputExceededException"),
        Op::Send if switch.load(Ordering::Relaxed) => Fault::Error(503, "ServiceUnavailable"),
        _ => Fault::None,
    });
    let request = batch(2).build();
    let first = proxy.sandbox(&aws, |settings| settings.timeout(Duration::from_millis(1200))).await;
    assert_unavailable(&first.send(&request).await.response());
    let releases = proxy.calls_of(Op::Release);
    assert!(releases.len() > 1 && releases.iter().all(|release| release.effect.is_none()));
    refusing.store(false, Ordering::Relaxed);
    sandbox(&proxy, &aws).await.send(&request).await.response().assert_accepted();
    let Payload::Lease(lease) = proxy.calls_of(Op::Claim)[0].payload else { panic!("a claim has a lease") };
    assert!(
        proxy.calls_of(Op::TakeOver).len() == 1 && epoch_millis() >= lease,
        "the take-over must wait for the end of the lease"
    );
    assert_copies(&aws, 2, 1).await;
}

#[tokio::test]
async fn a_queue_that_hangs_leads_to_a_503_in_time_and_delivered_events_are_not_sent_again() {
    let aws = aws().await;
    let hanging = Arc::new(AtomicBool::new(true));
    let switch = hanging.clone();
    let proxy = proxy(move |call| match call.op {
        // Twenty messages take two calls. The one with the first event passes.
        Op::Send if switch.load(Ordering::Relaxed) && call.entries_with(0).is_empty() => Fault::Hang,
        _ => Fault::None,
    });
    let request = batch(500);
    let sandbox = proxy.sandbox(&aws, |settings| settings.with("MAX_EVENTS_PER_MESSAGE", "25")).await;
    assert_unavailable(&sandbox.send(&request.build()).await.response());
    hanging.store(false, Ordering::Relaxed);
    sandbox.send(&request.build()).await.response().assert_accepted();
    assert_copies(&aws, 500, 1).await;
}

#[tokio::test]
async fn a_table_that_hangs_leads_to_a_503_in_time() {
    for op in [Op::KeyLookup, Op::Claim] {
        let aws = aws().await;
        let proxy = proxy(move |call| if call.op == op { Fault::Hang } else { Fault::None });
        let sandbox = sandbox(&proxy, &aws).await;
        assert_unavailable(&sandbox.send(&post().build()).await.response());
        assert!(proxy.calls_of(Op::Send).is_empty());
        assert!(aws.drain().await.is_empty());
    }
}

#[tokio::test]
async fn a_table_that_hangs_after_the_claim_does_not_prevent_the_202() {
    let aws = aws().await;
    let proxy = proxy(|call| if call.op == Op::Complete { Fault::Hang } else { Fault::None });
    let sandbox = sandbox(&proxy, &aws).await;
    sandbox.send(&post().build()).await.response().assert_accepted();
    assert_copies(&aws, 1, 1).await;
}

#[tokio::test]
async fn a_broken_connection_at_any_call_ends_in_a_202() {
    for op in [Op::KeyLookup, Op::Claim, Op::Send, Op::Complete] {
        for fault in [Fault::CutBefore, Fault::CutAfter] {
            let aws = aws().await;
            let doubled = op == Op::Send && fault == Fault::CutAfter;
            let proxy = proxy(move |call| if call.is(op, 1) { fault.clone() } else { Fault::None });
            let sandbox = sandbox(&proxy, &aws).await;
            sandbox.send(&batch(2).build()).await.response().assert_accepted();
            let each = if doubled { 2 } else { 1 };
            assert_copies(&aws, 2, each).await;
        }
    }
}

#[tokio::test]
async fn the_record_contains_the_delivered_events_after_a_failure() {
    let aws = aws().await;
    let proxy = proxy(|call| match call.op {
        Op::Send => Fault::Partial(call.entries_with(1)),
        _ => Fault::None,
    });
    let sandbox = proxy.sandbox(&aws, |settings| settings.with("MAX_EVENTS_PER_MESSAGE", "1")).await;
    assert_unavailable(&sandbox.send(&batch(3).key("partly").build()).await.response());
    let record = aws.record("partly").await.expect("a record");
    assert_eq!(record["state"], AttributeValue::S("in_progress".to_owned()));
    assert_eq!(record["delivered"].as_b().expect("binary").as_ref(), [0b101]);
    assert_eq!(record["lease_until"], AttributeValue::N("0".to_owned()));
}

#[tokio::test]
async fn the_log_counts_every_send() {
    let aws = aws().await;
    let proxy = proxy(|call| match (call.op, call.nth) {
        (Op::Send, 1) => Fault::Error(500, "InternalError"),
        (Op::Send, 2) => Fault::CutBefore,
        (Op::Send, 3) => Fault::Error(400, "RequestThrottled"),
        (Op::Send, 4) => Fault::Partial(call.entries_with(7)),
        _ => Fault::None,
    });
    let sandbox = sandbox(&proxy, &aws).await;
    sandbox.send(&batch(60).build()).await.response().assert_accepted();
    assert_copies(&aws, 60, 1).await;
    let sends = proxy.calls_of(Op::Send).len();
    let logs = sandbox.sandbox.end().await;
    let line = logs.iter().find(|line| line["message"] == "request").expect("a request line");
    assert_eq!((sends, &line["send_calls"]), (5, &json!(5)), "the SDK must not repeat a send");
}
