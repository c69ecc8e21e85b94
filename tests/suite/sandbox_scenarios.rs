//! The built binary through one planned misfortune at a time (contract section 3).

use crate::fault_proxy::{Fault, Op, Payload, Wire, WiredSandbox};
use crate::gateway_event::{GatewayEventBuilder, post};
use crate::runtime_api::{DeadlineHeader, epoch_millis};
use crate::sandbox::{CALM, Outcome, Sandbox, Settings};
use crate::sdk_client::{self, Retries};
use crate::test_app::{Answer, KEY, PROJECT, Resources};
use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use test_support::local_aws;
use tokio::sync::RwLockReadGuard;

/// Tables and a queue, and [`KEY`] for project `acme`.
struct Aws {
    resources: Resources,
    _calm: RwLockReadGuard<'static, ()>,
}

async fn aws() -> Aws {
    let calm = CALM.read().await;
    let resources = Resources::create().await;
    resources.put_key(KEY, PROJECT, &[]).await;
    Aws { resources, _calm: calm }
}

impl Deref for Aws {
    type Target = Resources;

    fn deref(&self) -> &Resources {
        &self.resources
    }
}

fn wire(plan: impl Fn(&crate::fault_proxy::Call) -> Fault + Send + Sync + 'static) -> Arc<Wire> {
    Wire::new(&local_aws::endpoint(), plan)
}

async fn sandbox(wire: &Arc<Wire>, aws: &Resources) -> WiredSandbox {
    wire.sandbox(aws, |settings| settings).await
}

fn batch(events: usize) -> GatewayEventBuilder {
    let event = |i| json!({ "external_user_id": format!("usr_{i}"), "name": "scenario", "properties": { "i": i } });
    post().events(&(0..events).map(event).collect::<Vec<_>>())
}

/// How often each event id is in the queue.
async fn copies(aws: &Resources) -> BTreeMap<String, usize> {
    let mut copies = BTreeMap::new();
    for (id, _) in aws.drain_events().await {
        *copies.entry(id).or_default() += 1;
    }
    copies
}

/// Asserts that the queue holds each event of one batch so many times, under one batch id.
async fn assert_copies(aws: &Resources, events: usize, each: usize) {
    let copies = copies(aws).await;
    assert_eq!(copies.len(), events, "{copies:?}");
    assert!(copies.values().all(|count| *count == each), "{copies:?}");
    let batch = |id: &String| id.rsplit_once('-').map(|(batch, _)| batch.to_owned());
    assert!(copies.keys().all(|id| batch(id) == copies.keys().next().and_then(batch)), "{copies:?}");
}

fn assert_unavailable(answer: &Answer) {
    answer.assert_error(503, "service_unavailable");
    assert!(retry_after(answer) >= 1);
}

fn retry_after(answer: &Answer) -> u64 {
    answer.header("retry-after").expect("Retry-After").parse().expect("whole seconds")
}

/// Sends as the vendor SDK does with its defaults; a killed sandbox is replaced.
async fn send_like_an_sdk(wire: &Arc<Wire>, aws: &Resources, event: &Value, jitter: f64) -> Vec<sdk_client::Attempt> {
    sdk_client::send(
        Retries::SDK,
        |pause| pause.mul_f64(jitter),
        || async {
            let sandbox = sandbox(wire, aws).await;
            let answer = sandbox.send(event).await.into_answer();
            sandbox.sandbox.end().await;
            answer
        },
    )
    .await
}

#[tokio::test]
async fn killed_between_claim_and_send_an_sdk_client_still_gets_its_202() {
    // The shortest and the longest pauses that its jitter may choose.
    for jitter in [0.0, 1.0] {
        let aws = aws().await;
        let wire = wire(|call| if call.is(Op::Send, 1) { Fault::KillBefore } else { Fault::None });
        let request = batch(120).build();

        let attempts = send_like_an_sdk(&wire, &aws, &request, jitter).await;

        assert!(attempts[0].answer.is_none(), "the first attempt dies");
        attempts.last().and_then(|attempt| attempt.answer.as_ref()).expect("an answer").assert_accepted();
        let died = attempts[0].ended;
        let served = attempts.last().expect("attempts").ended;
        assert!(served - died < Duration::from_secs(9), "guarantee 6: {:?}", served - died);
        assert_copies(&aws, 120, 1).await;
        let leases = wire.calls().into_iter().filter_map(|call| match call.payload {
            Payload::Lease(until) => Some(until),
            _ => None,
        });
        assert!(leases.count() >= 2, "a claim and a take-over");
    }
}

