//! The log lines and metrics of the function, and the values that must never be in them.

use crate::fault_proxy::{Fault, FaultProxy, Op};
use crate::gateway_event::post;
use crate::test_app::{KEY, PROJECT, Resources, TRACE, TestApp};
use aws_sdk_dynamodb::types::AttributeValue;
use contract::idempotency_key::IdempotencyKey;
use contract::tenant::{Mode, ProjectId, Tenant};
use event_ingest::auth::Caller;
use event_ingest::clock::{Clock, SystemClock};
use event_ingest::deadline::Deadline;
use event_ingest::error::Error;
use event_ingest::idempotency::{BatchId, Delivered, Owner, RecordKey};
use event_ingest::ingest::{Completion, Findings, PendingCompletion, Success};
use event_ingest::telemetry::{AwsCalls, Facts, METRICS, NAMESPACE, Telemetry};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use test_support::local_aws;

/// The names of the metrics that a line declares. Asserts that the line contains a value for each.
fn declared(line: &Value) -> BTreeSet<String> {
    let directive = &line["_aws"]["CloudWatchMetrics"][0];
    assert_eq!(directive["Namespace"], NAMESPACE);
    assert_eq!(directive["Dimensions"], json!([["FunctionName"]]));
    assert_eq!(line["FunctionName"], "the-function");
    assert!(line["_aws"]["Timestamp"].is_u64());
    let metrics = directive["Metrics"].as_array().expect("metrics").iter();
    let names: BTreeSet<String> = metrics.map(|metric| metric["Name"].as_str().unwrap().to_owned()).collect();
    for name in &names {
        assert!(METRICS.contains(&name.as_str()), "{name} is not in METRICS");
        assert!(line[name].is_number(), "{name} has no value in {line}");
    }
    names
}

#[tokio::test]
async fn each_request_writes_one_line_with_its_outcome_and_metrics() {
    let test = TestApp::start().await;
    let request = post();
    test.send(&request).await;
    test.send(&request).await;
    test.send(&request.clone().body("{}")).await;
    test.send(&request.without("authorization")).await;
    let lines = test.log.take();
    let outcomes: Vec<_> = lines.iter().map(|line| (&line["outcome"], &line["status"], &line["code"])).collect();
    let expected = [
        (&json!("accepted"), &json!(202), &Value::Null),
        (&json!("replayed"), &json!(202), &Value::Null),
        (&json!("rejected"), &json!(422), &json!("validation_failed")),
        (&json!("rejected"), &json!(401), &json!("auth_required")),
    ];
    assert_eq!(outcomes, expected);

    let first = &lines[0];
    assert_eq!(lines[2]["field"], json!("events"));
    assert_eq!(lines[1]["batch_id"], first["batch_id"]);
    for (name, value) in [
        ("level", json!("INFO")),
        ("version", json!("1.2.3+4d5e")),
        ("request_id", json!("gateway-request-id")),
        ("trace_id", json!("1-5e988e0a-3f2b1c4d5e6f708192a3b4c5")),
        ("project_id", json!(PROJECT)),
        ("mode", json!("live")),
        ("key_hint", json!(format!("{}{}", &KEY[..8], &KEY[KEY.len() - 4..]))),
        ("attempt", Value::Null),
        ("messages", json!(1)),
        ("completion", Value::Null),
        ("bytes_in", Value::Null),
        ("EventsAccepted", json!(1)),
        ("Accepted", json!(1)),
    ] {
        assert_eq!(first[name], value, "{name}");
    }
    let stages = ["Duration", "AuthTime", "DecodeTime", "ClaimTime", "SendTime", "CompleteTime"];
    assert!(stages.iter().all(|stage| declared(first).contains(*stage)));
    assert!(
        declared(&lines[1]).contains("Replayed")
            && declared(&lines[2]).contains("RejectedBatches")
            && declared(&lines[3]).contains("RejectedCallers")
    );
}

