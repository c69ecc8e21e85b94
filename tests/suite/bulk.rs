//! `POST /api/v1/events/bulk` (docs/contract.md, "Bulk requests").

use crate::gateway_event::{GatewayEventBuilder, post};
use crate::test_app::{KEY, Response, TestApp};
use aws_sdk_dynamodb::types::AttributeValue;
use contract::limits::{MAX_BODY_BYTES, MAX_BULK_EVENTS};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const PATH: &str = "/api/v1/events/bulk";
const INVALID: &str = r#"{"events":[{"name":"n"},7]}"#;

fn bulk(events: &[Value]) -> GatewayEventBuilder {
    post().path(PATH).without("idempotency-key").events(events)
}

fn event(name: &str) -> Value {
    json!({"external_user_id": "usr_42", "name": name})
}

/// Four events, of which those at indexes 1 and 3 are invalid.
fn mixed() -> GatewayEventBuilder {
    bulk(&[event("first"), json!({"external_user_id": 7}), event("third"), json!("fourth")])
}

fn mixed_response() -> Value {
    json!({
        "data": {
            "accepted": 2,
            "rejected": 2,
            "errors": [
                {"index": 1, "code": "validation", "message": "must be a string", "field": "external_user_id"},
                {"index": 1, "code": "validation", "message": "is required", "field": "name"},
                {"index": 3, "code": "validation", "message": "must be an object"},
            ],
        },
        "meta": {"received": 4},
    })
}

fn counts(response: &Response) -> (u64, &Value, &Value, &Value) {
    let data = &response.body["data"];
    (response.status, &data["accepted"], &data["rejected"], &response.body["meta"]["received"])
}

/// The record of a bulk request with this idempotency key.
fn pk(key: &str) -> String {
    format!("idem-bulk#acme#live#{key}")
}

#[tokio::test]
async fn valid_events_are_queued_and_the_others_are_reported() {
    let test = TestApp::start().await;
    let response = test.send(&mixed()).await;
    assert_eq!((response.status, &response.body), (200, &mixed_response()));
    let batch_id = response.header("x-batch-id").expect("a batch id");
    let queued = test.aws.drain_events().await;
    assert_eq!(queued, [(format!("{batch_id}-0"), event("first")), (format!("{batch_id}-2"), event("third"))]);
    let line = test.log.take().remove(0);
    for (name, value) in [
        ("status", json!(200)),
        ("outcome", json!("accepted")),
        ("batch_id", json!(batch_id)),
        ("EventsAccepted", json!(2)),
        ("EventsRejected", json!(2)),
    ] {
        assert_eq!(line[name], value, "{name}");
    }
}

#[tokio::test]
async fn a_replay_repeats_the_response_and_sends_nothing() {
    let test = TestApp::start().await;
    for request in [mixed(), mixed().key("a-key")] {
        let first = test.send(&request).await;
        assert_eq!(first.header("idempotency-replayed"), None);
        test.aws.drain().await;
        let replay = test.send(&request).await;
        assert_eq!((replay.status, &replay.body), (200, &mixed_response()));
        assert_eq!(replay.header("idempotency-replayed"), Some("true"));
        assert_eq!(replay.header("x-batch-id"), first.header("x-batch-id"));
        assert_eq!(test.aws.drain().await.len(), 0);
    }
    let replay = test.log.take().remove(1);
    assert_eq!((&replay["outcome"], &replay["EventsRejected"]), (&json!("replayed"), &Value::Null));
}

#[tokio::test]
async fn without_a_key_the_hash_of_the_decoded_body_takes_its_place() {
    let test = TestApp::start().await;
    let body = json!({"events": [event("first")]}).to_string();
    let first = test.send(&bulk(&[]).body(&body)).await;
    let record = test.aws.state_item(&pk(&hex::encode(Sha256::digest(&body)))).await.expect("a record");
    assert_eq!(record["state"], AttributeValue::S("accepted".to_owned()));
    let replay = test.send(&bulk(&[]).gzip(body.as_bytes())).await;
    assert_eq!(replay.header("idempotency-replayed"), Some("true"));
    assert_eq!(replay.header("x-batch-id"), first.header("x-batch-id"));
    let with_key = test.send(&bulk(&[]).body(&body).key("a-key")).await;
    assert_eq!(with_key.header("idempotency-replayed"), None);
    assert!(test.aws.state_item(&pk("a-key")).await.is_some());
    assert_eq!(test.aws.drain_events().await.len(), 2);
}

#[tokio::test]
async fn a_key_of_the_batch_endpoint_is_another_key() {
    let test = TestApp::start().await;
    test.send(&post().key("a-key")).await.assert_accepted();
    assert_eq!(counts(&test.send(&mixed().key("a-key")).await), (200, &json!(2), &json!(2), &json!(4)));
    test.send(&bulk(&[event("other")]).key("a-key")).await.assert_error(422, "idempotency_key_reuse");
}

