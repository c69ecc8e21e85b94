//! The whole way over HTTP: template.yaml deployed to a local AWS of its own by `sam deploy`.

use crate::gateway_event::gzip;
use crate::message_schema;
use aws_sdk_sqs::types::MessageSystemAttributeName;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use lambda_http::http::{HeaderMap, Method, Request};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use test_support::local_aws::test_config;

const KEY: &str = "sk_test_LOCAL_ONLY_not_a_secret_0123456789";
const PATH: &str = "/api/v1/events/batch";

/// A local AWS with the template deployed. It ends when this process does.
struct Deployment {
    outputs: Value,
    client: Client<HttpConnector, Full<bytes::Bytes>>,
    _python: Child,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Deployment {
    /// Deploys under `name`.
    fn new(name: &str, options: &[&str]) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = root.join(".venv/sam/bin/python");
        assert!(python.exists(), "{} is missing: `make test` installs it", python.display());
        let state = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let mut python = Command::new(python)
            .arg(root.join("tools/local.py"))
            .args(["up", "--hold", "--stack", name, "--state-dir"])
            .arg(state)
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python starts");
        let mut line = String::new();
        BufReader::new(python.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let outputs = serde_json::from_str(&line).expect("the outputs, or see above what failed");
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { outputs, client, _python: python }
    }

    fn output(&self, name: &str) -> &str {
        self.outputs[name].as_str().unwrap_or_else(|| panic!("no output {name}: {}", self.outputs))
    }

    async fn call(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.output("Endpoint")));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(body.to_vec())).expect("a request");
        let response = self.client.request(request).await.expect("an answer");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// Posts through API Gateway.
    async fn post(&self, idempotency_key: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let authorization = format!("Bearer {KEY}");
        let mut all = vec![
            ("host", self.output("Host")),
            ("authorization", &authorization),
            ("idempotency-key", idempotency_key),
        ];
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            all.push(("content-type", "application/json"));
        }
        all.extend(headers);
        self.call(Method::POST, PATH, &all, body).await
    }

    async fn messages(&self) -> Vec<aws_sdk_sqs::types::Message> {
        let sdk = test_config(self.output("Endpoint")).await;
        let received = aws_sdk_sqs::Client::new(&sdk)
            .receive_message()
            .queue_url(self.output("QueueUrl"))
            .max_number_of_messages(10)
            .message_attribute_names("All")
            .message_system_attribute_names(MessageSystemAttributeName::All)
            .send()
            .await;
        let messages = received.expect("the queue answers").messages.unwrap_or_default();
        for message in &messages {
            message_schema::check(message.body().expect("a body"));
        }
        messages
    }
}

