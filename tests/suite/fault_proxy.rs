//! The wire between sandboxes and the local AWS: passes calls on, breaks them as planned, and
//! keeps a ledger of what really took effect and what the function got to know of it.
//!
//! A call that is on the wire goes on whatever becomes of its caller, as it does on a network. Only
//! one that had to queue for the local AWS is dropped with its caller: otherwise the function's
//! retries would drown a slow machine.

use crate::runtime_api::epoch_millis;
use crate::sandbox::{Life, Sandbox, Settings};
use crate::test_app::Resources;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::body::Bytes;
use hyper::{Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use test_support::http_server::{Cut, HttpServer, fetch};
use tokio::sync::{Semaphore, watch};

/// What a call is for, told by its target and its expressions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    KeyLookup,
    Claim,
    Read,
    TakeOver,
    Complete,
    Release,
    RateLimit,
    Send,
}

/// What to do to a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    None,
    /// Answer with AWS's error of that status and code; no effect.
    Error(u16, &'static str),
    /// Let it arrive late: it takes effect then, even if nobody waits any more.
    SlowRequest(Duration),
    /// Let it take effect at once and the reply arrive late.
    SlowReply(Duration),
    /// No effect, no answer, for as long as the caller waits.
    Hang,
    CutBefore,
    CutAfter,
    /// Of a [`Op::Send`]: the entries at these positions are not taken.
    Partial(Vec<usize>),
    KillBefore,
    /// The caller dies while the call is under way, which lands that much later.
    KillDuring(Duration),
    KillAfter,
}

impl Fault {
    /// For statistics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Error(..) => "error answer",
            Self::SlowRequest(_) => "late arrival",
            Self::SlowReply(_) => "late reply",
            Self::Hang => "hang",
            Self::CutBefore => "cut before effect",
            Self::CutAfter => "cut after effect",
            Self::Partial(_) => "partial failure",
            Self::KillBefore => "kill before effect",
            Self::KillDuring(_) => "kill, then effect",
            Self::KillAfter => "kill after effect",
        }
    }

    pub fn is_kill(&self) -> bool {
        matches!(self, Self::KillBefore | Self::KillDuring(_) | Self::KillAfter)
    }
}

/// One message of a send: which events it carries.
#[derive(Clone, Debug)]
pub struct Entry {
    pub events: Vec<u16>,
}

/// What a call carries that somebody needs to know.
#[derive(Clone, Debug)]
pub enum Payload {
    None,
    /// Of a send.
    Entries(Vec<Entry>),
    /// Of a claim or a take-over: until when, in epoch milliseconds.
    Lease(u64),
    /// Of a release: the bitmap, if it writes one.
    Delivered(Option<Vec<u8>>),
}

/// A call and what became of it.
#[derive(Clone, Debug)]
pub struct Call {
    pub op: Op,
    /// The invocation that made it.
    pub invocation: u64,
    /// What that is about, as the test called it.
    pub label: Arc<str>,
    /// Counts the calls of this `op` under this `label`, from 1.
    pub nth: usize,
    pub payload: Payload,
    pub fault: Fault,
    pub arrived: Instant,
    /// When it took effect; after [`Fault::Partial`], of the entries that were taken.
    pub effect: Option<Instant>,
    /// By entry of a send: whether it is in the queue.
    pub taken: Vec<bool>,
    /// When a reply was handed to a caller that was still waiting for one.
    pub replied: Option<Instant>,
    /// Whether that reply was an error.
    pub refused: bool,
    /// What kept the local AWS from answering, which no fault of ours does.
    pub broken: Option<String>,
}

impl Call {
    /// Whether this is the `nth` call of its kind.
    pub fn is(&self, op: Op, nth: usize) -> bool {
        (self.op, self.nth) == (op, nth)
    }

    pub fn entries(&self) -> &[Entry] {
        match &self.payload {
            Payload::Entries(entries) => entries,
            _ => &[],
        }
    }

    /// Positions of the entries that carry event `index`.
    pub fn entries_with(&self, index: u16) -> Vec<usize> {
        let entries = self.entries().iter().enumerate();
        entries.filter(|(_, entry)| entry.events.contains(&index)).map(|(position, _)| position).collect()
    }
}

/// How many calls the local AWS, one Python thread, is given at a time.
const LINES: usize = 16;

