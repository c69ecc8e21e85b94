//! End-to-end tests over HTTP. `sam deploy` deploys template.yaml to a local AWS.

use crate::client_program;
use crate::gateway_event::gzip;
use crate::message_schema;
use aws_sdk_sqs::types::Message;
use lambda_http::http::Method;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use test_support::deployment::{API_KEY, Deployment, PATH};

/// The next messages of the queue, validated against the schema.
async fn next_messages(deployment: &Deployment) -> Vec<Message> {
    let messages = deployment.messages().await;
    for message in &messages {
        message_schema::check(message.body().expect("a body"));
    }
    messages
}

/// One test with several steps, because a deployment takes a while.
#[tokio::test]
async fn the_deployed_template_accepts_replays_and_refuses_requests() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let deployment = Deployment::start("main-job", directory, &["--param", "Version=1.2.3+4d5e"]);
    let example = br#"{ "events": [ { "external_user_id": "usr_42", "name": "user_signed_up",
                "properties": { "plan": "trial" } } ] }"#;

    let first = deployment.post("7b6c7e9e-2c2d-4a8d-9d3a-4f3d2c1b0a99", &[], example).await;
    assert_eq!((first.status, first.body), (202, json!({"data": {"accepted": true}})));
    assert!(first.headers.contains_key("x-request-id"));
    let messages = next_messages(&deployment).await;
    assert_eq!(messages.len(), 1);
    let body = messages[0].body().expect("a body");
    let sent = r#"{ "external_user_id": "usr_42", "name": "user_signed_up",
                "properties": { "plan": "trial" } }"#;
    assert!(body.contains(&format!(r#""event":{sent}"#)), "the event is not as it was sent: {body}");
    let body: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(
        (&body["schema"], &body["project_id"], &body["mode"]),
        (&json!("event-batch/1"), &json!("local"), &json!("test"))
    );

    let again = deployment.post("7b6c7e9e-2c2d-4a8d-9d3a-4f3d2c1b0a99", &[], example).await;
    assert_eq!((again.status, again.headers["idempotency-replayed"].to_str().unwrap()), (202, "true"));
    let invalid = deployment.post("invalid", &[], br#"{"events":[{"name":"n"}]}"#).await;
    assert_eq!((invalid.status, &invalid.body["errors"][0]["field"]), (422, &json!("events[0].external_user_id")));

    let event = br#"{"events":[{"external_user_id":"gzipped","name":"n"}]}"#;
    let encoded = [("content-type", "application/gzip"), ("content-encoding", "gzip")];
    assert_eq!(deployment.post("gzip", &encoded, &gzip(event)).await.status, 202);
    let messages = next_messages(&deployment).await;
    assert!(messages.len() == 1 && messages[0].body().unwrap().contains("gzipped"));

    let host = [("host", deployment.output("Host"))];
    let refused = [
        (Method::POST, "/api/v2/events", 404, "not_found"),
        (Method::GET, PATH, 405, "method_not_allowed"),
        (Method::POST, PATH, 401, "auth_required"),
    ];
    for (method, path, status, code) in refused {
        let response = deployment.call(method, path, &host, b"").await;
        assert_eq!((response.status, &response.body["errors"][0]["code"]), (status, &json!(code)));
    }

    let path = format!("/2015-03-31/functions/{}/configuration?Qualifier=live", deployment.output("FunctionName"));
    let live = deployment.call(Method::GET, &path, &[], b"").await.body;
    assert_eq!((&live["Version"], &live["Timeout"]), (&json!("1"), &json!(4)), "the lease depends on the timeout");
    assert_eq!(live["Environment"]["Variables"]["VERSION"], "1.2.3+4d5e");
    assert_eq!(deployment.output("Version"), "1.2.3+4d5e");
    assert!(deployment.output("AlarmsReach").starts_with("NOBODY"));

    run_client_tests(&deployment).await;
}

/// Runs those tests of the TypeScript client that need a deployed service and read its queue.
async fn run_client_tests(deployment: &Deployment) {
    client_program::build().await;
    let status = Command::new("npx")
        .args(["vitest", "run", "test/local-stack.test.ts"])
        .current_dir(client_program::directory())
        .env("VIBEFOLLOW_BASE_URL", deployment.output("BaseUrl"))
        .env("VIBEFOLLOW_API_KEY", API_KEY)
        .env("VIBEFOLLOW_QUEUE_URL", deployment.output("QueueUrl"))
        .status();
    assert!(status.expect("node is installed").success());
}
