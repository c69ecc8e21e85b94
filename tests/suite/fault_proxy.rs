//! A proxy between sandboxes and the local AWS. It forwards calls, injects faults, and records which calls
//! took effect and which responses reached the function.
//!
//! A call in flight continues after its caller is gone, as on a network. A call that still waits for a slot
//! of the local AWS is dropped with its caller, because the retries would otherwise overload a slow machine.

mod call;

pub use call::{Call, Fault, Op, Payload};

use crate::runtime_api::epoch_millis;
use crate::sandbox::{Sandbox, SandboxProcess, Settings};
use crate::test_app::Resources;
use call::{mark_accepted, operation, payload};
use hyper::body::Bytes;
use hyper::{Request, Response, StatusCode};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use test_support::http_server::{Cut, HttpServer, fetch};
use tokio::sync::{Semaphore, watch};

/// The most concurrent calls to the local AWS, which runs in one Python thread.
const MAX_CONCURRENT_CALLS: usize = 16;

type Plan = Box<dyn Fn(&Call) -> Fault + Send + Sync>;

/// The proxy. It injects faults and records every call.
pub struct FaultProxy {
    upstream: String,
    plan: Plan,
    record: Mutex<CallRecord>,
    slots: Semaphore,
    in_flight: watch::Sender<usize>,
    arrivals: watch::Sender<usize>,
}

#[derive(Default)]
struct CallRecord {
    calls: Vec<Call>,
    counts: HashMap<(Arc<str>, Op), usize>,
}

/// A sandbox with its own server of the proxy.
pub struct ProxiedSandbox {
    pub sandbox: Sandbox,
    _server: HttpServer,
}

impl std::ops::Deref for ProxiedSandbox {
    type Target = Sandbox;

    fn deref(&self) -> &Sandbox {
        &self.sandbox
    }
}

impl FaultProxy {
    /// Creates a proxy to the AWS at `endpoint`. `plan` chooses the fault of each call.
    pub fn new(endpoint: &str, plan: impl Fn(&Call) -> Fault + Send + Sync + 'static) -> Arc<Self> {
        let upstream = endpoint.strip_prefix("http://").expect("plain HTTP").to_owned();
        let (in_flight, arrivals) = (watch::Sender::new(0), watch::Sender::new(0));
        let slots = Semaphore::new(MAX_CONCURRENT_CALLS);
        Arc::new(Self { upstream, plan: Box::new(plan), record: Mutex::default(), slots, in_flight, arrivals })
    }

    /// Starts a sandbox whose calls go through the proxy. `adapt` changes its settings.
    pub async fn sandbox(
        self: &Arc<Self>,
        aws: &Resources,
        adapt: impl FnOnce(Settings) -> Settings,
    ) -> ProxiedSandbox {
        let process = SandboxProcess::new();
        let (proxy, caller) = (self.clone(), process.clone());
        let server = HttpServer::start(move |request| proxy.clone().handle(caller.clone(), request)).await;
        let settings = adapt(Settings::new(aws, &format!("http://{}", server.address())));
        ProxiedSandbox { sandbox: Sandbox::start_as(settings, process).await, _server: server }
    }

    /// All calls so far, in order of arrival.
    pub fn calls(&self) -> Vec<Call> {
        self.record.lock().expect("no panic").calls.clone()
    }

    /// The calls with the given purpose.
    pub fn calls_of(&self, op: Op) -> Vec<Call> {
        self.calls().into_iter().filter(|call| call.op == op).collect()
    }

    /// Waits for the arrival of the `nth` call with the given purpose.
    pub async fn arrival(&self, op: Op, nth: usize) {
        let mut arrivals = self.arrivals.subscribe();
        let arrived = |_: &usize| self.calls().iter().any(|call| call.is(op, nth));
        arrivals.wait_for(arrived).await.expect("the sender lives in self");
    }

    /// Waits until no call is in flight.
    pub async fn idle(&self) {
        let mut in_flight = self.in_flight.subscribe();
        in_flight.wait_for(|count| *count == 0).await.expect("the sender lives in self");
    }

