//! The state of the whole system. A [`World`] is plain data and contains everything that can influence
//! the future, so equal worlds need to be explored only once.

use crate::behavior::{Call, CallId, NodeId, Reply};
use crate::guarantees::{Promise, QueuedCopy, Write};
use crate::memory::{Groups, Table};
use crate::rules::Rules;
use crate::scenario::{AttemptId, BEGIN, BODIES, at, batch_id, record_key};
use crate::search::describe_op;
use event_ingest::idempotency::{Delivered, Fingerprint, Owner, Record, State};
use std::collections::BTreeMap;
use std::rc::Rc;

/// The state of the whole system.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct World {
    /// The real time. The clock of a sandbox may be ahead of it.
    pub now: u64,
    pub table: Rc<Table>,
    pub clients: Vec<ClientState>,
    /// Calls without a caller, which may still take effect.
    pub in_flight: Vec<InFlight>,
    /// The copies of events in the queue, without an order.
    pub copies: Vec<QueuedCopy>,
    /// The messages that an ordered queue would drop if they were sent again.
    pub groups: Rc<Groups>,
    /// The last event in each group of an ordered queue: the turn of its client, and its index.
    pub last_in_group: BTreeMap<String, (usize, usize)>,
    /// The promises made about each idempotency key.
    pub promises: Vec<Option<Promise>>,
    /// The faults that may still happen.
    pub faults: u8,
    /// The stalls that may still happen.
    pub stalls: u8,
}

/// The state of a client.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ClientState {
    /// The number of attempts started.
    pub begun: u8,
    /// Whether the client got a response after which it does not retry.
    pub satisfied: bool,
    pub running: Option<Running>,
    /// The time until which the client, its request, and the calls of the request do nothing.
    pub stalled_until: u64,
}

/// A running request.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Running {
    pub attempt: AttemptId,
    pub node: NodeId,
    pub started: u64,
    /// Whether time passed although the request could have continued.
    pub frozen: bool,
    /// Whether the request has called SQS.
    pub sent: bool,
    /// Whether SQS reported a permanent failure of one of its messages.
    pub permanent_failure: bool,
    /// The result of its last write of the record.
    pub write: Write,
    /// The time of the last reply to a claim, a read, or a send. Each attempt of the write after it sets
    /// an expiry that counts from this time.
    pub learned_at: u64,
    /// Calls that have taken effect, with the replies that are still on their way.
    pub delayed: Vec<(CallId, Reply)>,
}

/// A call without a caller, because the caller died or gave up.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct InFlight {
    pub caller: Caller,
    pub call: Rc<Call>,
    /// The last time at which the call may take effect.
    pub until: u64,
}

/// The caller of a call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Caller {
    pub attempt: AttemptId,
    pub started: u64,
    pub learned_at: u64,
    /// Whether a request still waits for the reply.
    pub alive: bool,
    /// Whether the sandbox died during the call. Otherwise the request gave the call up.
    pub killed: bool,
}

impl Running {
    pub fn caller(&self) -> Caller {
        Caller { attempt: self.attempt, started: self.started, learned_at: self.learned_at, alive: true, killed: false }
    }
}

impl InFlight {
    /// A short description, for traces.
    pub fn describe(&self, rules: &Rules) -> String {
        format!("{} of {}", describe_op(&self.call), rules.attempt(self.caller.attempt).name)
    }
}

impl World {
    pub fn stall(&mut self, client: usize, until: u64) {
        self.stalls -= 1;
        self.clients[client].stalled_until = until;
    }

    /// Adds the record of a client of key 0 that died before the schedule starts. Its lease has ended, its
    /// first event is sent and recorded, and its record expires in two seconds.
    pub fn leave_behind(&mut self, body: usize) {
        let mut delivered = Delivered::none(2);
        delivered.insert(0);
        let batch = batch_id(0xff);
        let record = Record {
            state: State::InProgress,
            fingerprint: Fingerprint::of(BODIES[body].as_bytes()),
            batch_id: batch,
            owner: Owner::from_record("c-dead".to_owned()),
            attempt: 1,
            lease_until: at(0),
            delivered,
            expires_at: BEGIN.div_ceil(1000) + 2,
        };
        let promise = Promise {
            batch,
            fingerprint: record.fingerprint,
            until: record.expires_at * 1000 - 1000,
            no_longer: record.expires_at * 1000,
            recorded: 1,
        };
        self.copies.push(QueuedCopy::recorded(batch, 0, body));
        self.promises[0] = Some(promise);
        Rc::make_mut(&mut self.table).put(&record_key(0), record);
    }
}