#[tokio::test]
async fn a_dead_holders_lease_is_over_within_five_seconds() {
    let aws = aws().await;
    let wire = wire(|call| if call.is(Op::Send, 1) { Fault::KillBefore } else { Fault::None });
    let request = post();
    let before = epoch_millis();
    let dying = sandbox(&wire, &aws).await;
    assert!(matches!(dying.send(&request.build()).await, Outcome::Died));
    let Payload::Lease(lease) = wire.calls_of(Op::Claim)[0].payload else { panic!("a claim has a lease") };
    assert!((before..=epoch_millis() + 5000).contains(&lease));
}

#[tokio::test]
async fn killed_after_the_send_the_retry_doubles_under_the_same_ids() {
    for fault in [Fault::KillAfter, Fault::KillDuring(Duration::from_millis(200))] {
        let aws = aws().await;
        let wire = wire(move |call| if call.is(Op::Send, 1) { fault.clone() } else { Fault::None });
        let attempts = send_like_an_sdk(&wire, &aws, &batch(120).build(), 0.5).await;
        attempts.last().and_then(|attempt| attempt.answer.as_ref()).expect("an answer").assert_accepted();
        assert_copies(&aws, 120, 2).await;
    }
}

#[tokio::test]
async fn killed_at_the_completion_the_client_has_its_202_and_who_asks_again_gets_it_again() {
    for (fault, replayed) in [(Fault::KillBefore, None), (Fault::KillAfter, Some("true"))] {
        let aws = aws().await;
        let kill = fault.clone();
        let wire = wire(move |call| if call.is(Op::Complete, 1) { kill.clone() } else { Fault::None });
        let request = batch(3).build();
        let first = send_like_an_sdk(&wire, &aws, &request, 0.5).await;
        assert_eq!(first.len(), 1, "its sandbox dies after the answer");
        let again = send_like_an_sdk(&wire, &aws, &request, 0.5).await;
        let answer = again.last().and_then(|attempt| attempt.answer.as_ref()).expect("an answer");
        answer.assert_accepted();
        assert_eq!(answer.header("idempotency-replayed"), replayed, "{fault:?}");
        assert_copies(&aws, 3, if replayed.is_some() { 1 } else { 2 }).await;
    }
}

#[tokio::test]
async fn the_completion_comes_after_the_answer_and_before_the_next_request() {
    let aws = aws().await;
    let wire = wire(|call| match call.op {
        Op::Complete => Fault::SlowReply(Duration::from_millis(500)),
        _ => Fault::None,
    });
    let sandbox = sandbox(&wire, &aws).await;
    let first = sandbox.invoke("first", &post().key("first").build()).await;
    let second = sandbox.invoke("second", &post().key("second").build()).await;
    first.outcome.answer().assert_accepted();
    second.outcome.answer().assert_accepted();
    sandbox.idle().await;
    let completions = wire.calls_of(Op::Complete);
    assert_eq!(completions.iter().map(|call| &*call.label).collect::<Vec<_>>(), ["first", "second"]);
    let replied = completions[0].replied.expect("a reply");
    assert!(first.ended < replied, "the client does not wait for the write");
    assert!(second.started.expect("started") >= replied, "the sandbox does");
}

#[tokio::test]
async fn a_message_refused_for_long_never_resends_the_others() {
    let aws = aws().await;
    let refusing = Arc::new(AtomicBool::new(true));
    let switch = refusing.clone();
    let wire = wire(move |call| match call.op {
        Op::Send if switch.load(Ordering::Relaxed) => Fault::Partial(call.entries_with(137)),
        _ => Fault::None,
    });
    let request = batch(500).build();
    let sandbox = sandbox(&wire, &aws).await;
    for _ in 0..2 {
        assert_unavailable(&sandbox.send(&request).await.answer());
    }
    refusing.store(false, Ordering::Relaxed);
    sandbox.send(&request).await.answer().assert_accepted();
    assert_copies(&aws, 500, 1).await;
    let sends = wire.calls_of(Op::Send);
    assert_eq!(sends[0].entries().len(), 10);
    assert!(sends.len() >= 5 && sends[1..].iter().all(|send| send.entries().len() == 1), "only the rest is sent");
}

