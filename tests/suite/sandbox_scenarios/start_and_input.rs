//! Deadlines, the configuration, and malformed events.

use super::{assert_copies, assert_unavailable, aws, proxy, sandbox};
use crate::fault_proxy::{Fault, Op, Payload};
use crate::gateway_event::post;
use crate::runtime_api::{DeadlineHeader, epoch_millis};
use crate::sandbox::{Sandbox, Settings};
use serde_json::{Value, json};
use std::time::Duration;

#[tokio::test]
async fn requests_succeed_with_an_unusual_deadline() {
    let aws = aws().await;
    let proxy = proxy(|_| Fault::None);
    let past = epoch_millis() - 60_000;
    for deadline in [0, 1, past, 1_700_000_000_000, epoch_millis() + 900_000, u64::MAX] {
        let sandbox = proxy.sandbox(&aws, |settings| settings.deadline(DeadlineHeader::Constant(deadline))).await;
        for _ in 0..2 {
            sandbox.send(&post().build()).await.response().assert_accepted();
        }
        for call in proxy.calls_of(Op::Claim) {
            let Payload::Lease(lease) = call.payload else { panic!("a claim has a lease") };
            assert!(lease <= epoch_millis() + 5000, "deadline {deadline} makes a lease of {lease}");
        }
        sandbox.sandbox.end().await;
    }
}

#[tokio::test]
async fn too_near_a_deadline_leads_to_a_503_that_leaves_no_trace() {
    let aws = aws().await;
    let proxy = proxy(|_| Fault::None);
    let short = proxy.sandbox(&aws, |settings| settings.timeout(Duration::from_millis(500))).await;
    assert_unavailable(&short.send(&post().build()).await.response());
    assert!(aws.drain().await.is_empty());
    assert_eq!(aws.count_records().await, 0);
}

#[tokio::test]
async fn an_invalid_configuration_ends_the_process_with_one_line_that_names_every_fault() {
    let aws = aws().await;
    let settings = Settings::new(&aws, "")
        .without("EVENTS_QUEUE_URL")
        .with("STATE_TABLE", "")
        .without("API_KEYS_TABLE")
        .with("MAX_EVENTS_PER_MESSAGE", "1001")
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
async fn malformed_gateway_events_get_a_response() {
    let aws = aws().await;
    let proxy = proxy(|_| Fault::None);
    let sandbox = sandbox(&proxy, &aws).await;
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
        let response = sandbox.send(&event).await.response();
        response.assert_error(status, code);
    }
    // The sandbox still works.
    sandbox.send(&post().build()).await.response().assert_accepted();
    assert_copies(&aws, 1, 1).await;
    let logs = sandbox.sandbox.end().await;
    assert_eq!(logs.iter().filter(|line| line["message"] == "request").count(), 10, "{logs:?}");
}
