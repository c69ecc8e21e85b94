//! A server with the idempotency of the service, and a script of failures.

use super::clients::Endpoint;
use hyper::body::Bytes;
use hyper::{Request, Response, StatusCode};
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use test_support::http_server::{Cut, HttpServer};

/// The name of an event that breaks a rule that no client knows, such as one of a newer version of the service.
pub const INVALID: &str = "invalid";
/// The name of an event for which both endpoints answer 422 `validation_failed`.
pub const UNPROCESSABLE: &str = "unprocessable";

/// The behavior for one request.
#[derive(Clone, Debug)]
pub enum Step {
    Accept,
    Answer {
        status: u16,
        header: Option<(&'static str, &'static str)>,
        body: String,
    },
    /// The connection breaks, and nothing is accepted.
    CutBefore,
    /// The request is accepted, and the connection breaks before the response.
    CutAfter,
    /// Nothing is accepted, but the response has the body of a success, with this status.
    BodyOfSuccess(u16),
    Hang,
}

impl Step {
    pub fn answer(status: u16, body: &str) -> Self {
        Self::Answer { status, header: None, body: body.to_owned() }
    }

    pub fn proxy(status: u16) -> Self {
        Self::answer(status, "<html>from a proxy</html>")
    }

    /// A refusal in the form of the service.
    pub fn refusal(status: u16, code: &str) -> Self {
        Self::answer(status, &json!({ "errors": [{ "code": code, "message": "scripted" }] }).to_string())
    }

    pub fn with_header(self, name: &'static str, value: &'static str) -> Self {
        match self {
            Self::Answer { status, body, .. } => Self::Answer { status, header: Some((name, value)), body },
            other => other,
        }
    }
}

/// A request that arrived.
#[derive(Clone, Debug)]
pub struct Received {
    pub at: Instant,
    pub authorization: String,
    key: String,
    body: String,
}

impl Received {
    /// Whether both have the same bytes and the same key.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.key, &self.body) == (&other.key, &other.body)
    }
}

struct State {
    endpoint: Endpoint,
    script: VecDeque<Step>,
    max_bytes: usize,
    too_large: Step,
    requests: Vec<Received>,
    bodies: HashMap<String, String>,
    reused_keys: usize,
    queue: Vec<Value>,
}

pub struct ScriptedServer {
    server: HttpServer,
    state: Arc<Mutex<State>>,
}

impl ScriptedServer {
    /// After the last step of the script, every request is handled as the service would.
    pub async fn start(endpoint: Endpoint, script: &[Step]) -> Self {
        let state = Arc::new(Mutex::new(State {
            endpoint,
            script: script.iter().cloned().collect(),
            max_bytes: 5 * 1024 * 1024,
            too_large: Step::refusal(413, "payload_too_large"),
            requests: Vec::new(),
            bodies: HashMap::new(),
            reused_keys: 0,
            queue: Vec::new(),
        }));
        let shared = state.clone();
        let server = HttpServer::start(move |request| respond(shared.clone(), request)).await;
        Self { server, state }
    }

    pub fn address(&self) -> String {
        self.server.address()
    }

    /// Answers bodies above `max_bytes` with `too_large`.
    pub fn limit(&self, max_bytes: usize, too_large: Step) {
        let mut state = self.state.lock().expect("no panic");
        (state.max_bytes, state.too_large) = (max_bytes, too_large);
    }

    pub fn requests(&self) -> Vec<Received> {
        self.state.lock().expect("no panic").requests.clone()
    }

    /// The accepted events, in order.
    pub fn queue(&self) -> Vec<Value> {
        self.state.lock().expect("no panic").queue.clone()
    }

    /// How often a key arrived with other bytes than before.
    pub fn reused_keys(&self) -> usize {
        self.state.lock().expect("no panic").reused_keys
    }
}

async fn respond(state: Arc<Mutex<State>>, request: Request<Bytes>) -> Result<Response<Bytes>, Cut> {
    let step = state.lock().expect("no panic").receive(&request);
    match step {
        Step::CutBefore | Step::CutAfter => Err(Cut),
        Step::Hang => std::future::pending().await,
        Step::Accept | Step::BodyOfSuccess(_) => unreachable!("receive() replaces it by an answer"),
        Step::Answer { status, header, body } => {
            let mut response = Response::new(Bytes::from(body));
            *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            if let Some((name, value)) = header {
                response.headers_mut().insert(name, value.parse().expect("a value"));
            }
            Ok(response)
        }
    }
}

impl State {
    fn receive(&mut self, request: &Request<Bytes>) -> Step {
        let header = |name: &str| {
            request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let body = if header("content-encoding") == "gzip" {
            let mut text = String::new();
            flate2::read::MultiGzDecoder::new(&request.body()[..]).read_to_string(&mut text).expect("gzip");
            text
        } else {
            String::from_utf8(request.body().to_vec()).expect("UTF-8")
        };
        let received = Received {
            at: Instant::now(),
            authorization: header("authorization"),
            key: header("idempotency-key"),
            body,
        };
        self.requests.push(received.clone());
        if request.uri().path() != self.endpoint.path() {
            return Step::refusal(404, "not_found");
        }
        match self.script.pop_front().unwrap_or(Step::Accept) {
            Step::Accept => self.accept(received),
            Step::CutAfter => {
                self.accept(received);
                Step::CutAfter
            }
            Step::BodyOfSuccess(status) => {
                let events = events(&received.body).expect("JSON");
                Step::answer(status, &self.endpoint.body_of_success(events.len(), &[]).to_string())
            }
            other => other,
        }
    }

    fn accept(&mut self, Received { key, body, .. }: Received) -> Step {
        if body.len() > self.max_bytes {
            return self.too_large.clone();
        }
        // serde_json refuses half of a surrogate pair, as the service does.
        let Ok(events) = events(&body) else {
            return Step::refusal(422, "validation_failed");
        };
        let (bad, good): (Vec<_>, Vec<_>) = events
            .iter()
            .enumerate()
            .partition(|(_, event)| ["", INVALID, UNPROCESSABLE].contains(&event["name"].as_str().unwrap_or_default()));
        if let Some((index, event)) = bad.first()
            && (self.endpoint == Endpoint::Batch || event["name"] == UNPROCESSABLE)
        {
            let error = json!({ "code": "validation_failed", "message": "is invalid", "field": format!("events[{index}].name") });
            return Step::answer(422, &json!({ "errors": [error] }).to_string());
        }
        match self.bodies.insert(key, body.clone()) {
            Some(earlier) if earlier != body => {
                self.reused_keys += 1;
                return Step::refusal(422, "idempotency_key_reuse");
            }
            Some(_) => {}
            None => self.queue.extend(good.iter().map(|(_, event)| (*event).clone())),
        }
        let errors: Vec<Value> = bad
            .iter()
            .map(|(index, _)| json!({ "index": index, "code": "validation", "message": "is invalid", "field": "name" }))
            .collect();
        Step::answer(self.endpoint.success(), &self.endpoint.body_of_success(good.len(), &errors).to_string())
    }
}

fn events(body: &str) -> serde_json::Result<Vec<Value>> {
    let parsed: Value = serde_json::from_str(body)?;
    Ok(parsed["events"].as_array().cloned().unwrap_or_default())
}