/// A line costs about as much as the request itself, so operators notice its length.
#[test]
fn the_line_of_an_accepted_batch_is_short() {
    let time = |millis| Some(Duration::from_secs_f64(millis / 1000.0));
    let facts = Facts {
        request_id: "JKJaXmPLvHcESHA=".to_owned(),
        trace_id: Some(TRACE.to_owned()),
        caller: Some(Caller { tenant: tenant(), key_hint: "sk_live_ABCD".to_owned(), rate_limit: None }),
        status: 202,
        events: Some(500),
        bytes_in: Some(1_234_567),
        bytes_decoded: Some(1_234_567),
        findings: Findings {
            batch_id: Some(BatchId::new(SystemClock.now())),
            attempt: Some(1),
            messages: 10,
            send_calls: 2,
            claim_time: time(12.34),
            send_time: time(23.45),
            ..Findings::default()
        },
        completion: Some(Completion::Written),
        duration: Duration::from_micros(56_780),
        auth_time: time(12.34),
        decode_time: time(12.34),
        limit_time: time(12.34),
        complete_time: time(12.34),
        ..Facts::default()
    };
    let log = crate::test_app::Log::default();
    event_ingest::telemetry::init(&"info".parse().unwrap());
    let function_name = "event-ingest-prod-Function-AbCdEfGhIjKl".to_owned();
    let telemetry =
        Telemetry::new(function_name, "0.1.0+1a2b3c4.dirty".to_owned(), Box::new(log.clone()), AwsCalls::default);
    telemetry.write(facts, &Ok(Success::Accepted(pending())));
    let line = log.take_text();
    assert!(line.len() < 900, "{} bytes: {line}", line.len());
}

fn tenant() -> Tenant {
    Tenant { project: ProjectId::parse(PROJECT).unwrap(), mode: Mode::Live }
}

fn pending() -> PendingCompletion {
    let now = SystemClock.now();
    let key = IdempotencyKey::parse("key").unwrap();
    PendingCompletion {
        record_key: RecordKey::of_batch(&tenant(), key),
        owner: Owner::random(),
        delivered: Delivered::none(3),
        deadline: Deadline::new(now, now),
    }
}

/// Writes one line about `facts` and `result`.
fn line(facts: Facts, result: &Result<Success, Error>) -> Value {
    let log = crate::test_app::Log::default();
    event_ingest::telemetry::init(&"info".parse().unwrap());
    let version = "1.2.3+4d5e".to_owned();
    Telemetry::new("the-function".to_owned(), version, Box::new(log.clone()), AwsCalls::default).write(facts, result);
    log.take().remove(0)
}

#[test]
fn every_metric_is_written_by_some_outcome() {
    let time = Some(Duration::from_millis(1));
    let facts = Facts {
        events: Some(3),
        rejected_events: Some(1),
        bytes_decoded: Some(100),
        findings: Findings {
            attempt: Some(2),
            send_retries: 1,
            claim_time: time,
            send_time: time,
            ..Findings::default()
        },
        completion: Some(Completion::Failed),
        limiter_failure: Some("it failed".to_owned()),
        auth_time: time,
        decode_time: time,
        limit_time: time,
        complete_time: time,
        ..Facts::default()
    };
    let wait = Duration::from_secs(1);
    let outcomes = [
        (Ok(Success::Accepted(pending())), "taken_over", "WARN"),
        (Ok(Success::Replayed(Delivered::none(3))), "replayed", "WARN"),
        (Ok(Success::NothingToQueue), "nothing_queued", "WARN"),
        (Err(Error::KeyReused), "rejected", "WARN"),
        (Err(Error::AuthRequired), "rejected", "WARN"),
        (Err(Error::NotFound), "rejected", "WARN"),
        (Err(Error::ValidationFailed(Vec::new())), "rejected", "WARN"),
        (Err(Error::InvalidBulk(Vec::new())), "rejected", "WARN"),
        (Err(Error::RateLimited { wait }), "rate_limited", "WARN"),
        (Err(Error::InProgress { lease_left: wait }), "in_progress", "WARN"),
        (Err(Error::Internal("a defect".to_owned())), "failed", "ERROR"),
    ];
    let mut written = BTreeSet::new();
    for (result, outcome, level) in outcomes {
        let line = line(facts.clone(), &result);
        assert_eq!((&line["outcome"], &line["level"]), (&json!(outcome), &json!(level)));
        written.extend(declared(&line));
    }
    assert_eq!(written, METRICS.map(str::to_owned).into());
    let quiet = line(Facts::default(), &Err(Error::InProgress { lease_left: wait }));
    assert_eq!(quiet["level"], "INFO", "a request in progress is not a fault");
    assert!(declared(&quiet).contains("RequestInProgress") && !declared(&quiet).contains("ServerFaults"));
}

