//! The pipeline as a pure function from the history of a request to its next calls.
//!
//! The state of a request follows from its parameters and from its observations: its start time, and
//! each reply to one of its calls with the time at which it arrived. There is no other input, because
//! time, randomness, the table, and the queue are ports, and the owner token is a parameter. [`Histories`]
//! therefore runs `Pipeline::ingest` by hand once for each distinct history, and stores the calls that
//! then wait for a reply in a tree. A node of the tree stands for the complete state of a request.
//! Futures cannot be cloned, but nodes can be stored, compared, and branched.

use crate::guarantees::bits;
use crate::memory::check_call;
use crate::scenario::{Attempt, AttemptId, Jitter};
use event_ingest::clock::{Clock, Timestamp};
use event_ingest::deadline::{Deadline, FUNCTION_TIMEOUT};
use event_ingest::delivery::{Queue, SendResult};
use event_ingest::error::Error;
use event_ingest::idempotency::{BatchId, Claimed, Delivered, Fenced, Owner, Record, RecordKey, StateStore, TakeOver};
use event_ingest::ingest::{Pipeline, Request, Success};
use event_ingest::packing::{Envelope, Fifo, Message};
use event_ingest::store::StoreError;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// A call to a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Get,
    Claim { record: Record, now: Timestamp },
    TakeOver { take_over: TakeOver, now: Timestamp },
    Complete { owner: Owner, delivered: Delivered, expires_at: u64 },
    Release { owner: Owner, delivered: Option<Delivered>, expires_at: u64 },
    Send { messages: Vec<SentMessage> },
    Sleep,
}

/// The parts of a message that the guarantees are about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SentMessage {
    pub batch: BatchId,
    pub events: Vec<usize>,
    /// The ids for an ordered queue.
    pub fifo: Option<Fifo>,
}

/// The number of a call, in the order in which its request made the calls.
pub type CallId = u8;

/// A call that waits for a reply. Its times are on the clock of the request's sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Call {
    pub id: CallId,
    pub op: Op,
    pub issued: Timestamp,
    /// When the call times out, or when the sleep ends.
    pub by: Timestamp,
}

/// A port's reply.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    Got(Option<Record>),
    Claimed(Claimed),
    Fenced(Fenced),
    Sent(Vec<SendResult>),
    Unavailable,
    Woke,
}

/// A request's response. A success reports these events as accepted, as a bitmap by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    Accepted(u32),
    Replayed(u32),
    KeyReused,
    InProgress,
    Unavailable,
    Internal,
}

/// A reply, and the time at which the request received it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Observation {
    pub call: CallId,
    pub reply: Reply,
    pub now: Timestamp,
}

/// The state of a request.
pub type NodeId = u32;

/// The state of a request after one history.
pub struct Node {
    attempt: AttemptId,
    started: Timestamp,
    parent: Option<(NodeId, Observation)>,
    /// The calls that wait for a reply.
    pub calls: Vec<Rc<Call>>,
    /// The response, once it is sent. The record may be written afterwards.
    pub response: Option<Response>,
    /// Whether the sandbox can take another request.
    pub ended: bool,
}

/// Every history explored so far.
pub struct Histories {
    attempts: Vec<Rc<Attempt>>,
    jitter: Jitter,
    nodes: Vec<Node>,
    roots: HashMap<(AttemptId, Timestamp), NodeId>,
    children: HashMap<(NodeId, Observation), NodeId>,
}

impl Histories {
    pub fn new(attempts: Vec<Rc<Attempt>>, jitter: Jitter) -> Self {
        Self { attempts, jitter, nodes: Vec::new(), roots: HashMap::new(), children: HashMap::new() }
    }

