//! `DynamoDB` and SQS over HTTP for one sandbox, each on its own port.

pub mod dynamodb;
mod expression;
pub mod sqs;
pub mod tls;

use crate::clock::sleep_until;
use anyhow::{Context, Result};
use bytes::Bytes;
use dynamodb::Tables;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sqs::Message;
use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tls::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

/// Calls with a larger body run on another thread, because the digests of a megabyte take milliseconds.
const LARGE: usize = 65_536;

/// The time that the services take to respond after they have read a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// In milliseconds.
    pub dynamodb: u64,
    /// In milliseconds.
    pub sqs: u64,
}

impl Latency {
    /// No latency, the default.
    pub const NONE: Self = Self { dynamodb: 0, sqs: 0 };
    /// The usual latency inside a region.
    pub const USUAL: Self = Self { dynamodb: 4, sqs: 8 };
}

/// Calls and their billed units.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// `GetItem` calls.
    pub dynamodb_reads: usize,
    /// `PutItem`, `UpdateItem` and `DeleteItem` calls.
    pub dynamodb_writes: usize,
    /// Read request units.
    pub read_units: f64,
    /// Write request units.
    pub write_units: f64,
    /// `SendMessage` and `SendMessageBatch` calls.
    pub send_calls: usize,
    /// Messages accepted.
    pub messages: usize,
    /// Bytes of all messages, with attributes.
    pub message_bytes: usize,
    /// Requests that SQS bills: one per started 64 KB.
    pub billed_chunks: usize,
    /// Bytes of the HTTP bodies received.
    pub bytes_in: usize,
}

impl Usage {
    /// Adds the counts of `other`.
    pub fn add(&mut self, other: &Self) {
        self.dynamodb_reads += other.dynamodb_reads;
        self.dynamodb_writes += other.dynamodb_writes;
        self.read_units += other.read_units;
        self.write_units += other.write_units;
        self.send_calls += other.send_calls;
        self.messages += other.messages;
        self.message_bytes += other.message_bytes;
        self.billed_chunks += other.billed_chunks;
        self.bytes_in += other.bytes_in;
    }
}

/// A response in AWS's JSON protocol.
pub struct Reply {
    status: StatusCode,
    body: Bytes,
}

impl Reply {
    fn ok(body: &Value) -> Self {
        Self { status: StatusCode::OK, body: body.to_string().into() }
    }

    fn error(body: &Value) -> Self {
        Self { status: StatusCode::BAD_REQUEST, body: body.to_string().into() }
    }
}

#[derive(Default)]
struct State {
    tables: Tables,
    queue: Vec<Message>,
    usage: Usage,
    failures: Vec<String>,
}

/// The running services.
pub struct Stub {
    state: Rc<RefCell<State>>,
    dynamodb: String,
    sqs: String,
    servers: Vec<tokio::task::JoinHandle<()>>,
}

impl Stub {
    /// Starts both services, over TLS if there is an acceptor.
    pub async fn start(latency: Latency, tls: Option<&Acceptor>) -> Result<Self> {
        let state = Rc::new(RefCell::new(State::default()));
        let mut addresses = Vec::new();
        let mut servers = Vec::new();
        // Two ports, because AWS has two hosts, between which a client cannot share connections.
        for millis in [latency.dynamodb, latency.sqs] {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let port = listener.local_addr()?.port();
            addresses.push(if tls.is_some() {
                format!("https://localhost:{port}")
            } else {
                format!("http://127.0.0.1:{port}")
            });
            let latency = Duration::from_millis(millis);
            servers.push(tokio::task::spawn_local(serve(listener, tls.cloned(), Rc::clone(&state), latency)));
        }
        let [dynamodb, sqs] = addresses.try_into().ok().context("two services")?;
        Ok(Self { state, dynamodb, sqs, servers })
    }

    /// The URL of `DynamoDB`.
    pub fn dynamodb_url(&self) -> &str {
        &self.dynamodb
    }

    /// The URL of SQS.
    pub fn sqs_url(&self) -> &str {
        &self.sqs
    }

    /// Gives access to the tables.
    pub fn tables<T>(&self, act: impl FnOnce(&mut Tables) -> T) -> T {
        act(&mut self.state.borrow_mut().tables)
    }

    /// The messages, usage and failures of the stub since the last call of this method.
    pub fn take(&self) -> (Vec<Message>, Usage, Vec<String>) {
        let mut state = self.state.borrow_mut();
        (std::mem::take(&mut state.queue), std::mem::take(&mut state.usage), std::mem::take(&mut state.failures))
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.servers.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

async fn serve(listener: TcpListener, tls: Option<Acceptor>, state: Rc<RefCell<State>>, latency: Duration) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let (tls, state) = (tls.clone(), Rc::clone(&state));
        tokio::task::spawn_local(async move {
            match tls {
                None => serve_connection(stream, state, latency).await,
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve_connection(stream, state, latency).await;
                    }
                }
            }
        });
    }
}

async fn serve_connection(stream: impl AsyncRead + AsyncWrite + Unpin, state: Rc<RefCell<State>>, latency: Duration) {
    let service = service_fn(move |request| {
        let state = Rc::clone(&state);
        async move { Ok::<_, Infallible>(respond(request, &state, latency).await) }
    });
    // A function that is stopped drops its connections.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn respond(request: Request<Incoming>, state: &RefCell<State>, latency: Duration) -> Response<Full<Bytes>> {
    let reply = match execute(request, state, latency).await {
        Ok(reply) => reply,
        Err(error) => {
            state.borrow_mut().failures.push(format!("{error:#}"));
            Reply::error(&serde_json::json!({ "__type": "StubFailure", "message": format!("{error:#}") }))
        }
    };
    let mut response = Response::new(Full::new(reply.body));
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    headers.insert("content-type", hyper::header::HeaderValue::from_static("application/x-amz-json-1.0"));
    if let Ok(id) = format!("{:032x}", fastrand::u128(..)).parse() {
        headers.insert("x-amzn-requestid", id);
    }
    response
}

async fn execute(request: Request<Incoming>, state: &RefCell<State>, latency: Duration) -> Result<Reply> {
    if request.method() == hyper::Method::GET {
        // A function that opens its connections in advance. AWS responds to this as well.
        return Ok(Reply::ok(&Value::from("healthy")));
    }
    let target = request.headers().get("x-amz-target").context("no X-Amz-Target")?.to_str()?.to_owned();
    let body = request.into_body().collect().await?.to_bytes();
    let arrived = Instant::now();
    let (service, operation) = target.split_once('.').context("X-Amz-Target without an operation")?;
    let mut usage = Usage { bytes_in: body.len(), ..Usage::default() };
    let reply = if service == "AmazonSQS" {
        let operation = operation.to_owned();
        let mut work = move || sqs::call(&operation, &body, &mut usage).map(|done| (done, usage));
        let large = usage.bytes_in > LARGE;
        let ((reply, messages), usage) = if large { tokio::task::spawn_blocking(work).await?? } else { work()? };
        let mut state = state.borrow_mut();
        state.queue.extend(messages);
        state.usage.add(&usage);
        reply
    } else {
        let mut state = state.borrow_mut();
        let reply = state.tables.call(operation, &body, &mut usage)?;
        state.usage.add(&usage);
        reply
    };
    sleep_until(arrived + latency).await?;
    Ok(reply)
}