#[tokio::test]
async fn a_refused_completion_is_still_a_202_and_is_logged() {
    let aws = aws().await;
    let wire = wire(|call| match call.op {
        Op::Complete => Fault::Error(500, "InternalServerError"),
        _ => Fault::None,
    });
    let sandbox = sandbox(&wire, &aws).await;
    sandbox.send(&batch(60).build()).await.answer().assert_accepted();
    let logs = sandbox.sandbox.end().await;
    assert!(wire.calls_of(Op::Complete).len() > 3, "tried beyond the SDK's own tries");
    assert_copies(&aws, 60, 1).await;
    let line = logs.iter().find(|line| line["message"] == "request").expect("a request line");
    assert_eq!((&line["completion"], &line["level"], &line["status"]), (&json!("failed"), &json!("WARN"), &json!(202)));
}

#[tokio::test]
async fn a_refused_release_lets_the_lease_run_out_by_itself() {
    let aws = aws().await;
    let refusing = Arc::new(AtomicBool::new(true));
    let switch = refusing.clone();
    let wire = wire(move |call| match call.op {
        Op::Release => Fault::Error(400, "ProvisionedThroughputExceededException"),
        Op::Send if switch.load(Ordering::Relaxed) => Fault::Error(503, "ServiceUnavailable"),
        _ => Fault::None,
    });
    let request = batch(2).build();
    let first = wire.sandbox(&aws, |settings| settings.timeout(Duration::from_millis(1200))).await;
    assert_unavailable(&first.send(&request).await.answer());
    let releases = wire.calls_of(Op::Release);
    assert!(releases.len() > 1 && releases.iter().all(|release| release.effect.is_none()));
    refusing.store(false, Ordering::Relaxed);
    sandbox(&wire, &aws).await.send(&request).await.answer().assert_accepted();
    let Payload::Lease(lease) = wire.calls_of(Op::Claim)[0].payload else { panic!("a claim has a lease") };
    assert!(wire.calls_of(Op::TakeOver).len() == 1 && epoch_millis() >= lease, "it waited for the lease");
    assert_copies(&aws, 2, 1).await;
}

#[tokio::test]
async fn a_hanging_queue_is_a_503_in_time_that_keeps_what_was_delivered() {
    let aws = aws().await;
    let hanging = Arc::new(AtomicBool::new(true));
    let switch = hanging.clone();
    let wire = wire(move |call| match call.op {
        // Twenty messages are two calls: the one with the first event passes.
        Op::Send if switch.load(Ordering::Relaxed) && call.entries_with(0).is_empty() => Fault::Hang,
        _ => Fault::None,
    });
    let request = batch(500);
    let sandbox = wire.sandbox(&aws, |settings| settings.with("MAX_EVENTS_PER_MESSAGE", "25")).await;
    assert_unavailable(&sandbox.send(&request.build()).await.answer());
    hanging.store(false, Ordering::Relaxed);
    sandbox.send(&request.build()).await.answer().assert_accepted();
    assert_copies(&aws, 500, 1).await;
}

#[tokio::test]
async fn a_hanging_table_is_a_503_in_time() {
    for op in [Op::KeyLookup, Op::Claim] {
        let aws = aws().await;
        let wire = wire(move |call| if call.op == op { Fault::Hang } else { Fault::None });
        let sandbox = sandbox(&wire, &aws).await;
        assert_unavailable(&sandbox.send(&post().build()).await.answer());
        assert!(wire.calls_of(Op::Send).is_empty());
        assert!(aws.drain().await.is_empty());
    }
}

#[tokio::test]
async fn a_table_that_hangs_after_the_claim_cannot_take_the_202() {
    let aws = aws().await;
    let wire = wire(|call| if call.op == Op::Complete { Fault::Hang } else { Fault::None });
    let sandbox = sandbox(&wire, &aws).await;
    sandbox.send(&post().build()).await.answer().assert_accepted();
    assert_copies(&aws, 1, 1).await;
}