    pub fn attempt(&self, id: AttemptId) -> &Attempt {
        &self.attempts[usize::from(id)]
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    /// The number of histories for which the pipeline ran.
    pub fn runs(&self) -> usize {
        self.nodes.len()
    }

    /// Starts a request.
    pub fn begin(&mut self, attempt: AttemptId, now: Timestamp) -> NodeId {
        if let Some(&known) = self.roots.get(&(attempt, now)) {
            return known;
        }
        let node = self.run(attempt, now, None);
        self.roots.insert((attempt, now), node);
        node
    }

    /// Gives a request a reply.
    pub fn observe(&mut self, node: NodeId, observation: Observation) -> NodeId {
        let edge = (node, observation);
        if let Some(&known) = self.children.get(&edge) {
            return known;
        }
        let Node { attempt, started, .. } = *self.node(node);
        let child = self.run(attempt, started, Some(edge.clone()));
        self.children.insert(edge, child);
        child
    }

    /// Runs the pipeline from its start through one history.
    fn run(&mut self, attempt: AttemptId, started: Timestamp, parent: Option<(NodeId, Observation)>) -> NodeId {
        let mut history = Vec::new();
        let mut link = parent.as_ref();
        while let Some((node, observation)) = link {
            history.push((Some(*node), observation));
            link = self.node(*node).parent.as_ref();
        }
        let spec = &self.attempts[usize::from(attempt)];
        let mailbox = Rc::new(RefCell::new(Mailbox::new(started)));
        let port = Port { mailbox: Rc::clone(&mailbox), attempt: Rc::clone(spec), jitter: self.jitter };
        let response = Rc::new(Cell::new(None));
        let request = run(Rc::clone(spec), port, started, Rc::clone(&response));
        let mut future: Pin<Box<dyn Future<Output = ()>>> = Box::pin(request);
        let mut context = Context::from_waker(Waker::noop());
        let mut ended = future.as_mut().poll(&mut context).is_ready();
        for (before, observation) in history.into_iter().rev() {
            // A request that makes other calls than in an earlier run has an input that is missing here.
            if let Some(before) = before {
                assert!(
                    !ended && mailbox.borrow().waiting() == self.node(before).calls,
                    "the run of a history is not repeatable"
                );
            }
            mailbox.borrow_mut().deliver(observation);
            ended = future.as_mut().poll(&mut context).is_ready();
        }
        let calls = mailbox.borrow().waiting();
        assert!(
            if ended { response.get().is_some() } else { !calls.is_empty() },
            "a request has neither ended nor made a call"
        );
        self.nodes.push(Node { attempt, started, parent, calls, response: response.get(), ended });
        NodeId::try_from(self.nodes.len() - 1).expect("the histories fit into the id")
    }
}

/// Runs one request as `http` does: the response first, then the completion.
async fn run(attempt: Rc<Attempt>, port: Port, started: Timestamp, response: Rc<Cell<Option<Response>>>) {
    let pipeline = Pipeline {
        store: port.clone(),
        queue: port.clone(),
        clock: port,
        dedup_window: attempt.window,
        packing: attempt.packing,
    };
    let deadline = Deadline::new(started, started + FUNCTION_TIMEOUT);
    let request = Request {
        tenant: &attempt.tenant,
        record_key: &attempt.key,
        claimant: &attempt.claimant,
        batch: &attempt.batch,
        deadline: &deadline,
        trace: None,
    };
    let result = pipeline.ingest(&request).await.result;
    response.set(Some(match &result {
        Ok(Success::Accepted(pending)) => Response::Accepted(bits(&pending.delivered)),
        Ok(Success::Replayed(delivered)) => Response::Replayed(bits(delivered)),
        Ok(Success::NothingToQueue) => panic!("every body has a valid event"),
        Err(Error::KeyReused) => Response::KeyReused,
        Err(Error::InProgress { .. }) => Response::InProgress,
        Err(Error::Unavailable(_)) => Response::Unavailable,
        Err(_) => Response::Internal,
    }));
    if let Ok(Success::Accepted(pending)) = &result {
        pipeline.complete(pending).await;
    }
}

/// The calls of one request, and the replies to them.
struct Mailbox {
    now: Timestamp,
    next: CallId,
    waiting: BTreeMap<CallId, Rc<Call>>,
    replies: HashMap<CallId, Reply>,
    wakers: HashMap<CallId, Waker>,
}

impl Mailbox {
    fn new(now: Timestamp) -> Self {
        Self { now, next: 0, waiting: BTreeMap::new(), replies: HashMap::new(), wakers: HashMap::new() }
    }

    fn waiting(&self) -> Vec<Rc<Call>> {
        self.waiting.values().cloned().collect()
    }

    fn deliver(&mut self, observation: &Observation) {
        self.now = observation.now;
        self.waiting.remove(&observation.call).expect("the call waits");
        self.replies.insert(observation.call, observation.reply.clone());
        self.wakers.remove(&observation.call).expect("the call was polled").wake();
    }
}

/// The three ports of one request.
#[derive(Clone)]
struct Port {
    mailbox: Rc<RefCell<Mailbox>>,
    attempt: Rc<Attempt>,
    jitter: Jitter,
}

impl Port {
    /// Makes a call, and waits for the reply of the explorer.
    async fn call(&self, op: Op, by: Timestamp) -> Reply {
        let mut pending = PendingCall { mailbox: &self.mailbox, call: None };
        let mut op = Some(op);
        std::future::poll_fn(move |context| pending.poll(&mut op, by, context)).await
    }

    fn check_key(&self, key: &RecordKey) {
        assert!(*key == self.attempt.key, "a request uses its own key only");
    }