    async fn handle(
        self: Arc<Self>,
        caller: Arc<SandboxProcess>,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, Cut> {
        let (index, op, fault) = self.enter(&caller, &request);
        // Dropped with this future when the caller closes the connection.
        let waiting = Arc::new(());
        let caller_waits = Arc::downgrade(&waiting);
        let forward = |request, wait| self.clone().forward(index, request, wait, caller_waits.clone());
        let response = match fault {
            Fault::None => forward(request, Duration::ZERO).await,
            Fault::Error(status, code) => Ok(aws_error(op, status, code)),
            Fault::SlowRequest(wait) => forward(request, wait).await,
            Fault::SlowResponse(wait) => {
                let response = forward(request, Duration::ZERO).await;
                tokio::time::sleep(wait).await;
                response
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
                // The call is forwarded by a separate task, which outlives the caller and this future.
                let forwarded = forward(request, wait);
                caller.kill().await;
                forwarded.await.and(Err(Cut))
            }
            Fault::KillAfter => {
                let _ = forward(request, Duration::ZERO).await;
                caller.kill().await;
                Err(Cut)
            }
        };
        if let Ok(response) = &response
            && !caller.is_dead()
        {
            self.update(index, |call| {
                call.responded = Some(Instant::now());
                call.refused = response.status() != StatusCode::OK;
            });
        }
        response
    }

    /// Records a call and chooses its fault.
    fn enter(&self, caller: &SandboxProcess, request: &Request<Bytes>) -> (usize, Op, Fault) {
        let body: Value = serde_json::from_slice(request.body()).expect("AWS JSON");
        let target = request.headers().get("x-amz-target").expect("a target").to_str().expect("ASCII");
        let op = operation(target, &body);
        let current = caller.current();
        let mut record = self.record.lock().expect("no panic");
        let nth = record.counts.entry((current.label.clone(), op)).or_default();
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
            accepted: Vec::new(),
            responded: None,
            refused: false,
            aws_failure: None,
        };
        call.accepted = vec![false; call.entries().len()];
        call.fault = (self.plan)(&call);
        let fault = call.fault.clone();
        record.calls.push(call);
        let index = record.calls.len() - 1;
        drop(record);
        self.arrivals.send_modify(|count| *count += 1);
        (index, op, fault)
    }

    /// Forwards a request after `wait`. The call completes even if the returned future is dropped.
    fn forward(
        self: Arc<Self>,
        index: usize,
        request: Request<Bytes>,
        wait: Duration,
        caller_waits: Weak<()>,
    ) -> impl Future<Output = Result<Response<Bytes>, Cut>> {
        self.in_flight.send_modify(|count| *count += 1);
        let task = tokio::spawn(async move {
            let response = self.send_upstream(index, request, wait, caller_waits).await;
            self.in_flight.send_modify(|count| *count -= 1);
            response
        });
        async move { task.await.map_err(|_| Cut)? }
    }

    async fn send_upstream(
        &self,
        index: usize,
        request: Request<Bytes>,
        wait: Duration,
        caller_waits: Weak<()>,
    ) -> Result<Response<Bytes>, Cut> {
        tokio::time::sleep(wait).await;
        let _slot = self.slots.acquire().await.expect("never closed");
        // A call with a delayed arrival takes effect without its caller.
        if wait.is_zero() && caller_waits.strong_count() == 0 {
            return Err(Cut);
        }
        let (mut head, body) = request.into_parts();
        head.headers.insert("host", self.upstream.parse().expect("an address"));
        match fetch(&self.upstream, Request::from_parts(head, body)).await {
            Ok(response) => {
                if response.status() == StatusCode::OK {
                    let response: Value = serde_json::from_slice(response.body()).expect("AWS JSON");
                    self.update(index, |call| {
                        call.effect = Some(Instant::now());
                        if call.op == Op::Send {
                            mark_accepted(call, &response);
                        }
                    });
                }
                Ok(response)
            }
            Err(error) => {
                self.update(index, |call| call.aws_failure = Some(error.to_string()));
                Err(Cut)
            }
        }
    }

    /// Withholds some entries of a send from the queue, and reports them as failed like SQS.
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
        let (withheld, forwarded): (Vec<_>, Vec<_>) = entries.partition(|(position, _)| refused.contains(position));
        let failed: Vec<Value> = withheld
            .into_iter()
            .map(|(_, entry)| {
                json!({ "Id": entry["Id"], "SenderFault": false, "Code": "InternalError", "Message": "try again" })
            })
            .collect();
        if forwarded.is_empty() {
            return Ok(aws_json(StatusCode::OK, &json!({ "Successful": [], "Failed": failed })));
        }
        body["Entries"] = forwarded.into_iter().map(|(_, entry)| entry).collect();
        head.headers.remove("content-length");
        let request = Request::from_parts(head, Bytes::from(body.to_string()));
        let response = self.forward(index, request, Duration::ZERO, caller_waits).await?;
        let mut response: Value = serde_json::from_slice(response.body()).expect("AWS JSON");
        match response["Failed"].as_array_mut() {
            Some(others) => others.extend(failed),
            None => response["Failed"] = failed.into(),
        }
        Ok(aws_json(StatusCode::OK, &response))
    }

    fn update(&self, index: usize, change: impl FnOnce(&mut Call)) {
        change(&mut self.record.lock().expect("no panic").calls[index]);
    }
}

/// An error response in the AWS JSON protocols.
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