#[tokio::test]
async fn if_no_event_is_valid_nothing_is_claimed_or_sent() {
    let test = TestApp::start().await;
    for request in [bulk(&[]).body(INVALID), bulk(&[]).body(INVALID).key("a-key")] {
        let response = test.send(&request).await;
        assert_eq!(counts(&response), (200, &json!(0), &json!(2), &json!(2)));
        assert_eq!(response.header("x-batch-id"), None);
        assert_eq!(response.header("idempotency-replayed"), None);
    }
    assert_eq!((test.aws.drain().await.len(), test.aws.count_records().await), (0, 0));
    let line = test.log.take().remove(0);
    assert_eq!((&line["outcome"], &line["EventsRejected"]), (&json!("nothing_queued"), &json!(2)));
    assert_eq!((&line["Accepted"], &line["EventsAccepted"]), (&Value::Null, &Value::Null));
}

#[tokio::test]
async fn a_body_without_a_list_of_events_is_malformed() {
    let test = TestApp::start().await;
    let too_many = json!({"events": vec![json!(null); MAX_BULK_EVENTS + 1]}).to_string();
    let bodies = [
        ("[]", "the body must be an object with an array `events`"),
        ("{}", "is required"),
        (r#"{"events":{}}"#, "must be an array"),
        (r#"{"events":[]}"#, "must contain at least 1 event"),
        (r#"{"events":[1],"events":[1]}"#, "duplicate field `events`"),
        (&*too_many, "must contain at most 1000 events, contains 1001"),
    ];
    for (body, message) in bodies {
        let response = test.send(&bulk(&[]).body(body)).await;
        response.assert_error(400, "validation_failed");
        assert_eq!((response.fields(), response.message()), (vec!["events"], message));
    }
}

#[tokio::test]
async fn the_other_checks_are_those_of_a_batch() {
    let test = TestApp::start().await;
    let large = "x".repeat(MAX_BODY_BYTES + 1);
    for (request, status, code) in [
        (mixed().method("GET"), 405, "method_not_allowed"),
        (mixed().without("authorization"), 401, "auth_required"),
        (mixed().header("content-type", "text/plain"), 415, "unsupported_media_type"),
        (mixed().key(""), 400, "idempotency_key_invalid"),
        (mixed().key("not visible"), 400, "idempotency_key_invalid"),
        (mixed().body(&large), 413, "payload_too_large"),
        (mixed().raw_body("!", true), 400, "malformed_encoding"),
        (mixed().body(r#"{"events":["#), 400, "malformed_json"),
    ] {
        test.send(&request).await.assert_error(status, code);
    }
}

#[tokio::test]
async fn a_thousand_events_are_twenty_messages_in_two_calls() {
    let test = TestApp::start().await;
    let events: Vec<Value> = (0..MAX_BULK_EVENTS).map(|index| event(&index.to_string())).collect();
    assert_eq!(counts(&test.send(&bulk(&events)).await), (200, &json!(1000), &json!(0), &json!(1000)));
    let line = test.log.take().remove(0);
    assert_eq!((&line["messages"], &line["send_calls"]), (&json!(20), &json!(2)));
    assert_eq!(test.aws.drain_events().await.len(), 1000);
}

#[tokio::test]
async fn every_violation_of_every_event_is_reported() {
    let test = TestApp::start().await;
    let worst = r#"{"external_user_id":1,"name":2,"properties":3,"timestamp":4,"\ud800":5}"#;
    let body = format!(r#"{{"events":[{}]}}"#, vec![worst; MAX_BULK_EVENTS].join(","));
    let response = test.send(&bulk(&[]).body(&body)).await;
    assert_eq!(counts(&response), (200, &json!(0), &json!(1000), &json!(1000)));
    let errors = response.body["data"]["errors"].as_array().unwrap();
    assert_eq!(errors.len(), 5 * MAX_BULK_EVENTS);
    assert!(errors.is_sorted_by_key(|error| error["index"].as_u64()));
}

#[tokio::test]
async fn only_valid_events_count_against_the_rate_limit() {
    let test = TestApp::start().await;
    test.aws.put_key(KEY, "acme", &[("rate_limit", AttributeValue::N("100".to_owned()))]).await;
    let valid: Vec<Value> = (0..600).map(|index| event(&index.to_string())).collect();
    let with_invalid: Vec<Value> = valid.iter().cloned().chain(vec![json!(null); 400]).collect();
    assert_eq!(test.send(&bulk(&with_invalid).key("1")).await.status, 200);
    assert_eq!(test.send(&bulk(&valid[..400]).key("2")).await.status, 200);
    test.send(&bulk(&valid[..1]).key("3")).await.assert_error(429, "rate_limited");
    assert_eq!(test.send(&bulk(&[]).body(INVALID)).await.status, 200, "no event is counted");
}

/// The rules cannot change in a test, so the record is changed to what the earlier rules would have left.
#[tokio::test]
async fn the_counts_of_a_replay_follow_the_queue_if_the_rules_have_changed() {
    let test = TestApp::start().await;
    test.send(&mixed().key("a-key")).await;
    let first_two = AttributeValue::B(aws_sdk_dynamodb::primitives::Blob::new([0b11]));
    test.aws.update_state_item(&pk("a-key"), "delivered", first_two).await;
    let response = test.send(&mixed().key("a-key")).await;
    assert_eq!(counts(&response), (200, &json!(2), &json!(2), &json!(4)));
    let errors = response.body["data"]["errors"].as_array().unwrap().iter();
    assert_eq!(errors.map(|error| error["index"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 3]);
}
