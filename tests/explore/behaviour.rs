//! The real pipeline as a function from what a request observed to what it asks for next.
//!
//! A request's local state follows from its parameters and from what it saw: when it began, and
//! each answer together with the time at which it got it. Nothing else reaches it: time, chance,
//! table and queue are ports, and its nonce is given. So [`Lab`] runs `Pipeline::ingest` by hand,
//! once for each distinct history, and keeps the calls it then waits for in a tree. A node of that
//! tree *is* the request's local state, hidden parts included, and the explorer can keep, compare
//! and branch it although futures cannot be cloned.

use crate::memory::check_call;
use crate::scenario::{Attempt, AttemptId, Jitter};
use event_ingest::clock::{Clock, Timestamp};
use event_ingest::deadline::{Deadline, FUNCTION_TIMEOUT};
use event_ingest::delivery::{Envelope, Message, Queue, SendResult};
use event_ingest::error::Error;
use event_ingest::idempotency::{BatchId, Claimed, Delivered, Fenced, Owner, Record, RecordKey, StateStore, TakeOver};
use event_ingest::ingest::{Pipeline, Request, Success};
use event_ingest::store::StoreError;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::num::NonZeroU16;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// What a request asks of a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Get,
    Claim { record: Record, now: Timestamp },
    TakeOver { take_over: TakeOver, now: Timestamp },
    Complete { owner: Owner, expires_at: u64 },
    Release { owner: Owner, delivered: Option<Delivered>, expires_at: u64 },
    Send { parcels: Vec<Parcel> },
    Sleep,
}

/// A message as far as the guarantees are concerned.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Parcel {
    pub batch: BatchId,
    pub events: Vec<usize>,
}

/// Numbers a request's calls in the order it made them.
pub type CallId = u8;

/// A call that waits for its answer. Its times are by the request's own clock.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Call {
    pub id: CallId,
    pub op: Op,
    pub issued: Timestamp,
    /// When the adapter gives it up; when a sleeper wakes.
    pub by: Timestamp,
}

/// A port's answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    Got(Option<Record>),
    Claimed(Claimed),
    Fenced(Fenced),
    Sent(Vec<SendResult>),
    Unavailable,
    Woke,
}

/// A request's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Accepted,
    Replayed,
    KeyReused,
    InProgress,
    Unavailable,
    Internal,
}

/// One thing that a request observes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Seen {
    pub call: CallId,
    pub reply: Reply,
    pub now: Timestamp,
}

/// A request's local state.
pub type NodeId = u32;

/// What a request waits for after one history, and what it has answered.
pub struct Node {
    attempt: AttemptId,
    begun: Timestamp,
    parent: Option<(NodeId, Seen)>,
    pub calls: Vec<Rc<Call>>,
    /// From when its client has it; the request may have a write left to do after that.
    pub answer: Option<Answer>,
    /// Its sandbox is free for another.
    pub ended: bool,
}

/// Every history seen so far.
pub struct Lab {
    attempts: Vec<Rc<Attempt>>,
    jitter: Jitter,
    nodes: Vec<Node>,
    roots: HashMap<(AttemptId, Timestamp), NodeId>,
    children: HashMap<(NodeId, Seen), NodeId>,
}

impl Lab {
    pub fn new(attempts: Vec<Rc<Attempt>>, jitter: Jitter) -> Self {
        Self { attempts, jitter, nodes: Vec::new(), roots: HashMap::new(), children: HashMap::new() }
    }