#[tokio::test]
async fn a_twin_waits_for_the_running_request_and_replays() {
    let aws = aws().await;
    let wire = wire(|call| match call.op {
        Op::Send => Fault::SlowReply(Duration::from_secs(1)),
        _ => Fault::None,
    });
    let (first, second) = (sandbox(&wire, &aws).await, sandbox(&wire, &aws).await);
    let request = batch(3).build();
    let (a, b) = tokio::join!(first.send(&request), second.send(&request));
    let answers = [a.answer(), b.answer()];
    answers.iter().for_each(Answer::assert_accepted);
    let replayed = answers.iter().filter(|answer| answer.header("idempotency-replayed").is_some()).count();
    assert_eq!(replayed, 1);
    assert!(wire.calls_of(Op::Read).len() <= 12, "few reads");
    assert_copies(&aws, 3, 1).await;
}

#[tokio::test]
async fn a_twin_of_a_request_that_takes_too_long_is_told_to_come_back() {
    let aws = aws().await;
    let wire = wire(|call| match call.op {
        // The holder keeps its key to the end of its lease.
        Op::Send | Op::Release => Fault::Hang,
        _ => Fault::None,
    });
    let (holder, twin) = (sandbox(&wire, &aws).await, sandbox(&wire, &aws).await);
    let request = batch(3).build();
    let twin = async {
        wire.saw(Op::Send, 1).await;
        twin.send(&request).await.answer()
    };
    let (holder, twin) = tokio::join!(holder.send(&request), twin);
    assert_unavailable(&holder.answer());
    twin.assert_error(503, "request_in_progress");
    assert!((1..=3).contains(&retry_after(&twin)), "{twin:?}");
    assert!(aws.drain().await.is_empty());
}

#[tokio::test]
async fn a_twin_in_a_hurry_is_told_to_come_back_before_its_own_deadline() {
    let aws = aws().await;
    let wire = wire(|call| if call.op == Op::Send { Fault::Hang } else { Fault::None });
    let holder = sandbox(&wire, &aws).await;
    let twin = wire.sandbox(&aws, |settings| settings.timeout(Duration::from_millis(2500))).await;
    let request = batch(3).build();
    let twin = async {
        wire.saw(Op::Send, 1).await;
        twin.send(&request).await.answer()
    };
    let (_, twin) = tokio::join!(holder.send(&request), twin);
    twin.assert_error(503, "request_in_progress");
    assert!((2..=5).contains(&retry_after(&twin)), "{twin:?}");
}

#[tokio::test]
async fn an_odd_deadline_is_survived() {
    let aws = aws().await;
    let wire = wire(|_| Fault::None);
    let past = epoch_millis() - 60_000;
    for deadline in [0, 1, past, 1_700_000_000_000, epoch_millis() + 900_000, u64::MAX] {
        let sandbox = wire.sandbox(&aws, |settings| settings.deadline(DeadlineHeader::Constant(deadline))).await;
        for _ in 0..2 {
            sandbox.send(&post().build()).await.answer().assert_accepted();
        }
        for call in wire.calls_of(Op::Claim) {
            let Payload::Lease(lease) = call.payload else { panic!("a claim has a lease") };
            assert!(lease <= epoch_millis() + 5000, "deadline {deadline} makes a lease of {lease}");
        }
        sandbox.sandbox.end().await;
    }
}

#[tokio::test]
async fn a_deadline_too_near_is_a_503_without_a_trace() {
    let aws = aws().await;
    let wire = wire(|_| Fault::None);
    let short = wire.sandbox(&aws, |settings| settings.timeout(Duration::from_millis(500))).await;
    assert_unavailable(&short.send(&post().build()).await.answer());
    assert!(aws.drain().await.is_empty());
    assert_eq!(aws.count_records().await, 0);
}

#[tokio::test]
async fn a_bad_configuration_ends_the_process_with_one_line_that_names_all_of_it() {
    let aws = aws().await;
    let settings = Settings::new(&aws, "")
        .without("EVENTS_QUEUE_URL")
        .with("STATE_TABLE", "")
        .without("API_KEYS_TABLE")
        .with("MAX_EVENTS_PER_MESSAGE", "501")
        .with("DEDUP_WINDOW_SECONDS", "59")
        .with("RATE_LIMIT_EVENTS_PER_SECOND", "-1");
    let mut sandbox = Sandbox::start(settings).await;
    let (status, logs) = sandbox.exited().await;
    assert!(!status.success());
    assert_eq!(logs.len(), 1, "{logs:?}");
    let line = &logs[0];
    assert_eq!(line["level"], "ERROR");
    let message = line["message"].as_str().expect("a message");
    for variable in [
        "EVENTS_QUEUE_URL",
        "STATE_TABLE",
        "API_KEYS_TABLE",
        "MAX_EVENTS_PER_MESSAGE",
        "DEDUP_WINDOW_SECONDS",
        "RATE_LIMIT_EVENTS_PER_SECOND",
        "AWS_ENDPOINT_URL",
    ] {
        assert!(message.contains(variable), "{variable} is missing from {message:?}");
    }
}

