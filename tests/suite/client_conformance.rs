//! The conformance suite for clients: every row of the table in docs/clients.md, against a scripted server, and
//! then the function behind the fault proxy. A client takes part through an adapter; docs/conformance.md describes
//! its commands. `CLIENT_ADAPTER` names the command line of another adapter.

mod adapter;
mod clients;
mod scripted_server;

use crate::fault_plan::FaultPlan;
use crate::fault_proxy::FaultProxy;
use crate::fleet::Fleet;
use crate::function_server::{self, Fault};
use crate::sandbox::QUIET_MACHINE;
use crate::test_app::{KEY, PROJECT, Resources};
use adapter::{Adapter, Reply};
use clients::{Client, Endpoint, HalfSurrogates, clients};
use futures_util::StreamExt;
use scripted_server::{Received, ScriptedServer, Step};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use test_support::local_aws;

const OTHER_KEY: &str = "sk_live_abcdefghijklmnopqrstuvwxyzABCD0123456789";
/// The events in one request, in the cases below.
const MAX_EVENTS: usize = 2;
/// The most calls of `flush` until everything is accepted or reported.
const MAX_FLUSHES: usize = 3;

/// A case: its name, and what happens in it.
type Case = (String, Pin<Box<dyn Future<Output = ()> + Send>>);

#[tokio::test]
async fn a_client_follows_the_table() {
    let clients = clients().await;
    let cases: Vec<Case> = clients.iter().flat_map(cases).collect();
    let names: Vec<String> = cases.iter().map(|(name, _)| name.clone()).collect();
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
    for Client { name, .. } in clients {
        let count = |cases: &[String]| cases.iter().filter(|case| case.starts_with(name)).count();
        println!("conformance: {name} passed {} of {} cases", count(&names) - count(&failed), count(&names));
    }
    assert!(failed.is_empty(), "failed: {failed:#?}");
}

fn cases(client: &Client) -> Vec<Case> {
    [retries, stops, splits, rejections, strings_and_times].into_iter().flat_map(|cases| cases(client)).collect()
}

/// What happened in a case.
struct Finished {
    case: String,
    /// The users whose events the client reported.
    reported: BTreeSet<String>,
    requests: Vec<Received>,
    /// The accepted events, in order.
    queue: Vec<Value>,
    failed_flushes: usize,
}

/// A client and a scripted server, for one case.
struct Bench {
    case: String,
    server: ScriptedServer,
    adapter: Adapter,
    tracked: Vec<String>,
}

impl Bench {
    async fn start(client: &Client, case: String, script: &[Step]) -> Self {
        let server = ScriptedServer::start(client.capabilities.endpoint, script).await;
        // Long enough for a busy machine, unless the case waits for it.
        let timeout_ms = if script.iter().any(|step| matches!(step, Step::Hang)) { 1_000 } else { 10_000 };
        let mut adapter = client.adapter();
        let start = json!({
            "command": "start", "base_url": format!("http://{}", server.address()), "api_key": KEY,
            "max_events": MAX_EVENTS, "timeout_ms": timeout_ms,
        });
        adapter.done(&start).await;
        Self { case, server, adapter, tracked: Vec::new() }
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
    /// and ends the adapter.
    async fn finish(mut self) -> Finished {
        let mut failed_flushes = 0;
        while let Some(error) = self.flush().await.error {
            failed_flushes += 1;
            assert!(failed_flushes < MAX_FLUSHES, "{}: flush still fails: {error}", self.case);
        }
        let reported = self.adapter.rejected().await;
        let queue = self.server.queue();
        for id in &self.tracked {
            let count = queue.iter().filter(|queued| queued["external_user_id"] == **id).count();
            let expected = usize::from(!reported.contains(id));
            assert_eq!(count, expected, "{}: {id} in the queue, reported: {reported:?}", self.case);
        }
        assert_eq!(self.server.reused_keys(), 0, "{}: a key was sent with other bytes", self.case);
        self.adapter.end().await;
        Finished { case: self.case, reported, requests: self.server.requests(), queue, failed_flushes }
    }
}

/// A client in a case of this name.
struct Setup {
    client: Client,
    case: String,
}

impl Setup {
    async fn start(self, script: &[Step]) -> Bench {
        Bench::start(&self.client, self.case, script).await
    }
}

fn case<F: Future<Output = ()> + Send + 'static>(client: &Client, name: &str, run: impl FnOnce(Setup) -> F) -> Case {
    let case = format!("{}: {name}", client.name);
    (case.clone(), Box::pin(run(Setup { client: client.clone(), case })))
}