type Plan = Box<dyn Fn(&Call) -> Fault + Send + Sync>;

/// The wire.
pub struct Wire {
    upstream: String,
    plan: Plan,
    ledger: Mutex<Ledger>,
    lines: Semaphore,
    under_way: watch::Sender<usize>,
    arrivals: watch::Sender<usize>,
}

#[derive(Default)]
struct Ledger {
    calls: Vec<Call>,
    counts: HashMap<(Arc<str>, Op), usize>,
}

/// A sandbox and the piece of wire that is its own.
pub struct WiredSandbox {
    pub sandbox: Sandbox,
    _server: HttpServer,
}

impl std::ops::Deref for WiredSandbox {
    type Target = Sandbox;

    fn deref(&self) -> &Sandbox {
        &self.sandbox
    }
}

impl Wire {
    /// A wire to the AWS at `endpoint` that breaks each call as `plan` says.
    pub fn new(endpoint: &str, plan: impl Fn(&Call) -> Fault + Send + Sync + 'static) -> Arc<Self> {
        let upstream = endpoint.strip_prefix("http://").expect("plain HTTP").to_owned();
        let (under_way, arrivals) = (watch::Sender::new(0), watch::Sender::new(0));
        let lines = Semaphore::new(LINES);
        Arc::new(Self { upstream, plan: Box::new(plan), ledger: Mutex::default(), lines, under_way, arrivals })
    }

    /// Starts a sandbox behind this wire; `adapt` changes its settings.
    pub async fn sandbox(self: &Arc<Self>, aws: &Resources, adapt: impl FnOnce(Settings) -> Settings) -> WiredSandbox {
        let life = Life::new();
        let (wire, caller) = (self.clone(), life.clone());
        let server = HttpServer::start(move |request| wire.clone().handle(caller.clone(), request)).await;
        let settings = adapt(Settings::new(aws, &format!("http://{}", server.address())));
        WiredSandbox { sandbox: Sandbox::start_as(settings, life).await, _server: server }
    }

    /// Every call so far, in order of arrival.
    pub fn calls(&self) -> Vec<Call> {
        self.ledger.lock().expect("no panic").calls.clone()
    }

    /// The calls of one kind.
    pub fn calls_of(&self, op: Op) -> Vec<Call> {
        self.calls().into_iter().filter(|call| call.op == op).collect()
    }

    /// Waits for the `nth` call of its kind to arrive.
    pub async fn saw(&self, op: Op, nth: usize) {
        let mut arrivals = self.arrivals.subscribe();
        let arrived = |_: &usize| self.calls().iter().any(|call| call.is(op, nth));
        arrivals.wait_for(arrived).await.expect("the sender lives in self");
    }

    /// Waits until nothing is under way any more.
    pub async fn settled(&self) {
        let mut under_way = self.under_way.subscribe();
        under_way.wait_for(|count| *count == 0).await.expect("the sender lives in self");
    }

    async fn handle(self: Arc<Self>, caller: Arc<Life>, request: Request<Bytes>) -> Result<Response<Bytes>, Cut> {
        let (index, op, fault) = self.enter(&caller, &request);
        // Dropped with this future, when the caller hangs up.
        let waiting = Arc::new(());
        let caller_waits = Arc::downgrade(&waiting);
        let forward = |request, wait| self.clone().forward(index, request, wait, caller_waits.clone());
        let reply = match fault {
            Fault::None => forward(request, Duration::ZERO).await,
            Fault::Error(status, code) => Ok(aws_error(op, status, code)),
            Fault::SlowRequest(wait) => forward(request, wait).await,
            Fault::SlowReply(wait) => {
                let reply = forward(request, Duration::ZERO).await;
                tokio::time::sleep(wait).await;
                reply
            }
            Fault::Hang => std::future::pending().await,
            Fault::CutBefore => Err(Cut),
            Fault::CutAfter => forward(request, Duration::ZERO).await.and(Err(Cut)),
            Fault::Partial(refused) => self.clone().forward_partly(index, request, &refused, caller_waits).await,
            Fault::KillBefore => {
                caller.kill().await;
                Err(Cut)
            }
            Fault::KillDuring(wait) => {
                // The forwarding is a task of its own and outlives the caller and this future.
                let landing = forward(request, wait);
                caller.kill().await;
                landing.await.and(Err(Cut))
            }
            Fault::KillAfter => {
                let _ = forward(request, Duration::ZERO).await;
                caller.kill().await;
                Err(Cut)
            }
        };
        if let Ok(reply) = &reply
            && !caller.is_dead()
        {
            self.update(index, |call| {
                call.replied = Some(Instant::now());
                call.refused = reply.status() != StatusCode::OK;
            });
        }
        reply
    }

