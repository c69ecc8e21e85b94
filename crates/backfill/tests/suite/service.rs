//! An in-memory service that follows docs/contract.md, and fails where a test wants it to.

use contract::batch::Bulk;
use flate2::read::GzDecoder;
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use hyper::{Request, Response};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::future::pending;
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use test_support::http_server::{Cut, HttpServer};

/// A request as the service received it.
#[derive(Clone, Debug)]
pub struct ReceivedRequest {
    pub key: String,
    pub at: Instant,
    pub events: Vec<Value>,
    /// The body after decompression.
    pub body: Vec<u8>,
    pub headers: HashMap<String, String>,
}

/// What the service does with a request.
pub enum Reply {
    /// Processes the request and answers.
    Process,
    /// Answers with this status, `Retry-After` and body, and does not process the request.
    Answer(u16, Option<u64>, Value),
    /// Closes the connection.
    Disconnect,
    /// Processes the request, but closes the connection instead of answering.
    ProcessAndDisconnect,
    /// Never answers.
    Hang,
    /// Processes the request, but never answers.
    ProcessAndHang,
    /// Processes the request after this time for each event, in which all requests in flight share one line.
    SharedLine(Duration),
}

/// A 403 without a body, which ends a run.
pub fn forbidden() -> Reply {
    Reply::Answer(403, None, json!({}))
}

#[derive(Default)]
struct State {
    requests: Vec<ReceivedRequest>,
    /// The accepted bodies, by idempotency key.
    accepted: HashMap<String, Vec<u8>>,
    queue: Vec<Value>,
}

/// The replies to a run that is killed at its request `kill_at`, counted from 1. The service processes the request
/// before that one without answering, and never answers that one.
pub fn until_killed(kill_at: Option<usize>, number: usize) -> Reply {
    match kill_at {
        Some(kill_at) if number + 2 == kill_at => Reply::ProcessAndHang,
        Some(kill_at) if number + 1 == kill_at => Reply::Hang,
        _ => Reply::Process,
    }
}

/// The service and its server, which ends with this value.
pub struct Service {
    state: Arc<Mutex<State>>,
    server: HttpServer,
}

impl Service {
    /// Starts the service. `script` gets the number of each request, counted from 0, and the request.
    pub async fn start(script: impl Fn(usize, &ReceivedRequest) -> Reply + Send + Sync + 'static) -> Self {
        let state = Arc::<Mutex<State>>::default();
        let (shared, script, line) = (Arc::clone(&state), Arc::new(script), Arc::<tokio::sync::Mutex<()>>::default());
        let server = HttpServer::start(move |request: Request<Bytes>| {
            let (state, script, line) = (Arc::clone(&shared), Arc::clone(&script), Arc::clone(&line));
            async move {
                let received = receive(&request);
                let number = {
                    let mut state = lock(&state);
                    state.requests.push(received.clone());
                    state.requests.len() - 1
                };
                let reply = script(number, &received);
                match reply {
                    Reply::Process => Ok(process(&state, &received)),
                    Reply::Answer(status, retry_after, body) => Ok(response(status, retry_after, &body)),
                    Reply::Disconnect => Err(Cut),
                    Reply::ProcessAndDisconnect => {
                        process(&state, &received);
                        Err(Cut)
                    }
                    Reply::Hang => pending().await,
                    Reply::ProcessAndHang => {
                        process(&state, &received);
                        pending().await
                    }
                    Reply::SharedLine(per_event) => {
                        // The lock is fair, so that the requests take turns.
                        for _ in &received.events {
                            let _line = line.lock().await;
                            tokio::time::sleep(per_event).await;
                        }
                        Ok(process(&state, &received))
                    }
                }
            }
        })
        .await;
        Self { state, server }
    }

    pub fn address(&self) -> String {
        self.server.address()
    }

    pub fn requests(&self) -> Vec<ReceivedRequest> {
        lock(&self.state).requests.clone()
    }