/// The same bytes are sent with the same key, and nothing is reported.
fn retries(client: &Client) -> Vec<Case> {
    let statuses = [200, 201, 206, 408, 409, 421, 425, 429, 500, 501, 502, 503, 504, 511, 599];
    let mut steps: Vec<(String, Step)> =
        statuses.map(|status| (format!("a {status} of a proxy"), Step::proxy(status))).into();
    for (status, code) in
        [(429, "rate_limited"), (503, "request_in_progress"), (503, "service_unavailable"), (500, "internal_error")]
    {
        steps.push((format!("{status} {code}"), Step::refusal(status, code)));
    }
    let endpoint = client.capabilities.endpoint;
    let without_accepted = match endpoint {
        Endpoint::Batch => r#"{"data":{"accepted":false}}"#,
        Endpoint::Bulk => r#"{"data":{"rejected":0,"errors":[]}}"#,
    };
    steps.extend([
        ("a 204".to_owned(), Step::answer(204, "")),
        ("a success that was cut off".to_owned(), Step::answer(endpoint.success(), r#"{"data":{"acc"#)),
        ("a success without accepted".to_owned(), Step::answer(endpoint.success(), without_accepted)),
        ("a 203 with the body of a success".to_owned(), Step::BodyOfSuccess(203)),
        ("a connection that breaks before the request".to_owned(), Step::CutBefore),
        ("a connection that breaks after the request".to_owned(), Step::CutAfter),
        ("no response".to_owned(), Step::Hang),
    ]);
    let mut cases: Vec<Case> = steps
        .into_iter()
        .map(|(name, step)| {
            case(client, &format!("retry: {name}"), async move |setup| {
                let mut bench = setup.start(&[Step::Accept, step]).await;
                bench.track_many(6).await;
                let Finished { case, reported, requests, failed_flushes, .. } = bench.finish().await;
                assert!(reported.is_empty(), "{case}: {reported:?}");
                assert_eq!(failed_flushes, 0, "{case}: flush gave up after one failure");
                assert!(requests[1].is_same(&requests[2]), "{case}: the retry differs");
            })
        })
        .collect();
    // At the first request, a client may also give up until the next flush, because its configuration may be wrong.
    for (name, step) in [
        ("a 200 of a proxy", Step::proxy(200)),
        ("a 503", Step::refusal(503, "service_unavailable")),
        ("a connection that breaks before the request", Step::CutBefore),
        ("a connection that breaks after the request", Step::CutAfter),
    ] {
        cases.push(case(client, &format!("retry: {name}, at first"), async move |setup| {
            let mut bench = setup.start(&[step]).await;
            bench.track_many(3).await;
            let Finished { case, reported, requests, .. } = bench.finish().await;
            assert!(reported.is_empty(), "{case}: {reported:?}");
            assert!(requests[0].is_same(&requests[1]), "{case}: the retry differs");
        }));
    }
    for seconds in ["1", "1.5"] {
        cases.push(case(client, &format!("retry: Retry-After: {seconds}"), async move |setup| {
            let step = Step::refusal(429, "rate_limited").with_header("retry-after", seconds);
            let mut bench = setup.start(&[step]).await;
            bench.track_many(1).await;
            let Finished { case, reported, requests, failed_flushes, .. } = bench.finish().await;
            assert!(reported.is_empty(), "{case}: {reported:?}");
            assert_eq!(failed_flushes, 0, "{case}: flush gave up after one failure");
            let least = Duration::from_secs_f64(seconds.parse().expect("a number"));
            let waited = requests[1].at - requests[0].at;
            assert!(waited >= least, "{case}: the retry came after {waited:?}");
        }));
    }
    cases
}

/// Nothing is sent until the next flush, and nothing is reported or lost.
fn stops(client: &Client) -> Vec<Case> {
    let mut steps: Vec<(String, Step)> =
        [300, 301, 302, 307, 308, 400, 401, 402, 403, 404, 405, 406, 410, 415, 422, 431, 451]
            .map(|status| (format!("a {status} of a proxy"), Step::proxy(status)))
            .into();
    for (status, code) in [
        (400, "malformed_encoding"),
        (400, "malformed_json"),
        (400, "idempotency_key_invalid"),
        (400, "validation_failed"),
        (401, "auth_required"),
        (403, "forbidden"),
        (404, "not_found"),
        (405, "method_not_allowed"),
        (415, "unsupported_media_type"),
        (422, "payload_too_large"),
        (422, "a_code_of_another_service"),
    ] {
        steps.push((format!("{status} {code}"), Step::refusal(status, code)));
    }
    let mut cases: Vec<Case> = steps
        .into_iter()
        .map(|(name, step)| {
            case(client, &format!("stop: {name}"), async move |setup| {
                let mut bench = setup.start(&[Step::Accept, step]).await;
                bench.track_many(6).await;
                let reply = bench.flush().await;
                assert!(reply.error.is_some(), "{}: flush does not report it", bench.case);
                assert_eq!(bench.server.requests().len(), 2, "{}: requests after the refusal", bench.case);
                let Finished { case, reported, requests, .. } = bench.finish().await;
                assert!(reported.is_empty(), "{case}: {reported:?}");
                assert!(requests[1].is_same(&requests[2]), "{case}: the next attempt differs");
            })
        })
        .collect();
    let name = "stop: a 407 of a proxy, which some HTTP libraries report as a broken connection";
    cases.push(case(client, name, async |setup| {
        let mut bench = setup.start(&[Step::Accept, Step::proxy(407)]).await;
        bench.track_many(6).await;
        let Finished { case, reported, requests, .. } = bench.finish().await;
        assert!(reported.is_empty(), "{case}: {reported:?}");
        assert!(requests[1].is_same(&requests[2]), "{case}: the next attempt differs");
    }));
    // Before and after a success, because a client may start over if it has sent nothing.
    for accepted in [0, 1] {
        let name = format!("stop: 401 after {accepted} successes, until the API key is changed");
        cases.push(case(client, &name, async move |setup| {
            let mut script = vec![Step::Accept; accepted];
            script.push(Step::refusal(401, "auth_required"));
            let mut bench = setup.start(&script).await;
            bench.track_many(5).await;
            bench.flush().await;
            bench.adapter.done(&json!({ "command": "set_api_key", "api_key": OTHER_KEY })).await;
            let Finished { case, reported, requests, .. } = bench.finish().await;
            assert!(reported.is_empty(), "{case}: {reported:?}");
            assert!(requests[accepted].is_same(&requests[accepted + 1]), "{case}: the next attempt differs");
            let keys: Vec<_> = requests.into_iter().map(|request| request.authorization).collect();
            let expected = [vec![KEY; accepted + 1], vec![OTHER_KEY; 3 - accepted]].concat();
            assert_eq!(keys, expected.into_iter().map(|key| format!("Bearer {key}")).collect::<Vec<_>>(), "{case}");
        }));
    }
    cases
}

/// A batch that is too large is sent in parts with other keys, and an event that is too large is reported.
fn splits(client: &Client) -> Vec<Case> {
    let answers = [
        ("the service", Step::refusal(413, "payload_too_large")),
        ("API Gateway", Step::answer(413, r#"{"message":"Request Too Long"}"#)),
        ("a proxy", Step::proxy(413)),
    ];
    let mut cases: Vec<Case> = answers
        .map(|(from, too_large)| {
            case(client, &format!("split: a 413 of {from}"), async move |setup| {
                let mut bench = setup.start(&[]).await;
                bench.server.limit(700, too_large);
                let text = "x".repeat(350);
                for _ in 0..4 {
                    bench.track(json!({ "name": "half", "properties": { "text": text } })).await;
                }
                bench.track(json!({ "name": "large", "properties": { "text": "x".repeat(700) } })).await;
                bench.track(json!({ "name": "fine" })).await;
                let Finished { case, reported, failed_flushes, .. } = bench.finish().await;
                assert_eq!(reported, BTreeSet::from(["usr_4".to_owned()]), "{case}");
                assert_eq!(failed_flushes, 0, "{case}: flush gave up");
            })
        })
        .into();
    // The limit is gone afterwards, so that a client that forgets the parts sends the whole batch with success.
    for (name, accepted, step) in [
        ("a lost response to the first part", 0, Step::CutAfter),
        ("a lost response to the second part", 1, Step::CutAfter),
        ("a 403 for the second part", 1, Step::refusal(403, "forbidden")),
    ] {
        cases.push(case(client, &format!("split: a 413, then {name}"), async move |setup| {
            let mut script = vec![Step::proxy(413)];
            script.resize(1 + accepted, Step::Accept);
            script.push(step);
            let mut bench = setup.start(&script).await;
            bench.track_many(3).await;
            let Finished { case, reported, requests, .. } = bench.finish().await;
            assert!(reported.is_empty(), "{case}: {reported:?}");
            // A client that stopped may send the parts before this one again.
            let (part, later) = requests[1 + accepted..].split_first().expect("the part");
            assert!(later.iter().any(|request| request.is_same(part)), "{case}: the part differs");
        }));
    }
    cases
}

/// The events are reported, and later batches are sent.
fn rejections(client: &Client) -> Vec<Case> {
    let invalid = [
        ("an event with an empty name", ""),
        ("an event that only the service finds invalid", scripted_server::INVALID),
        ("422 validation_failed", scripted_server::UNPROCESSABLE),
    ];
    let mut cases: Vec<Case> = invalid
        .map(|(name, event)| {
            case(client, &format!("reject: {name}"), async move |setup| {
                // `events/bulk` accepts the valid events beside it. On `events/batch`, a client may report the batch
                // as a whole, or send its valid events again.
                let is_exact =
                    setup.client.capabilities.endpoint == Endpoint::Bulk && event != scripted_server::UNPROCESSABLE;
                let mut bench = setup.start(&[]).await;
                bench.track_many(2).await;
                bench.track(json!({ "name": event })).await;
                bench.track_many(3).await;
                let Finished { case, reported, failed_flushes, .. } = bench.finish().await;
                assert_eq!(failed_flushes, 0, "{case}: flush gave up");
                assert!(reported.contains("usr_2"), "{case}: the invalid event is not reported");
                let others: &[&str] = if is_exact { &["usr_2"] } else { &["usr_2", "usr_3"] };
                assert!(reported.iter().all(|id| others.contains(&id.as_str())), "{case}: {reported:?}");
            })
        })
        .into();
    cases.push(case(client, "reject: 422 idempotency_key_reuse", async |setup| {
        let mut bench = setup.start(&[Step::Accept, Step::refusal(422, "idempotency_key_reuse")]).await;
        bench.track_many(6).await;
        let Finished { case, reported, failed_flushes, .. } = bench.finish().await;
        assert_eq!(reported, ["usr_2", "usr_3"].map(str::to_owned).into(), "{case}");
        assert_eq!(failed_flushes, 0, "{case}: flush gave up");
    }));
    cases
}

fn strings_and_times(client: &Client) -> Vec<Case> {
    vec![
        case(client, "strings: half of a surrogate pair rejects no other event", async |setup| {
            let half_surrogates = setup.client.capabilities.half_surrogates;
            let mut bench = setup.start(&[]).await;
            bench.track_many(1).await;
            // Not `json!`, whose strings are well-formed.
            bench.adapter.done_text(r#"{"command":"track","event":{"user_id":"cut","name":"n\ud83d","properties":{"k\ude00":"v\ud83d"}}}"#).await;
            bench.track_many(2).await;
            let Finished { case, reported, queue, .. } = bench.finish().await;
            let cut: Vec<_> = queue.iter().filter(|event| event["external_user_id"] == "cut").collect();
            match half_surrogates {
                HalfSurrogates::Replaced => {
                    assert!(reported.is_empty(), "{case}: {reported:?}");
                    assert_eq!(cut.len(), 1, "{case}");
                    assert_eq!(
                        (&cut[0]["name"], &cut[0]["properties"]),
                        (&json!("n\u{fffd}"), &json!({ "k\u{fffd}": "v\u{fffd}" }))
                    );
                }
                HalfSurrogates::Rejected => {
                    assert_eq!((reported, cut.len()), (["cut".to_owned()].into(), 0), "{case}");
                }
            }
        }),
        case(client, "times: a timestamp is sent as it is given", async |setup| {
            let mut bench = setup.start(&[]).await;
            let timestamp = "2020-02-29T12:00:00.250Z";
            bench.track(json!({ "name": "then", "timestamp": timestamp })).await;
            let Finished { case, reported, queue, .. } = bench.finish().await;
            assert!(reported.is_empty(), "{case}: {reported:?}");
            assert_eq!(queue[0]["timestamp"], timestamp, "{case}");
        }),
    ]
}

/// The function behind the fault proxy, with faults between the client and the gateway too.
#[tokio::test]
async fn a_client_loses_and_duplicates_nothing_over_the_function() {
    let clients = clients().await;
    let _alone = QUIET_MACHINE.write().await;
    // The clients run concurrently, because most of the time they wait for a backoff or a fault.
    for line in futures_util::future::join_all(clients.iter().map(send_over_the_function)).await {
        println!("{line}");
    }
}

/// Returns a line with the counts.
async fn send_over_the_function(client: &Client) -> String {
    let started = Instant::now();
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
    let mut adapter = client.adapter();
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
    adapter.end().await;
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
        let may_report_valid = client.capabilities.endpoint == Endpoint::Batch;
        assert!(!is_valid || may_report_valid || !reported.contains(id), "{id} is valid");
    }
    assert!(ids.is_empty(), "events that nobody tracked: {ids:?}");
    let calls = proxy.calls();
    let faults = calls.iter().filter(|call| call.fault != crate::fault_proxy::Fault::None).count();
    assert!(faults > 0, "a run without faults shows nothing");
    format!(
        "conformance: {} over the function in {:.0?}: {} events, {} reported, the others in the queue once; {copies} copies with \
         the same event id; {faults} faults in {} calls to AWS; {failed_flushes} failed flushes",
        client.name,
        started.elapsed(),
        valid.len(),
        reported.len(),
        calls.len(),
    )
}