    /// Writes a call in the ledger and decides its fault.
    fn enter(&self, caller: &Life, request: &Request<Bytes>) -> (usize, Op, Fault) {
        let body: Value = serde_json::from_slice(request.body()).expect("AWS JSON");
        let target = request.headers().get("x-amz-target").expect("a target").to_str().expect("ASCII");
        let op = operation(target, &body);
        let current = caller.current();
        let mut ledger = self.ledger.lock().expect("no panic");
        let nth = ledger.counts.entry((current.label.clone(), op)).or_default();
        *nth += 1;
        let mut call = Call {
            op,
            invocation: current.invocation,
            label: current.label,
            nth: *nth,
            payload: payload(op, &body),
            fault: Fault::None,
            arrived: Instant::now(),
            effect: None,
            taken: Vec::new(),
            replied: None,
            refused: false,
            broken: None,
        };
        call.taken = vec![false; call.entries().len()];
        call.fault = (self.plan)(&call);
        let fault = call.fault.clone();
        ledger.calls.push(call);
        let index = ledger.calls.len() - 1;
        drop(ledger);
        self.arrivals.send_modify(|count| *count += 1);
        (index, op, fault)
    }

    /// Passes a request on after `wait`; runs to its end whether or not the result is awaited.
    fn forward(
        self: Arc<Self>,
        index: usize,
        request: Request<Bytes>,
        wait: Duration,
        caller_waits: Weak<()>,
    ) -> impl Future<Output = Result<Response<Bytes>, Cut>> {
        self.under_way.send_modify(|count| *count += 1);
        let task = tokio::spawn(async move {
            let reply = self.land(index, request, wait, caller_waits).await;
            self.under_way.send_modify(|count| *count -= 1);
            reply
        });
        async move { task.await.map_err(|_| Cut)? }
    }

    async fn land(
        &self,
        index: usize,
        request: Request<Bytes>,
        wait: Duration,
        caller_waits: Weak<()>,
    ) -> Result<Response<Bytes>, Cut> {
        tokio::time::sleep(wait).await;
        let _line = self.lines.acquire().await.expect("never closed");
        // One that is to land late does so without its caller.
        if wait.is_zero() && caller_waits.strong_count() == 0 {
            return Err(Cut);
        }
        let (mut head, body) = request.into_parts();
        head.headers.insert("host", self.upstream.parse().expect("an address"));
        match fetch(&self.upstream, Request::from_parts(head, body)).await {
            Ok(reply) => {
                if reply.status() == StatusCode::OK {
                    let reply: Value = serde_json::from_slice(reply.body()).expect("AWS JSON");
                    self.update(index, |call| {
                        call.effect = Some(Instant::now());
                        if call.op == Op::Send {
                            mark_taken(call, &reply);
                        }
                    });
                }
                Ok(reply)
            }
            Err(error) => {
                self.update(index, |call| call.broken = Some(error.to_string()));
                Err(Cut)
            }
        }
    }

    /// Keeps some entries of a send from the queue and reports them failed, as SQS does.
    async fn forward_partly(
        self: Arc<Self>,
        index: usize,
        request: Request<Bytes>,
        refused: &[usize],
        caller_waits: Weak<()>,
    ) -> Result<Response<Bytes>, Cut> {
        let (mut head, body) = request.into_parts();
        let mut body: Value = serde_json::from_slice(&body).expect("AWS JSON");
        let entries = body["Entries"].as_array_mut().expect("a send").drain(..).enumerate();
        let (kept_back, kept): (Vec<_>, Vec<_>) = entries.partition(|(position, _)| refused.contains(position));
        let failed: Vec<Value> = kept_back
            .into_iter()
            .map(|(_, entry)| {
                json!({ "Id": entry["Id"], "SenderFault": false, "Code": "InternalError", "Message": "try again" })
            })
            .collect();
        if kept.is_empty() {
            return Ok(aws_json(StatusCode::OK, &json!({ "Successful": [], "Failed": failed })));
        }
        body["Entries"] = kept.into_iter().map(|(_, entry)| entry).collect();
        head.headers.remove("content-length");
        let request = Request::from_parts(head, Bytes::from(body.to_string()));
        let reply = self.forward(index, request, Duration::ZERO, caller_waits).await?;
        let mut reply: Value = serde_json::from_slice(reply.body()).expect("AWS JSON");
        match reply["Failed"].as_array_mut() {
            Some(others) => others.extend(failed),
            None => reply["Failed"] = failed.into(),
        }
        Ok(aws_json(StatusCode::OK, &reply))
    }

