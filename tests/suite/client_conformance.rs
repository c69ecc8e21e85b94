//! The conformance suite for clients: every row of the table in docs/clients.md, against a scripted server, and
//! then the function behind the fault proxy. A client takes part through an adapter; docs/conformance.md describes
//! its commands. `CLIENT_ADAPTER` names the command line of another adapter.

mod adapter;
mod scripted_server;

use crate::client_program;
use crate::fault_plan::FaultPlan;
use crate::fault_proxy::FaultProxy;
use crate::fleet::Fleet;
use crate::function_server::{self, Fault};
use crate::sandbox::QUIET_MACHINE;
use crate::test_app::{KEY, PROJECT, Resources};
use adapter::{Adapter, Reply};
use futures_util::StreamExt;
use scripted_server::{ScriptedServer, Step};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use test_support::local_aws;

const OTHER_KEY: &str = "sk_live_abcdefghijklmnopqrstuvwxyzABCD0123456789";
/// The events in one request, in the cases below.
const MAX_EVENTS: usize = 2;
/// The most calls of `flush` until everything is accepted or reported.
const MAX_FLUSHES: usize = 3;

/// A client under test: a function that starts its adapter.
fn client() -> (String, fn() -> tokio::process::Command) {
    if let Ok(command) = std::env::var("CLIENT_ADAPTER") {
        return (command, || {
            let command = std::env::var("CLIENT_ADAPTER").expect("set above");
            let mut words = command.split_whitespace();
            let mut process = tokio::process::Command::new(words.next().expect("a program"));
            process.args(words);
            process
        });
    }
    ("the TypeScript client".to_owned(), || client_program::node("test/conformance-adapter.mjs"))
}

/// A case: its name, and what happens in it.
type Case = (String, Pin<Box<dyn Future<Output = ()> + Send>>);

#[tokio::test]
async fn a_client_follows_the_table() {
    client_program::build().await;
    let (name, _) = client();
    let cases: Vec<Case> =
        [retries(), stops(), splits(), rejections(), strings_and_times()].into_iter().flatten().collect();
    let count = cases.len();
    // Some at once, because most of the time they wait for a backoff.
    let failed: Vec<String> = futures_util::stream::iter(cases)
        .map(async |(case, run)| {
            let passed = tokio::spawn(run).await.is_ok();
            println!("conformance: {}: {case}", if passed { "passed" } else { "FAILED" });
            (!passed).then_some(case)
        })
        .buffer_unordered(4)
        .filter_map(std::future::ready)
        .collect()
        .await;
    println!("conformance: {name} passed {} of {count} cases", count - failed.len());
    assert!(failed.is_empty(), "failed: {failed:#?}");
}

/// A client and a scripted server, for one case.
struct Bench {
    case: String,
    server: ScriptedServer,
    adapter: Adapter,
    tracked: Vec<String>,
}

impl Bench {
    async fn start(case: &str, script: &[Step]) -> Self {
        let server = ScriptedServer::start(script).await;
        // Long enough for a busy machine, unless the case waits for it.
        let timeout_ms = if script.iter().any(|step| matches!(step, Step::Hang)) { 1_000 } else { 10_000 };
        let (_, command) = client();
        let mut adapter = Adapter::start(command());
        let start = json!({
            "command": "start", "base_url": format!("http://{}", server.address()), "api_key": KEY,
            "max_events": MAX_EVENTS, "timeout_ms": timeout_ms,
        });
        adapter.done(&start).await;
        Self { case: case.to_owned(), server, adapter, tracked: Vec::new() }
    }

    /// Tracks an event of its own user.
    async fn track(&mut self, event: Value) {
        let id = format!("usr_{}", self.tracked.len());
        let mut event = event;
        event["user_id"] = id.clone().into();
        self.adapter.done(&json!({ "command": "track", "event": event })).await;
        self.tracked.push(id);
    }

    async fn track_many(&mut self, count: usize) {
        for _ in 0..count {
            self.track(json!({ "name": "fine" })).await;
        }
    }

    async fn flush(&mut self) -> Reply {
        self.adapter.call(&json!({ "command": "flush" })).await
    }