    pub fn attempt(&self, id: AttemptId) -> &Attempt {
        &self.attempts[usize::from(id)]
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    /// How many histories the pipeline was run for.
    pub fn runs(&self) -> usize {
        self.nodes.len()
    }

    /// A request begins.
    pub fn begin(&mut self, attempt: AttemptId, now: Timestamp) -> NodeId {
        if let Some(&known) = self.roots.get(&(attempt, now)) {
            return known;
        }
        let node = self.run(attempt, now, None);
        self.roots.insert((attempt, now), node);
        node
    }

    /// A request observes an answer.
    pub fn observe(&mut self, node: NodeId, seen: Seen) -> NodeId {
        let edge = (node, seen);
        if let Some(&known) = self.children.get(&edge) {
            return known;
        }
        let Node { attempt, begun, .. } = *self.node(node);
        let child = self.run(attempt, begun, Some(edge.clone()));
        self.children.insert(edge, child);
        child
    }

    /// Runs the pipeline from its beginning through one history.
    fn run(&mut self, attempt: AttemptId, begun: Timestamp, parent: Option<(NodeId, Seen)>) -> NodeId {
        let mut history = Vec::new();
        let mut link = parent.as_ref();
        while let Some((node, seen)) = link {
            history.push((Some(*node), seen));
            link = self.node(*node).parent.as_ref();
        }
        let spec = &self.attempts[usize::from(attempt)];
        let mailbox = Rc::new(RefCell::new(Mailbox::new(begun)));
        let port = Port { mailbox: Rc::clone(&mailbox), attempt: Rc::clone(spec), jitter: self.jitter };
        let answer = Rc::new(Cell::new(None));
        let request = run(Rc::clone(spec), port, begun, Rc::clone(&answer));
        let mut future: Pin<Box<dyn Future<Output = ()>>> = Box::pin(request);
        let mut context = Context::from_waker(Waker::noop());
        let mut ended = future.as_mut().poll(&mut context).is_ready();
        for (before, seen) in history.into_iter().rev() {
            // A request that did something else than last time would have hidden inputs.
            if let Some(before) = before {
                assert!(!ended && mailbox.borrow().waiting() == self.node(before).calls, "not repeatable");
            }
            mailbox.borrow_mut().answer(seen);
            ended = future.as_mut().poll(&mut context).is_ready();
        }
        let calls = mailbox.borrow().waiting();
        assert!(if ended { answer.get().is_some() } else { !calls.is_empty() }, "a request waits for nothing");
        self.nodes.push(Node { attempt, begun, parent, calls, answer: answer.get(), ended });
        NodeId::try_from(self.nodes.len() - 1).expect("fewer histories than that")
    }
}

/// Runs one request as `http` would: answers it, and then records what was accepted.
async fn run(attempt: Rc<Attempt>, port: Port, begun: Timestamp, answer: Rc<Cell<Option<Answer>>>) {
    let pipeline = Pipeline {
        store: port.clone(),
        queue: port.clone(),
        clock: port,
        dedup_window: attempt.window,
        max_events_per_message: NonZeroU16::new(attempt.max_events_per_message).expect("not zero"),
    };
    let deadline = Deadline::new(begun, begun + FUNCTION_TIMEOUT);
    let request = Request {
        tenant: &attempt.tenant,
        record_key: &attempt.key,
        claimant: &attempt.claimant,
        batch: &attempt.batch,
        deadline: &deadline,
        trace: None,
    };
    let result = pipeline.ingest(&request).await.result;
    answer.set(Some(match &result {
        Ok(Success::Accepted(_)) => Answer::Accepted,
        Ok(Success::Replayed) => Answer::Replayed,
        Err(Error::KeyReused) => Answer::KeyReused,
        Err(Error::InProgress { .. }) => Answer::InProgress,
        Err(Error::Unavailable(_)) => Answer::Unavailable,
        Err(_) => Answer::Internal,
    }));
    if let Ok(Success::Accepted(pending)) = &result {
        pipeline.complete(pending).await;
    }
}

/// Where a request's calls wait for their answers.
struct Mailbox {
    now: Timestamp,
    next: CallId,
    waiting: BTreeMap<CallId, Rc<Call>>,
    answered: HashMap<CallId, Reply>,
    wakers: HashMap<CallId, Waker>,
}

impl Mailbox {
    fn new(now: Timestamp) -> Self {
        Self { now, next: 0, waiting: BTreeMap::new(), answered: HashMap::new(), wakers: HashMap::new() }
    }