    fn update(&self, index: usize, change: impl FnOnce(&mut Call)) {
        change(&mut self.ledger.lock().expect("no panic").calls[index]);
    }
}

/// Notes which entries a send's reply calls successful. Entry ids are positions.
fn mark_taken(call: &mut Call, reply: &Value) {
    for entry in reply["Successful"].as_array().into_iter().flatten() {
        let position: usize = entry["Id"].as_str().and_then(|id| id.parse().ok()).expect("a position");
        call.taken[position] = true;
    }
}

fn operation(target: &str, body: &Value) -> Op {
    let update = body["UpdateExpression"].as_str().unwrap_or_default();
    let key = body["Key"]["pk"]["S"].as_str().unwrap_or_default();
    match target.split_once('.').map(|(_, operation)| operation) {
        Some("GetItem") if body["Key"]["key_hash"].is_object() => Op::KeyLookup,
        Some("GetItem") => Op::Read,
        Some("PutItem") => Op::Claim,
        Some("SendMessageBatch") => Op::Send,
        Some("UpdateItem") if key.starts_with("rate#") => Op::RateLimit,
        Some("UpdateItem") if update.contains("attempt") => Op::TakeOver,
        Some("UpdateItem") if update.contains("lease_until") => Op::Release,
        Some("UpdateItem") if update.contains("#state") => Op::Complete,
        _ => panic!("a call that the fault layer does not know: {target} {update:?}"),
    }
}

fn payload(op: Op, body: &Value) -> Payload {
    #[derive(Deserialize)]
    struct Message {
        events: Vec<Event>,
    }
    #[derive(Deserialize)]
    struct Event {
        id: String,
    }
    let values = &body["ExpressionAttributeValues"];
    let number = |value: &Value| value["N"].as_str().and_then(|text| text.parse().ok()).expect("a lease");
    match op {
        Op::Claim => Payload::Lease(number(&body["Item"]["lease_until"])),
        Op::TakeOver => Payload::Lease(number(&values[":lease"])),
        Op::Release => {
            let bitmap = values[":delivered"]["B"].as_str();
            Payload::Delivered(bitmap.map(|text| BASE64_STANDARD.decode(text).expect("base64")))
        }
        Op::Send => {
            let entries = body["Entries"].as_array().expect("entries").iter().map(|entry| {
                let body = entry["MessageBody"].as_str().expect("a body");
                let message: Message = serde_json::from_str(body).expect("the message of contract section 4");
                let index = |event: Event| event.id.rsplit_once('-').and_then(|(_, index)| index.parse().ok());
                let events = message.events.into_iter().map(index);
                Entry { events: events.collect::<Option<_>>().expect("event ids") }
            });
            Payload::Entries(entries.collect())
        }
        Op::KeyLookup | Op::Read | Op::Complete | Op::RateLimit => Payload::None,
    }
}

/// An error as the AWS JSON protocols carry it.
fn aws_error(op: Op, status: u16, code: &str) -> Response<Bytes> {
    let namespace = if op == Op::Send { "com.amazonaws.sqs" } else { "com.amazonaws.dynamodb.v20120810" };
    let status = StatusCode::from_u16(status).expect("a status");
    aws_json(status, &json!({ "__type": format!("{namespace}#{code}"), "message": "injected" }))
}

fn aws_json(status: StatusCode, body: &Value) -> Response<Bytes> {
    Response::builder()
        .status(status)
        .header("content-type", "application/x-amz-json-1.0")
        .header("x-amzn-requestid", epoch_millis())
        .body(Bytes::from(body.to_string()))
        .expect("a response")
}