#[tokio::test]
async fn odd_events_are_answered() {
    let aws = aws().await;
    let wire = wire(|_| Fault::None);
    let sandbox = sandbox(&wire, &aws).await;
    let cases: [(Value, u64, &str); 9] = [
        (json!({}), 404, "not_found"),
        (json!({ "version": "2.0" }), 404, "not_found"),
        (json!({ "headers": null, "body": null, "requestContext": {} }), 404, "not_found"),
        (post().raw_body("not base64!", true).build(), 400, "malformed_encoding"),
        (post().raw_body("{\"events\"", false).build(), 400, "malformed_json"),
        (post().path("/api v1/\u{e9}<>/\\").build(), 404, "not_found"),
        (
            post().header("x-n\u{f6}n", "\u{1f600}").header("content-type", "t\u{e9}xt").build(),
            415,
            "unsupported_media_type",
        ),
        (post().key("cl\u{e9}").build(), 400, "idempotency_key_invalid"),
        (post().header("authorization", "Bearer \u{1f600}").build_v1(), 401, "auth_required"),
    ];
    for (event, status, code) in cases {
        let answer = sandbox.send(&event).await.answer();
        answer.assert_error(status, code);
    }
    // And it is none the worse for it.
    sandbox.send(&post().build()).await.answer().assert_accepted();
    assert_copies(&aws, 1, 1).await;
    let logs = sandbox.sandbox.end().await;
    assert_eq!(logs.iter().filter(|line| line["message"] == "request").count(), 10, "{logs:?}");
}

#[tokio::test]
async fn every_step_of_a_lost_acknowledgement_ends_in_the_queue() {
    for op in [Op::KeyLookup, Op::Claim, Op::Send, Op::Complete] {
        for fault in [Fault::CutBefore, Fault::CutAfter] {
            let aws = aws().await;
            let doubled = op == Op::Send && fault == Fault::CutAfter;
            let wire = wire(move |call| if call.is(op, 1) { fault.clone() } else { Fault::None });
            let sandbox = sandbox(&wire, &aws).await;
            sandbox.send(&batch(2).build()).await.answer().assert_accepted();
            let each = if doubled { 2 } else { 1 };
            assert_copies(&aws, 2, each).await;
        }
    }
}

#[tokio::test]
async fn the_record_says_what_was_delivered() {
    let aws = aws().await;
    let wire = wire(|call| match call.op {
        Op::Send => Fault::Partial(call.entries_with(1)),
        _ => Fault::None,
    });
    let sandbox = wire.sandbox(&aws, |settings| settings.with("MAX_EVENTS_PER_MESSAGE", "1")).await;
    assert_unavailable(&sandbox.send(&batch(3).key("partly").build()).await.answer());
    let record = aws.record("partly").await.expect("a record");
    assert_eq!(record["state"], AttributeValue::S("in_progress".to_owned()));
    assert_eq!(record["delivered"].as_b().expect("binary").as_ref(), [0b101]);
    assert_eq!(record["lease_until"], AttributeValue::N("0".to_owned()));
}

#[tokio::test]
async fn the_function_knows_of_every_send_that_was_tried() {
    let aws = aws().await;
    let wire = wire(|call| match (call.op, call.nth) {
        (Op::Send, 1) => Fault::Error(500, "InternalError"),
        (Op::Send, 2) => Fault::CutBefore,
        (Op::Send, 3) => Fault::Error(400, "RequestThrottled"),
        (Op::Send, 4) => Fault::Partial(call.entries_with(7)),
        _ => Fault::None,
    });
    let sandbox = sandbox(&wire, &aws).await;
    sandbox.send(&batch(60).build()).await.answer().assert_accepted();
    assert_copies(&aws, 60, 1).await;
    let sends = wire.calls_of(Op::Send).len();
    let logs = sandbox.sandbox.end().await;
    let line = logs.iter().find(|line| line["message"] == "request").expect("a request line");
    assert_eq!((sends, &line["send_calls"]), (5, &json!(5)), "no send is repeated behind the pipeline's back");
}
