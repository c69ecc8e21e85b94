//! template.yaml, deployed with `sam deploy` to a local AWS that runs only for the test.

use crate::local_aws::test_config;
use aws_sdk_sqs::types::{Message, MessageSystemAttributeName};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::http::{HeaderMap, Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The API key that tools/local.py stores in every deployment.
pub const API_KEY: &str = "sk_test_LOCAL_ONLY_not_a_secret_0123456789";
/// The endpoint's path.
pub const PATH: &str = "/api/v1/events/batch";

/// A local AWS with the deployed template. It ends when this process does.
pub struct Deployment {
    outputs: Value,
    client: Client<HttpConnector, Full<Bytes>>,
    /// tools/local.py, which ends when its standard input closes.
    _python: Child,
}

/// A response of the deployed API.
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, or `null` if it is not JSON.
    pub body: Value,
}

impl Deployment {
    /// Runs `tools/local.py up` with these options. The stack is called `name`, and so is the state
    /// directory inside `directory`.
    pub fn start(name: &str, directory: &Path, options: &[&str]) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let python = root.join(".venv/sam/bin/python");
        assert!(python.exists(), "{} is missing: `make test` installs it", python.display());
        let mut python = Command::new(python)
            .arg(root.join("tools/local.py"))
            .args(["up", "--hold", "--stack", name, "--state-dir"])
            .arg(directory.join(name))
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python starts");
        let mut line = String::new();
        BufReader::new(python.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let outputs = serde_json::from_str(&line).expect("the outputs; standard error above says what failed");
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { outputs, client, _python: python }
    }

    /// An output of the stack.
    pub fn output(&self, name: &str) -> &str {
        self.outputs[name].as_str().unwrap_or_else(|| panic!("no output {name}: {}", self.outputs))
    }

    /// Sends a request to the local AWS.
    pub async fn call(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.output("Endpoint")));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(body.to_vec())).expect("a request");
        let (head, body) = self.client.request(request).await.expect("an answer").into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Answer { status: head.status.as_u16(), headers: head.headers, body }
    }

    /// Posts a batch through API Gateway.
    pub async fn post(&self, idempotency_key: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let authorization = format!("Bearer {API_KEY}");
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

    /// Receives up to 10 messages from the queue.
    pub async fn messages(&self) -> Vec<Message> {
        let sdk = test_config(self.output("Endpoint")).await;
        let received = aws_sdk_sqs::Client::new(&sdk)
            .receive_message()
            .queue_url(self.output("QueueUrl"))
            .max_number_of_messages(10)
            .message_attribute_names("All")
            .message_system_attribute_names(MessageSystemAttributeName::All)
            .send()
            .await;
        received.expect("the queue answers").messages.unwrap_or_default()
    }
}