    /// Flushes until everything is accepted or reported. Then checks that each event was accepted once or reported,
    /// and returns those that were reported.
    async fn finish(&mut self) -> BTreeSet<String> {
        let mut flushes = 0;
        while self.flush().await.error.is_some() {
            flushes += 1;
            assert!(flushes < MAX_FLUSHES, "{}: flush still fails", self.case);
        }
        let reported = self.adapter.rejected().await;
        let queue = self.server.queue();
        for id in &self.tracked {
            let count = queue.iter().filter(|queued| queued["external_user_id"] == **id).count();
            let expected = usize::from(!reported.contains(id));
            assert_eq!(count, expected, "{}: {id} in the queue, reported: {reported:?}", self.case);
        }
        assert_eq!(self.server.reused_keys(), 0, "{}: a key was sent with other bytes", self.case);
        reported
    }
}

fn case<F: Future<Output = ()> + Send + 'static>(name: &str, run: impl FnOnce(String) -> F) -> Case {
    (name.to_owned(), Box::pin(run(name.to_owned())))
}

/// The same bytes are sent with the same key, and nothing is reported.
fn retries() -> Vec<Case> {
    let statuses = [408, 409, 421, 425, 429, 500, 501, 502, 503, 504, 511, 599];
    let mut steps: Vec<(String, Step)> =
        statuses.map(|status| (format!("a {status} of a proxy"), Step::proxy(status))).into();
    for (status, code) in
        [(429, "rate_limited"), (503, "request_in_progress"), (503, "service_unavailable"), (500, "internal_error")]
    {
        steps.push((format!("{status} {code}"), Step::refusal(status, code)));
    }
    steps.extend([
        ("a 200 of a proxy".to_owned(), Step::proxy(200)),
        ("a 202 that was cut off".to_owned(), Step::answer(202, r#"{"data":{"acc"#)),
        ("a 202 without accepted".to_owned(), Step::answer(202, r#"{"data":{"accepted":false}}"#)),
        ("a connection that breaks before the request".to_owned(), Step::CutBefore),
        ("a connection that breaks after the request".to_owned(), Step::CutAfter),
        ("no response".to_owned(), Step::Hang),
    ]);
    let mut cases: Vec<Case> = steps
        .into_iter()
        .map(|(name, step)| {
            case(&format!("retry: {name}"), async move |name| {
                let mut bench = Bench::start(&name, &[step]).await;
                bench.track_many(3).await;
                let reported = bench.finish().await;
                assert!(reported.is_empty(), "{name}: {reported:?}");
                let requests = bench.server.requests();
                assert!(requests.len() >= 3, "{name}: {} requests", requests.len());
                assert!(requests[0].is_same(&requests[1]), "{name}: the retry differs");
            })
        })
        .collect();
    for seconds in ["1", "1.5"] {
        cases.push(case(&format!("retry: Retry-After: {seconds}"), async move |name| {
            let step = Step::refusal(429, "rate_limited").with_header("retry-after", seconds);
            let mut bench = Bench::start(&name, &[step]).await;
            bench.track_many(1).await;
            assert!(bench.finish().await.is_empty());
            let requests = bench.server.requests();
            let least = Duration::from_secs_f64(seconds.parse().expect("a number"));
            let waited = requests[1].at - requests[0].at;
            assert!(waited >= least, "{name}: the retry came after {waited:?}");
        }));
    }
    cases
}

/// Nothing is sent until the next flush, and nothing is reported or lost.
fn stops() -> Vec<Case> {
    let mut steps: Vec<(String, Step)> =
        [300, 301, 302, 307, 308, 400, 401, 402, 403, 404, 405, 406, 410, 415, 422, 431, 451]
            .map(|status| (format!("a {status} of a proxy"), Step::proxy(status)))
            .into();
    for (status, code) in [
        (400, "malformed_encoding"),
        (400, "malformed_json"),
        (400, "idempotency_key_invalid"),
        (401, "auth_required"),
        (403, "forbidden"),
        (404, "not_found"),
        (405, "method_not_allowed"),
        (415, "unsupported_media_type"),
        (422, "a_code_of_another_service"),
    ] {
        steps.push((format!("{status} {code}"), Step::refusal(status, code)));
    }
    let mut cases: Vec<Case> = steps
        .into_iter()
        .map(|(name, step)| {
            case(&format!("stop: {name}"), async move |name| {
                let mut bench = Bench::start(&name, &[Step::Accept, step]).await;
                bench.track_many(6).await;
                let reply = bench.flush().await;
                assert!(reply.error.is_some(), "{name}: flush does not report it");
                assert_eq!(bench.server.requests().len(), 2, "{name}: requests after the refusal");
                let reported = bench.finish().await;
                assert!(reported.is_empty(), "{name}: {reported:?}");
                let requests = bench.server.requests();
                assert!(requests[1].is_same(&requests[2]), "{name}: the next attempt differs");
            })
        })
        .collect();
    cases.push(case("stop: a 407 of a proxy, which some HTTP libraries report as a broken connection", async |name| {
        let mut bench = Bench::start(&name, &[Step::Accept, Step::proxy(407)]).await;
        bench.track_many(6).await;
        assert!(bench.finish().await.is_empty());
        let requests = bench.server.requests();
        assert!(requests[1].is_same(&requests[2]), "{name}: the next attempt differs");
    }));
    cases.push(case("stop: 401 until the API key is changed", async move |name| {
        let mut bench = Bench::start(&name, &[Step::refusal(401, "auth_required")]).await;
        bench.track_many(3).await;
        bench.flush().await;
        bench.adapter.done(&json!({ "command": "set_api_key", "api_key": OTHER_KEY })).await;
        assert!(bench.finish().await.is_empty());
        let keys: Vec<_> = bench.server.requests().iter().map(|request| request.authorization.clone()).collect();
        assert_eq!(keys, [KEY, OTHER_KEY, OTHER_KEY].map(|key| format!("Bearer {key}")));
    }));
    cases
}

/// A batch that is too large is sent in parts with other keys, and an event that is too large is reported.
fn splits() -> Vec<Case> {
    let answers = [
        ("the service", Step::refusal(413, "payload_too_large")),
        ("API Gateway", Step::answer(413, r#"{"message":"Request Too Long"}"#)),
        ("a proxy", Step::proxy(413)),
    ];
    answers
        .map(|(from, too_large)| {
            case(&format!("split: a 413 of {from}"), async move |name| {
                let mut bench = Bench::start(&name, &[]).await;
                bench.server.limit(700, too_large);
                let text = "x".repeat(350);
                for _ in 0..4 {
                    bench.track(json!({ "name": "half", "properties": { "text": text } })).await;
                }
                bench.track(json!({ "name": "large", "properties": { "text": "x".repeat(700) } })).await;
                bench.track(json!({ "name": "fine" })).await;
                let reported = bench.finish().await;
                assert_eq!(reported, BTreeSet::from(["usr_4".to_owned()]), "{name}");
            })
        })
        .into()
}

/// The events are reported, and later batches are sent.
fn rejections() -> Vec<Case> {
    vec![
        case("reject: 422 validation_failed", async |name| {
            let mut bench = Bench::start(&name, &[]).await;
            bench.track_many(2).await;
            bench.track(json!({ "name": "" })).await;
            bench.track_many(3).await;
            let reported = bench.finish().await;
            assert!(reported.contains("usr_2"), "{name}: the invalid event is not reported");
            // A client may report the batch as a whole, or send its valid events again.
            assert!(reported.is_subset(&["usr_2", "usr_3"].map(str::to_owned).into()), "{name}: {reported:?}");
        }),
        case("reject: 422 idempotency_key_reuse", async |name| {
            let mut bench = Bench::start(&name, &[Step::Accept, Step::refusal(422, "idempotency_key_reuse")]).await;
            bench.track_many(6).await;
            let reported = bench.finish().await;
            assert_eq!(reported, ["usr_2", "usr_3"].map(str::to_owned).into(), "{name}");
        }),
    ]
}

fn strings_and_times() -> Vec<Case> {
    vec![
        case("strings: half of a surrogate pair rejects no other event", async |name| {
            let mut bench = Bench::start(&name, &[]).await;
            bench.track_many(1).await;
            // Not `json!`, whose strings are well-formed.
            bench.adapter.done_text(r#"{"command":"track","event":{"user_id":"cut","name":"n\ud83d","properties":{"k\ude00":"v\ud83d"}}}"#).await;
            bench.track_many(2).await;
            let reported = bench.finish().await;
            assert!(reported.is_subset(&["cut".to_owned()].into()), "{name}: {reported:?}");
        }),
        case("times: a timestamp is sent as it is given", async |name| {
            let mut bench = Bench::start(&name, &[]).await;
            let timestamp = "2020-02-29T12:00:00.250Z";
            bench.track(json!({ "name": "then", "timestamp": timestamp })).await;
            assert!(bench.finish().await.is_empty());
            assert_eq!(bench.server.queue()[0]["timestamp"], timestamp, "{name}");
        }),
    ]
}

/// The function behind the fault proxy, with faults between the client and the gateway too.
#[tokio::test]
async fn a_client_loses_and_duplicates_nothing_over_the_function() {
    client_program::build().await;
    let _alone = QUIET_MACHINE.write().await;
    let aws = Resources::create().await;
    aws.put_key(KEY, PROJECT, &[]).await;
    let plan = FaultPlan { seed: 16, fault_percent: 10.0, kill_percent: 2.0 };
    let proxy = FaultProxy::new(&local_aws::endpoint(), move |call| plan.fault(call));
    let fleet = Arc::new(Fleet::new(&aws, &proxy, 4));
    let gateway = move |request: usize| match plan.rng(&format!("request {request}")).u8(0..100) {
        0..5 => Fault::CutBefore,
        5..10 => Fault::CutAfter,
        10..12 => Fault::Proxy(502),
        12..14 => Fault::Proxy(408),
        14..16 => Fault::Proxy(403),
        _ => Fault::None,
    };
    let server = function_server::start(fleet.clone(), gateway).await;
    let (name, command) = client();
    let mut adapter = Adapter::start(command());
    let start = json!({
        "command": "start", "base_url": format!("http://{}", server.address()), "api_key": KEY,
        "max_events": 10, "timeout_ms": 10_000,
    });
    adapter.done(&start).await;

    let mut valid = BTreeMap::new();
    let mut failed_flushes = 0;
    for number in 0..600 {
        let id = format!("usr_{number}");
        let is_valid = number % 97 != 13;
        let event =
            json!({ "user_id": id, "name": if is_valid { "sent" } else { "" }, "properties": { "number": number } });
        adapter.done(&json!({ "command": "track", "event": event })).await;
        valid.insert(id, is_valid);
        if number % 60 == 59 {
            while adapter.call(&json!({ "command": "flush" })).await.error.is_some() {
                failed_flushes += 1;
                assert!(failed_flushes < 200, "flush keeps failing");
            }
        }
    }
    let reported = adapter.rejected().await;
    proxy.idle().await;

    let mut ids: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (event_id, event) in aws.drain_events().await {
        ids.entry(event["external_user_id"].as_str().expect("text").to_owned()).or_default().push(event_id);
    }
    let mut copies = 0;
    for (id, is_valid) in &valid {
        let mut queued = ids.remove(id).unwrap_or_default();
        // docs/contract.md, "Guarantees", 4: a second copy has the same event id.
        let all = queued.len();
        queued.sort();
        queued.dedup();
        copies += all - queued.len();
        assert_eq!(queued.len(), usize::from(!reported.contains(id)), "{id}: {queued:?}");
        assert!(*is_valid || reported.contains(id), "{id} is invalid");
    }
    assert!(ids.is_empty(), "events that nobody tracked: {ids:?}");
    let calls = proxy.calls();
    let faults = calls.iter().filter(|call| call.fault != crate::fault_proxy::Fault::None).count();
    println!(
        "conformance: {name} over the function: {} events, {} reported, the others in the queue once; {copies} copies with \
         the same event id; {faults} faults in {} calls to AWS; {failed_flushes} failed flushes",
        valid.len(),
        reported.len(),
        calls.len(),
    );
    assert!(faults > 0, "a run without faults shows nothing");
}