#[tokio::test]
async fn no_line_contains_keys_or_personal_data() {
    let test = TestApp::start().await;
    let canary = "C4n4ry";
    let event = json!({"external_user_id": canary, "name": canary, "properties": {canary: canary}});
    let bad = json!({"external_user_id": canary, "timestamp": canary, canary: canary});
    let key = format!("sk_live_{}", canary.repeat(6));
    test.aws.put_key(&key, PROJECT, &[("name", AttributeValue::S(canary.to_owned()))]).await;
    let request = post().header("authorization", &format!("Bearer {key}")).key(canary);
    for request in [
        request.clone().events(std::slice::from_ref(&event)),
        request.clone().events(&[event]),
        request.clone().events(&[bad]),
        request.clone().body(&format!("{{{canary}")),
        request.clone().key(&format!("{canary} {canary}")),
        request.clone().header("content-type", canary),
        request.header("authorization", &format!("Bearer sk_live_unknown{}", canary.repeat(6))),
    ] {
        test.send(&request).await;
    }
    let lines = test.log.take();
    assert_eq!(lines.len(), 7);
    // The hint contains the first eight and the last four characters of the API key.
    let hint = format!("sk_live_{}", &key[key.len() - 4..]);
    for line in lines {
        assert!(!line.to_string().replace(&hint, "").contains(canary), "{line}");
    }
}

/// The compiled function, including the SDK and the runtime, at the most verbose level and with faults.
#[tokio::test]
async fn no_output_contains_keys_or_personal_data_even_at_trace_level() {
    let canary = "C4n4ry";
    let key = format!("sk_live_{}", canary.repeat(6));
    let hint = format!("sk_live_{}", &key[key.len() - 4..]);
    let event = json!({"external_user_id": canary, "name": canary, "properties": {canary: canary}});
    let request = post().header("authorization", &format!("Bearer {key}"));
    for level in ["info", "trace"] {
        let aws = Resources::create().await;
        aws.put_key(&key, PROJECT, &[]).await;
        let proxy = FaultProxy::new(&local_aws::endpoint(), |call| match (call.op, call.nth) {
            (Op::Send, 1) => Fault::Error(500, "InternalFailure"),
            (Op::Claim, 1) => Fault::CutAfter,
            (Op::Complete, 1) => Fault::Error(400, "ThrottlingException"),
            _ => Fault::None,
        });
        let proxied = proxy.sandbox(&aws, |settings| settings.with("RUST_LOG", level)).await;
        let batch = request.clone().key(canary).events(std::slice::from_ref(&event));
        for request in [
            batch.clone(),
            batch,
            request.clone().key(canary).events(&[json!({"external_user_id": canary, "timestamp": canary})]),
            request.clone().key(canary).body(&format!("{{{canary}")),
        ] {
            proxied.sandbox.send(&request.build()).await.response();
        }
        let lines = proxied.sandbox.end().await;
        let requests: Vec<&Value> = lines.iter().filter(|line| line["message"] == "request").collect();
        assert_eq!(requests.len(), 4, "one line per request at {level}");
        // The lookup of the API key, the claim and its retry, two sends, the completion and its retry.
        assert_eq!((&requests[0]["aws_calls"], &requests[0]["aws_retries"]), (&json!(5), &json!(2)), "{}", requests[0]);
        for line in lines {
            assert!(!line.to_string().replace(&hint, "").contains(canary), "{level}: {line}");
        }
    }
}