/// One test, as deploying takes a while: each step builds on the one before.
#[tokio::test]
async fn the_deployed_template_does_the_main_job() {
    let deployment = Deployment::new("main-job", &[]);
    let example = br#"{ "events": [ { "external_user_id": "usr_42", "name": "user_signed_up",
                "properties": { "plan": "trial" } } ] }"#;

    let first = deployment.post("7b6c7e9e-2c2d-4a8d-9d3a-4f3d2c1b0a99", &[], example).await;
    assert_eq!((first.status, first.body), (202, json!({"data": {"accepted": true}})));
    assert!(first.headers.contains_key("x-request-id"));
    let messages = deployment.messages().await;
    assert_eq!(messages.len(), 1);
    let body = messages[0].body().expect("a body");
    let sent = r#"{ "external_user_id": "usr_42", "name": "user_signed_up",
                "properties": { "plan": "trial" } }"#;
    assert!(body.contains(&format!(r#""event":{sent}"#)), "byte for byte: {body}");
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
    let messages = deployment.messages().await;
    assert!(messages.len() == 1 && messages[0].body().unwrap().contains("gzipped"));

    let host = [("host", deployment.output("Host"))];
    let ours = [
        (Method::POST, "/api/v2/events", 404, "not_found"),
        (Method::GET, PATH, 405, "method_not_allowed"),
        (Method::POST, PATH, 401, "auth_required"),
    ];
    for (method, path, status, code) in ours {
        let answer = deployment.call(method, path, &host, b"").await;
        assert_eq!((answer.status, &answer.body["errors"][0]["code"]), (status, &json!(code)));
    }

    the_client_runs_the_pages_example(&deployment);
}

/// The TypeScript client's own tests that need a deployed service, which look into its queue.
fn the_client_runs_the_pages_example(deployment: &Deployment) {
    let client = Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk/typescript");
    assert!(client.join("node_modules").exists(), "`make test` installs what the client's tests need");
    for command in [&["npm", "run", "-s", "build"][..], &["npx", "vitest", "run", "test/local-stack.test.ts"]] {
        let status = Command::new(command[0])
            .args(&command[1..])
            .current_dir(&client)
            .env("VIBEFOLLOW_BASE_URL", deployment.output("Endpoint"))
            .env("VIBEFOLLOW_HOST", deployment.output("Host"))
            .env("VIBEFOLLOW_API_KEY", KEY)
            .env("VIBEFOLLOW_QUEUE_URL", deployment.output("QueueUrl"))
            .status();
        assert!(status.expect("node is installed").success(), "{command:?}");
    }
}

/// An empty `AWS_ENDPOINT_URL` would make every call of the SDK panic, and only on real AWS
/// would one see it.
#[tokio::test]
async fn with_the_templates_defaults_the_function_has_no_endpoint_variable() {
    let deployment = Deployment::new("no-endpoint", &["--defaults"]);
    let path = format!("/2015-03-31/functions/{}/configuration", deployment.output("FunctionName"));
    let configuration = deployment.call(Method::GET, &path, &[], b"").await.body;
    let variables = configuration["Environment"]["Variables"].as_object().expect("variables");
    assert!(variables.contains_key("EVENTS_QUEUE_URL") && !variables.contains_key("AWS_ENDPOINT_URL"), "{variables:?}");
    assert_eq!(configuration["Timeout"], 4, "the lease is built on it");
}

/// A backfill killed half-way and started again: what a newcomer does with the README.
#[cfg(feature = "cli")]
#[tokio::test]
async fn a_backfill_killed_half_way_and_resumed_queues_every_row_once() {
    const ROWS: usize = 4_000;
    let deployment = Deployment::new("backfill", &[]);
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("backfill-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let row = |id| format!("{{\"external_user_id\":\"{id}\",\"name\":\"n\"}}\n");
    std::fs::write(directory.join("events.ndjson"), (0..ROWS).map(row).collect::<String>()).expect("a file");
    let backfill = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_event-ingest-backfill"));
        command
            .args(["--url", deployment.output("Endpoint"), "--host", deployment.output("Host"), "--max-events", "100"])
            .arg("events.ndjson")
            .env("VIBEFOLLOW_API_KEY", KEY)
            .current_dir(&directory)
            .stdin(Stdio::null());
        command
    };
    let mut first = backfill().spawn().expect("it starts");
    let accepted = || {
        let checkpoint = std::fs::read(directory.join("events.ndjson.checkpoint.json")).unwrap_or_default();
        serde_json::from_slice::<Value>(&checkpoint).ok().and_then(|checkpoint| checkpoint["accepted"].as_u64())
    };
    let patience = std::time::Instant::now() + std::time::Duration::from_mins(2);
    while accepted().is_none_or(|accepted| accepted < ROWS as u64 / 2) {
        assert!(std::time::Instant::now() < patience, "the backfill does not get half-way");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    first.kill().expect("killed");
    first.wait().expect("ended");
    assert!(accepted().is_some_and(|accepted| accepted < ROWS as u64), "it was done before it was killed");
    assert!(backfill().status().expect("it runs").success());

    let mut found = Vec::new();
    loop {
        let messages = deployment.messages().await;
        if messages.is_empty() {
            break;
        }
        for message in messages {
            let body: Value = serde_json::from_str(message.body().expect("a body")).expect("JSON");
            let events = body["events"].as_array().expect("events");
            let id = |event: &Value| event["event"]["external_user_id"].as_str().unwrap().parse::<usize>().unwrap();
            found.extend(events.iter().map(id));
        }
    }
    found.sort_unstable();
    assert!(found.iter().copied().eq(0..ROWS), "{} events, each exactly once", found.len());
    std::fs::remove_dir_all(&directory).expect("removed");
}
