//! Idempotency over the local AWS (docs/contract.md, "Idempotency").

use crate::gateway_event::post;
use crate::test_app::{KEY, PROJECT, TestApp};
use aws_sdk_dynamodb::types::AttributeValue;
use event_ingest::clock::Clock;
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::time::Duration;

#[tokio::test]
async fn a_repeated_batch_is_replayed_and_queued_once() {
    let test = TestApp::start().await;
    let request = post();
    let first = test.send(&request).await;
    first.assert_accepted();
    assert_eq!(first.header("idempotency-replayed"), None);
    for _ in 0..3 {
        let again = test.send(&request).await;
        again.assert_accepted();
        assert_eq!(again.header("idempotency-replayed"), Some("true"));
        assert_eq!(again.header("x-batch-id"), first.header("x-batch-id"));
    }
    assert_eq!(test.aws.drain().await.len(), 1);
}

/// The same id appears in the response, the queue message, the log line and the record.
#[tokio::test]
async fn the_batch_id_of_the_response_is_in_the_message_the_log_and_the_record() {
    let test = TestApp::start().await;
    let response = test.send(&post().key("followed")).await;
    let batch_id = response.header("x-batch-id").expect("a batch id").to_owned();
    let message: Value = serde_json::from_str(test.aws.drain().await[0].body().expect("a body")).expect("JSON");
    assert_eq!(message["batch_id"], json!(batch_id));
    assert_eq!(test.log.take()[0]["batch_id"], json!(batch_id));
    assert_eq!(test.aws.record("followed").await.expect("a record")["batch_id"].as_s(), Ok(&batch_id));

    let reused = test.send(&post().key("followed").body(r#"{"events":[{"external_user_id":"u","name":"n"}]}"#)).await;
    reused.assert_error(422, "idempotency_key_reuse");
    assert_eq!(reused.header("x-batch-id"), None, "the id belongs to another request");
    let rejected = test.send(&post().body("{}")).await;
    assert_eq!(rejected.header("x-batch-id"), None, "the record was not read");
}

#[tokio::test]
async fn thirty_two_concurrent_identical_requests_queue_one_copy() {
    let test = TestApp::start().await;
    let sandboxes: Vec<TestApp> = (0..32).map(|_| TestApp::over(test.aws.clone(), 50)).collect();
    let events: Vec<_> = (0..120).map(|n| json!({"external_user_id": "u", "name": format!("n{n}")})).collect();
    let request = post().events(&events);
    let responses = join_all(sandboxes.iter().map(|sandbox| sandbox.send(&request))).await;
    let first =
        responses.iter().filter(|response| response.status == 202 && response.header("idempotency-replayed").is_none());
    assert_eq!(first.count(), 1);
    for response in &responses {
        assert!(matches!((response.status, response.code()), (202, _) | (503, "request_in_progress")), "{response:?}");
    }
    let received = test.aws.drain_events().await;
    let ids: HashSet<&String> = received.iter().map(|(id, _)| id).collect();
    assert_eq!((received.len(), ids.len()), (120, 120));
}

#[tokio::test]
async fn another_body_with_the_same_key_is_refused_and_sends_nothing() {
    let test = TestApp::start().await;
    let request = post();
    test.send(&request).await.assert_accepted();
    test.aws.drain().await;
    let other = request.clone().events(&[json!({"external_user_id": "u", "name": "other"})]);
    test.send(&other).await.assert_error(422, "idempotency_key_reuse");
    // The same events with other whitespace are another body.
    let respaced = request
        .body(r#"{"events":[{"external_user_id":"usr_42","name":"user_signed_up","properties":{"plan":"trial"}}] }"#);
    test.send(&respaced).await.assert_error(422, "idempotency_key_reuse");
    assert_eq!(test.aws.drain().await.len(), 0);
}

#[tokio::test]
async fn the_fingerprint_covers_the_decoded_body() {
    let test = TestApp::start().await;
    let body = r#"{"events":[{"external_user_id":"u","name":"n"}]}"#;
    let plain = post().body(body);
    test.send(&plain).await.assert_accepted();
    let gzipped = test.send(&plain.gzip(body.as_bytes())).await;
    assert_eq!(gzipped.header("idempotency-replayed"), Some("true"));
}

#[tokio::test]
async fn idempotency_keys_are_scoped_to_project_and_mode() {
    let test = TestApp::start().await;
    let test_key = KEY.replace("live", "test");
    let other_project = KEY.replace("ABCD", "EFGH");
    test.aws.put_key(&test_key, PROJECT, &[]).await;
    test.aws.put_key(&other_project, "globex", &[]).await;
    let second_key = KEY.replace("ABCD", "IJKL");
    test.aws.put_key(&second_key, PROJECT, &[]).await;

    let request = post();
    for key in [KEY, &test_key, &other_project] {
        let response = test.send(&request.clone().header("authorization", &format!("Bearer {key}"))).await;
        response.assert_accepted();
        assert_eq!(response.header("idempotency-replayed"), None);
    }
    let same_scope = test.send(&request.header("authorization", &format!("Bearer {second_key}"))).await;
    assert_eq!(same_scope.header("idempotency-replayed"), Some("true"));
    assert_eq!(test.aws.drain().await.len(), 3);
}

#[tokio::test]
async fn a_key_is_forgotten_after_its_window_although_its_record_still_exists() {
    let test = TestApp::start().await;
    let request = post();
    test.send(&request).await.assert_accepted();
    test.clock.advance(Duration::from_hours(24) - Duration::from_secs(5));
    assert_eq!(test.send(&request).await.header("idempotency-replayed"), Some("true"));
    test.clock.advance(Duration::from_secs(7));
    let renewed = test.send(&request).await;
    renewed.assert_accepted();
    assert_eq!(renewed.header("idempotency-replayed"), None);
    let ids: HashSet<String> = test.aws.drain_events().await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), 2, "a forgotten key identifies a new batch");
}

#[tokio::test]
async fn the_record_has_the_documented_attributes() {
    let test = TestApp::start().await;
    let now = test.clock.now() + Duration::from_hours(1);
    test.clock.stop_at(now);
    test.send(&post().key("the-key")).await.assert_accepted();
    let record = test.aws.record("the-key").await.expect("a record");
    let mut names: Vec<&str> = record.keys().map(String::as_str).collect();
    names.sort_unstable();
    let documented =
        ["attempt", "batch_id", "delivered", "expires_at", "fingerprint", "lease_until", "owner", "pk", "state"];
    assert_eq!(names, documented);
    assert_eq!(record["pk"], AttributeValue::S("idem#acme#live#the-key".to_owned()));
    assert_eq!(record["state"], AttributeValue::S("accepted".to_owned()));
    assert_eq!(record["attempt"], AttributeValue::N("1".to_owned()));
    assert_eq!(record["fingerprint"].as_b().unwrap().as_ref().len(), 32);
    let number = |name: &str| record[name].as_n().unwrap().parse::<u64>().unwrap();
    assert_eq!(number("expires_at"), (now + Duration::from_hours(24)).seconds_rounded_up());
    let lease = number("lease_until") - now.millis();
    assert_eq!(lease, 4700, "4 s until the deadline, and a margin of 700 ms");
}

#[tokio::test]
async fn a_single_event_is_a_batch_of_one_whose_key_has_its_own_scope() {
    let test = TestApp::start().await;
    let batch = post().key("shared");
    test.send(&batch).await.assert_accepted();
    let single = post().path("/api/v1/events").key("shared").body(r#"{"external_user_id":"u","name":"alone"}"#);
    let first = test.send(&single).await;
    first.assert_accepted();
    assert_eq!(first.header("idempotency-replayed"), None, "a key at the other endpoint identifies another request");
    assert_eq!(test.send(&single).await.header("idempotency-replayed"), Some("true"));
    let names: HashSet<String> =
        test.aws.drain_events().await.iter().map(|(_, event)| event["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, HashSet::from(["user_signed_up".to_owned(), "alone".to_owned()]));

    let invalid = test.send(&single.clone().body(r#"{"name":"n"}"#)).await;
    invalid.assert_error(422, "validation_failed");
    assert_eq!(invalid.fields(), ["external_user_id"]);
    let not_an_event = test.send(&single.clone().body("[]")).await;
    assert_eq!(not_an_event.body["errors"][0].get("field"), None);
    test.send(&single.method("GET")).await.assert_error(405, "method_not_allowed");
}