    /// The number of events in each request.
    pub fn batch_sizes(&self) -> Vec<usize> {
        self.requests().iter().map(|request| request.events.len()).collect()
    }

    /// The idempotency key of each request.
    pub fn keys(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.key).collect()
    }

    /// The idempotency keys of all requests, each once.
    pub fn distinct_keys(&self) -> BTreeSet<String> {
        self.keys().into_iter().collect()
    }

    /// The events in the queue.
    pub fn queue(&self) -> Vec<Value> {
        lock(&self.state).queue.clone()
    }

    /// The user ids of the events in the queue, none of which may be there twice.
    #[track_caller]
    pub fn queued_ids(&self) -> BTreeSet<u64> {
        let queue = self.queue();
        let ids: Vec<u64> =
            queue.iter().map(|event| event["external_user_id"].as_str().unwrap().parse().unwrap()).collect();
        let distinct: BTreeSet<u64> = ids.iter().copied().collect();
        assert_eq!(distinct.len(), ids.len(), "an event is in the queue twice");
        distinct
    }

    /// Forgets all idempotency keys, as the service does after 24 hours.
    pub fn forget_keys(&self) {
        lock(&self.state).accepted.clear();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no thread panicked while holding the lock")
}

/// Validates each event, and accepts each idempotency key once.
fn process(state: &Mutex<State>, request: &ReceivedRequest) -> Response<Bytes> {
    let received = request.events.len();
    let bulk = Bulk::parse(&request.body).expect("the command sends valid batches");
    let mut errors: Vec<_> = bulk
        .violations
        .iter()
        .map(|violation| json!({"index": violation.event, "code": "validation", "message": violation.message, "field": violation.member}))
        .collect();
    // A rule that only the service knows, as a newer version could have.
    let forbidden = request.events.iter().enumerate().filter(|(_, event)| event["name"] == "forbidden");
    errors.extend(
        forbidden.map(
            |(index, _)| json!({"index": index, "code": "validation", "message": "is not allowed", "field": "name"}),
        ),
    );
    let rejected: BTreeSet<_> = errors.iter().map(|error| error["index"].as_u64().expect("an index")).collect();
    let mut is_replay = false;
    let mut state = lock(state);
    match state.accepted.get(&request.key) {
        Some(body) if *body != request.body => return reused(),
        Some(_) => is_replay = true,
        None if rejected.len() == received => {}
        None => {
            state.accepted.insert(request.key.clone(), request.body.clone());
            let valid = (0..).zip(&request.events).filter(|(index, _)| !rejected.contains(index));
            state.queue.extend(valid.map(|(_, event)| event.clone()));
        }
    }
    let data = json!({"accepted": received - rejected.len(), "rejected": rejected.len(), "errors": errors});
    let mut response = response(200, None, &json!({"data": data, "meta": {"received": received}}));
    if is_replay {
        response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
    }
    response
}

fn receive(request: &Request<Bytes>) -> ReceivedRequest {
    let header = |name: &str| request.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/api/v1/events/bulk"));
    assert_eq!(header("content-encoding"), "gzip");
    let mut body = Vec::new();
    GzDecoder::new(request.body().as_ref()).read_to_end(&mut body).expect("gzip");
    let value: Value = serde_json::from_slice(&body).expect("JSON");
    let headers = ["authorization", "content-type", "host"].map(|name| (name.to_owned(), header(name))).into();
    let events = value["events"].as_array().expect("an array").clone();
    ReceivedRequest { key: header("idempotency-key"), at: Instant::now(), events, body, headers }
}

fn response(status: u16, retry_after: Option<u64>, body: &Value) -> Response<Bytes> {
    let mut response = Response::builder().status(status).header("content-type", "application/json");
    if let Some(seconds) = retry_after {
        response = response.header("retry-after", seconds.to_string());
    }
    response.body(Bytes::from(body.to_string())).expect("a response")
}

fn reused() -> Response<Bytes> {
    response(422, None, &json!({"errors": [{"code": "idempotency_key_reuse", "message": "reused"}]}))
}