    /// Parses a message, and checks that it contains the client's events.
    fn parse(&self, message: &Message) -> SentMessage {
        let body: serde_json::Value = serde_json::from_str(&message.body).expect("a message is JSON");
        let text = body["batch_id"].as_str().expect("a batch id");
        let events = body["events"].as_array().expect("events").iter();
        let index = |event: &serde_json::Value| {
            let id = event["id"].as_str().expect("an event id");
            let index = id.strip_prefix(text).and_then(|rest| rest.strip_prefix('-'));
            let index = index.and_then(|index| index.parse().ok()).expect("batch id, hyphen, index");
            assert_eq!(event["event"], self.attempt.events[index], "the event is as the client sent it");
            index
        };
        let events: Vec<usize> = events.map(index).collect();
        for event in &events {
            let group = self.attempt.group(*event);
            assert_eq!(message.fifo.as_ref().map(|fifo| &fifo.group_id), group.as_ref(), "the group of event {event}");
        }
        SentMessage { batch: BatchId::parse(text).expect("a UUIDv7"), events, fifo: message.fifo.clone() }
    }
}

/// The future of a call. Dropping it ends the wait for the reply.
struct PendingCall<'a> {
    mailbox: &'a RefCell<Mailbox>,
    call: Option<CallId>,
}

impl PendingCall<'_> {
    fn poll(&mut self, op: &mut Option<Op>, by: Timestamp, context: &mut Context<'_>) -> Poll<Reply> {
        let mut mailbox = self.mailbox.borrow_mut();
        if let Some(op) = op.take() {
            let id = mailbox.next;
            mailbox.next += 1;
            let call = Rc::new(Call { id, op, issued: mailbox.now, by });
            mailbox.waiting.insert(id, call);
            self.call = Some(id);
        }
        let id = self.call.expect("set above");
        if let Some(reply) = mailbox.replies.remove(&id) {
            return Poll::Ready(reply);
        }
        mailbox.wakers.insert(id, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for PendingCall<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.call {
            self.mailbox.borrow_mut().waiting.remove(&id);
        }
    }
}

fn unavailable<T>() -> Result<T, StoreError> {
    Err(StoreError::Unavailable("injected by the explorer".to_owned()))
}

impl StateStore for Port {
    async fn get(&self, key: &RecordKey, by: Timestamp) -> Result<Option<Record>, StoreError> {
        self.check_key(key);
        match self.call(Op::Get, by).await {
            Reply::Got(record) => Ok(record),
            _ => unavailable(),
        }
    }

    async fn claim(
        &self,
        key: &RecordKey,
        record: &Record,
        now: Timestamp,
        by: Timestamp,
    ) -> Result<Claimed, StoreError> {
        self.check_key(key);
        match self.call(Op::Claim { record: record.clone(), now }, by).await {
            Reply::Claimed(claimed) => Ok(claimed),
            _ => unavailable(),
        }
    }

    async fn take_over(
        &self,
        key: &RecordKey,
        take_over: &TakeOver,
        now: Timestamp,
        by: Timestamp,
    ) -> Result<Claimed, StoreError> {
        self.check_key(key);
        match self.call(Op::TakeOver { take_over: take_over.clone(), now }, by).await {
            Reply::Claimed(claimed) => Ok(claimed),
            _ => unavailable(),
        }
    }

    async fn complete(
        &self,
        key: &RecordKey,
        owner: &Owner,
        delivered: &Delivered,
        expires_at: u64,
        by: Timestamp,
    ) -> Result<Fenced, StoreError> {
        self.check_key(key);
        let (owner, delivered) = (owner.clone(), delivered.clone());
        match self.call(Op::Complete { owner, delivered, expires_at }, by).await {
            Reply::Fenced(fenced) => Ok(fenced),
            _ => unavailable(),
        }
    }

    async fn release(
        &self,
        key: &RecordKey,
        owner: &Owner,
        delivered: Option<&Delivered>,
        expires_at: u64,
        by: Timestamp,
    ) -> Result<Fenced, StoreError> {
        self.check_key(key);
        match self.call(Op::Release { owner: owner.clone(), delivered: delivered.cloned(), expires_at }, by).await {
            Reply::Fenced(fenced) => Ok(fenced),
            _ => unavailable(),
        }
    }
}

impl Queue for Port {
    async fn send(&self, envelope: &Envelope, messages: Vec<Message>, by: Timestamp) -> Vec<SendResult> {
        assert_eq!(check_call(envelope, &messages), Ok(()), "the pipeline respects the limits of SQS");
        let messages: Vec<SentMessage> = messages.iter().map(|message| self.parse(message)).collect();
        let count = messages.len();
        match self.call(Op::Send { messages }, by).await {
            Reply::Sent(results) => results,
            _ => vec![SendResult::Unknown; count],
        }
    }
}

impl Clock for Port {
    fn now(&self) -> Timestamp {
        self.mailbox.borrow().now
    }

    async fn sleep(&self, duration: Duration) {
        let until = self.now() + duration;
        self.call(Op::Sleep, until).await;
    }

    fn jitter(&self, ceiling: Duration) -> Duration {
        match self.jitter {
            Jitter::None => Duration::ZERO,
            Jitter::Ceiling => ceiling,
        }
    }
}
