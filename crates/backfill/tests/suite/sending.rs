//! Sending: what arrives at the service.

use crate::command::{API_KEY, Backfill, line, lines};
use crate::service::{Reply, Service};
use contract::limits::MAX_BODY_BYTES;
use serde_json::{Value, json};

#[tokio::test]
async fn every_event_arrives_once_byte_for_byte() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", format!("\u{feff}\n{}\n \n", lines(1203)));
    let run = backfill.run("events.ndjson --host api.example --concurrency 1 --json").await;
    run.assert(0, &[]);
    let summary = run.summary();
    assert_eq!(
        (&summary["status"], &summary["accepted"], &summary["rejected"]),
        (&json!("complete"), &json!(1203), &json!(0))
    );
    assert_eq!((&summary["rejects"], &summary["error"]), (&Value::Null, &Value::Null));

    let requests = service.requests();
    assert_eq!(service.batch_sizes(), [500, 500, 203]);
    let expected: Vec<_> = (0..500).map(|id| line(id, "n").trim().to_owned()).collect();
    assert_eq!(requests[0].body, format!("{{\"events\":[{}]}}", expected.join(",")).into_bytes(), "byte for byte");
    assert_eq!(service.queued_ids(), (0..1203).collect());
    for request in &requests {
        assert!(request.key.len() == 64 && request.key.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(request.headers["authorization"], format!("Bearer {API_KEY}"));
        assert_eq!(
            (request.headers["content-type"].as_str(), request.headers["host"].as_str()),
            ("application/gzip", "api.example")
        );
    }
    assert_eq!(service.distinct_keys().len(), 3);
    assert!(!backfill.path("events.ndjson.rejects.ndjson").exists());
    assert!(!backfill.read("events.ndjson.checkpoint.json").contains(&API_KEY[8..]));

    let again = backfill.run("events.ndjson --host api.example").await;
    again.assert(0, &["Already complete", "1,203 events accepted", "--run-name"]);
    assert_eq!(service.requests().len(), 3);
    // The service still remembers the keys.
    let restarted = backfill.run("events.ndjson --restart --json").await;
    restarted.assert(0, &[]);
    assert_eq!(restarted.summary()["replayed"], 1203);
    assert!(restarted.summary()["warnings"][0].as_str().unwrap().contains("--run-name"));
    assert_eq!(service.requests().len(), 6);
    assert_eq!(service.queued_ids().len(), 1203);
}

#[tokio::test]
async fn a_batch_has_at_most_5_megabytes_and_max_events() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    let large =
        |id: usize| format!("{{\"external_user_id\":\"{id}\",\"name\":\"n\",\"note\":\"{}\"}}\n", "x".repeat(900_000));
    backfill.write("events.ndjson", (0..12).map(large).collect::<String>());
    backfill.run("events.ndjson --concurrency 1").await.assert(0, &[]);
    assert_eq!(service.batch_sizes(), [5, 5, 2]);
    assert!(service.requests().iter().all(|request| request.body.len() <= MAX_BODY_BYTES));

    let backfill = Backfill::new(&service);
    backfill.write("few.ndjson", lines(7));
    backfill.run("few.ndjson --max-events 3 --concurrency 1").await.assert(0, &[]);
    assert_eq!(service.batch_sizes()[3..], [3, 3, 1]);
}
