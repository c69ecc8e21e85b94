//! An emulator of the Lambda Runtime API for one sandbox.
//!
//! It implements the documented interface of custom runtimes: `next`, `response`, `error`, and `init/error`
//! under `/2018-06-01/runtime`.

use hyper::body::Bytes;
use hyper::{Method, Request, Response, StatusCode};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use test_support::http_server::{Cut, HttpServer};
use tokio::sync::{mpsc, oneshot, watch};

const ROOT: &str = "/2018-06-01/runtime/";

/// The value of `Lambda-Runtime-Deadline-Ms`.
#[derive(Clone, Copy, Debug)]
pub enum DeadlineHeader {
    /// The end of the time-out, as on Lambda.
    Real,
    /// A constant, as some emulators send.
    Constant(u64),
}

/// The result that the function reported for an invocation.
#[derive(Debug)]
pub enum Reported {
    /// The response of the handler.
    Response(Bytes),
    /// A runtime error instead of a response.
    Error(Bytes),
}

/// An invocation that the function has fetched.
pub struct Running {
    /// When the function fetched it. The time-out counts from this time.
    pub since: Instant,
    /// Resolves when the function reports the result. Fails if it cannot do so any more.
    pub reported: oneshot::Receiver<Reported>,
}

/// The emulator.
pub struct RuntimeApi {
    server: HttpServer,
    shared: Arc<Shared>,
    invocations: mpsc::UnboundedSender<Invocation>,
}

struct Invocation {
    id: String,
    event: Bytes,
    timeout: Duration,
    deadline: DeadlineHeader,
    reported: oneshot::Sender<Reported>,
    fetched: oneshot::Sender<Instant>,
}

struct Shared {
    queue: tokio::sync::Mutex<mpsc::UnboundedReceiver<Invocation>>,
    running: Mutex<HashMap<String, oneshot::Sender<Reported>>>,
    /// Whether the function waits for an invocation.
    idle: watch::Sender<bool>,
}

impl RuntimeApi {
    pub async fn start() -> Self {
        let (invocations, queue) = mpsc::unbounded_channel();
        let queue = tokio::sync::Mutex::new(queue);
        let shared = Arc::new(Shared { queue, running: Mutex::default(), idle: watch::Sender::new(false) });
        let handler = shared.clone();
        let server = HttpServer::start(move |request| handler.clone().handle(request)).await;
        Self { server, shared, invocations }
    }

    /// The value of `AWS_LAMBDA_RUNTIME_API`.
    pub fn address(&self) -> String {
        self.server.address()
    }

    /// Waits until the function asks for an invocation, and so has finished the last one.
    pub async fn idle(&self) {
        let mut idle = self.shared.idle.subscribe();
        idle.wait_for(|idle| *idle).await.expect("the sender lives in self");
    }

    /// Offers an event to the function. Returns when the function has fetched it.
    pub async fn invoke(&self, event: Bytes, timeout: Duration, deadline: DeadlineHeader) -> Running {
        let id = uuid::Uuid::new_v4().to_string();
        let (report, reported) = oneshot::channel();
        let (fetch, fetched) = oneshot::channel();
        let invocation = Invocation { id, event, timeout, deadline, reported: report, fetched: fetch };
        assert!(self.invocations.send(invocation).is_ok(), "the emulator owns the receiver");
        Running { since: fetched.await.expect("the emulator runs"), reported }
    }
}

impl Shared {
    async fn handle(self: Arc<Self>, request: Request<Bytes>) -> Result<Response<Bytes>, Cut> {
        let path = request.uri().path().strip_prefix(ROOT).unwrap_or_default().to_owned();
        let segments: Vec<&str> = path.split('/').collect();
        match (request.method(), segments.as_slice()) {
            (&Method::GET, ["invocation", "next"]) => Ok(self.next().await),
            (&Method::POST, ["invocation", id, "response"]) => {
                Ok(self.report(id, Reported::Response(request.into_body())))
            }
            (&Method::POST, ["invocation", id, "error"]) => Ok(self.report(id, Reported::Error(request.into_body()))),
            // The process exits afterwards, which the sandbox notices.
            (&Method::POST, ["init", "error"]) => Ok(accepted()),
            _ => Ok(with_status(StatusCode::NOT_FOUND)),
        }
    }

    /// Waits for an invocation without a time-out.
    async fn next(&self) -> Response<Bytes> {
        self.idle.send_replace(true);
        let invocation = self.queue.lock().await.recv().await;
        self.idle.send_replace(false);
        // The channel closes when the test is over.
        let Some(invocation) = invocation else { return with_status(StatusCode::GONE) };
        let Invocation { id, event, timeout, deadline, reported, fetched } = invocation;
        let deadline = match deadline {
            DeadlineHeader::Real => epoch_millis() + u64::try_from(timeout.as_millis()).expect("small"),
            DeadlineHeader::Constant(deadline) => deadline,
        };
        self.running.lock().expect("no panic").insert(id.clone(), reported);
        let _ = fetched.send(Instant::now());
        Response::builder()
            .header("Content-Type", "application/json")
            .header("Lambda-Runtime-Aws-Request-Id", id)
            .header("Lambda-Runtime-Deadline-Ms", deadline)
            .header(
                "Lambda-Runtime-Invoked-Function-Arn",
                "arn:aws:lambda:us-east-1:123456789012:function:event-ingest",
            )
            .header(
                "Lambda-Runtime-Trace-Id",
                "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=1",
            )
            .body(event)
            .expect("a response")
    }

    fn report(&self, id: &str, reported: Reported) -> Response<Bytes> {
        match self.running.lock().expect("no panic").remove(id) {
            // The receiver may be gone, as on Lambda.
            Some(waiting) => drop(waiting.send(reported)),
            None => return with_status(StatusCode::BAD_REQUEST),
        }
        accepted()
    }
}

fn accepted() -> Response<Bytes> {
    with_status(StatusCode::ACCEPTED)
}

fn with_status(status: StatusCode) -> Response<Bytes> {
    let body = Bytes::from_static(br#"{"status":"OK"}"#);
    Response::builder().status(status).header("Content-Type", "application/json").body(body).expect("a response")
}

/// The current time in milliseconds since the epoch, the unit of the deadline header.
pub fn epoch_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("before the year 584556019")
}