    fn waiting(&self) -> Vec<Rc<Call>> {
        self.waiting.values().cloned().collect()
    }

    fn answer(&mut self, seen: &Seen) {
        self.now = seen.now;
        self.waiting.remove(&seen.call).expect("a call that waits");
        self.answered.insert(seen.call, seen.reply.clone());
        self.wakers.remove(&seen.call).expect("a call that was polled").wake();
    }
}

/// All three ports of one request.
#[derive(Clone)]
struct Port {
    mailbox: Rc<RefCell<Mailbox>>,
    attempt: Rc<Attempt>,
    jitter: Jitter,
}

impl Port {
    /// Asks, and waits until the explorer answers.
    async fn call(&self, op: Op, by: Timestamp) -> Reply {
        let mut asked = Asked { mailbox: &self.mailbox, call: None };
        let mut question = Some(op);
        std::future::poll_fn(move |context| asked.poll(&mut question, by, context)).await
    }

    fn check_key(&self, key: &RecordKey) {
        assert!(*key == self.attempt.key, "a request stays with its own key");
    }

    /// Reads a message back, and checks that the queue would take it and that it holds the
    /// client's own events.
    fn parcel(&self, message: &Message) -> Parcel {
        let body: serde_json::Value = serde_json::from_str(&message.body).expect("a message is JSON");
        let text = body["batch_id"].as_str().expect("a batch id");
        let events = body["events"].as_array().expect("events").iter();
        let index = |event: &serde_json::Value| {
            let id = event["id"].as_str().expect("an event id");
            let index = id.strip_prefix(text).and_then(|rest| rest.strip_prefix('-'));
            let index = index.and_then(|index| index.parse().ok()).expect("batch id, hyphen, index");
            assert_eq!(event["event"], self.attempt.events[index], "the event is the client's own");
            index
        };
        Parcel { batch: BatchId::parse(text).expect("a UUIDv7"), events: events.map(index).collect() }
    }
}

/// A call of the pipeline's; when it is dropped unanswered, it waits no longer.
struct Asked<'a> {
    mailbox: &'a RefCell<Mailbox>,
    call: Option<CallId>,
}

impl Asked<'_> {
    fn poll(&mut self, op: &mut Option<Op>, by: Timestamp, context: &mut Context<'_>) -> Poll<Reply> {
        let mut mailbox = self.mailbox.borrow_mut();
        if let Some(op) = op.take() {
            let id = mailbox.next;
            mailbox.next += 1;
            let call = Rc::new(Call { id, op, issued: mailbox.now, by });
            mailbox.waiting.insert(id, call);
            self.call = Some(id);
        }
        let id = self.call.expect("asked just above");
        if let Some(reply) = mailbox.answered.remove(&id) {
            return Poll::Ready(reply);
        }
        mailbox.wakers.insert(id, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.call {
            self.mailbox.borrow_mut().waiting.remove(&id);
        }
    }
}

fn unavailable<T>() -> Result<T, StoreError> {
    Err(StoreError::Unavailable("the explorer says so".to_owned()))
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
        expires_at: u64,
        by: Timestamp,
    ) -> Result<Fenced, StoreError> {
        self.check_key(key);
        match self.call(Op::Complete { owner: owner.clone(), expires_at }, by).await {
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
    async fn send(&self, envelope: &Envelope, messages: &[Message], by: Timestamp) -> Vec<SendResult> {
        assert_eq!(check_call(envelope, messages), Ok(()), "the pipeline keeps SQS's limits");
        let parcels = messages.iter().map(|message| self.parcel(message)).collect();
        match self.call(Op::Send { parcels }, by).await {
            Reply::Sent(fates) => fates,
            _ => vec![SendResult::Unknown; messages.len()],
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
