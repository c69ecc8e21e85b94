//! The Lambda Runtime API for one sandbox, which handles one invocation after another.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

/// The function's timeout in template.yaml.
const TIMEOUT: Duration = Duration::from_secs(4);
/// The longest that a start or an invocation may take.
const PATIENCE: Duration = Duration::from_secs(30);
const API: &str = "/2018-06-01/runtime/";

/// The result of an invocation.
#[derive(Debug)]
pub struct Invocation {
    /// The time from handing out the event to reading the whole response: the wait of a client.
    pub latency: Duration,
    /// The time from handing out the event to the next poll, which Lambda bills.
    pub billed: Duration,
    /// The function's response.
    pub response: Bytes,
}

enum Report {
    /// The sandbox polls for an event. The sender delivers it.
    Poll(Instant, oneshot::Sender<Handout>),
    Response(Instant, Bytes),
    Error(String),
}

struct Handout {
    event: Bytes,
    id: String,
    at: oneshot::Sender<Instant>,
}

/// The runtime API of one sandbox.
pub struct RuntimeApi {
    address: String,
    reports: mpsc::UnboundedReceiver<Report>,
    poll: Option<(Instant, oneshot::Sender<Handout>)>,
    invocations: u64,
    server: tokio::task::JoinHandle<()>,
}

impl RuntimeApi {
    /// Starts listening.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let (sender, reports) = mpsc::unbounded_channel();
        let server = tokio::task::spawn_local(serve(listener, sender));
        Ok(Self { address, reports, poll: None, invocations: 0, server })
    }

    /// The value of `AWS_LAMBDA_RUNTIME_API`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Waits until the sandbox polls. Returns when it did.
    pub async fn polled(&mut self) -> Result<Instant> {
        if let Some((at, _)) = &self.poll {
            return Ok(*at);
        }
        match self.report().await? {
            Report::Poll(at, handout) => {
                self.poll = Some((at, handout));
                Ok(at)
            }
            Report::Response(..) => bail!("the sandbox sent a response without an event"),
            Report::Error(error) => bail!("the function failed: {error}"),
        }
    }

    /// Hands out an event, and waits for the response and the next poll.
    pub async fn invoke(&mut self, event: Bytes) -> Result<Invocation> {
        self.polled().await?;
        let (_, handout) = self.poll.take().context("no poll")?;
        self.invocations += 1;
        let (sender, at) = oneshot::channel();
        let id = format!("00000000-0000-4000-8000-{:012x}", self.invocations);
        if handout.send(Handout { event, id, at: sender }).is_err() {
            bail!("the sandbox closed the connection");
        }
        let handed_out = at.await.context("the sandbox closed the connection")?;
        let (responded, response) = match self.report().await? {
            Report::Response(at, response) => (at, response),
            Report::Poll(..) => bail!("the sandbox polled before it responded"),
            Report::Error(error) => bail!("the function failed: {error}"),
        };
        let polled = self.polled().await?;
        Ok(Invocation { latency: responded - handed_out, billed: polled - handed_out, response })
    }

    async fn report(&mut self) -> Result<Report> {
        let report = tokio::time::timeout(PATIENCE, self.reports.recv()).await;
        report.context("the sandbox did not respond in time")?.context("the runtime API ended")
    }
}

impl Drop for RuntimeApi {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, reports: mpsc::UnboundedSender<Report>) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let reports = reports.clone();
        tokio::task::spawn_local(async move {
            let current = Rc::new(RefCell::new(String::new()));
            let service = service_fn(move |request| {
                let (reports, current) = (reports.clone(), Rc::clone(&current));
                async move { Ok::<_, Infallible>(respond(request, &reports, &current).await) }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn respond(
    request: Request<Incoming>,
    reports: &mpsc::UnboundedSender<Report>,
    current: &RefCell<String>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path().strip_prefix(API).unwrap_or_default().to_owned();
    if (request.method(), path.as_str()) == (&Method::GET, "invocation/next") {
        return next(reports, current).await;
    }
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
    let at = Instant::now();
    let report = match (path.rsplit('/').next(), body) {
        (Some("response"), Ok(body)) if path == format!("invocation/{}/response", current.borrow()) => {
            Report::Response(at, body)
        }
        (Some("error"), Ok(body)) => Report::Error(String::from_utf8_lossy(&body).into_owned()),
        (call, _) => Report::Error(format!("unexpected call {call:?} to {path}")),
    };
    let _ = reports.send(report);
    let mut response = Response::new(Full::new(Bytes::from_static(br#"{"status":"OK"}"#)));
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}

async fn next(reports: &mpsc::UnboundedSender<Report>, current: &RefCell<String>) -> Response<Full<Bytes>> {
    let (sender, handout) = oneshot::channel();
    let _ = reports.send(Report::Poll(Instant::now(), sender));
    let Ok(Handout { event, id, at }) = handout.await else {
        return Response::new(Full::default());
    };
    let deadline = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + TIMEOUT;
    let response = Response::builder()
        .header("content-type", "application/json")
        .header("lambda-runtime-aws-request-id", &id)
        .header("lambda-runtime-deadline-ms", deadline.as_millis().to_string())
        .header("lambda-runtime-invoked-function-arn", "arn:aws:lambda:us-east-1:123456789012:function:event-ingest")
        .header("lambda-runtime-trace-id", "Root=1-6b03e81b-3d1f0c5a7e9b2d4f6a8c0e1f;Parent=0123456789abcdef;Sampled=0")
        .body(Full::new(event))
        .unwrap_or_default();
    *current.borrow_mut() = id;
    let _ = at.send(Instant::now());
    response
}
