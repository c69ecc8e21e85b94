//! The properties that must be true in every schedule: those of docs/contract.md, "Guarantees", and one
//! more. No call of a killed owner takes effect after another request has become the owner. The margin of
//! the lease must be long enough for this. The guarantees alone would excuse such a duplicate.
//!
//! In addition to the table and the queue, the explorer records facts that no part of the system can observe:
//! each copy of an event that the queue accepted, with the outcome of its acknowledgement
//! ([`QueuedCopy`]), and the promises made about each idempotency key ([`Promise`]).

use crate::behavior::{Call, CallId, Op, Reply, Response, SentMessage};
use crate::rules::{LONGEST_LEASE, Rules, millis};
use crate::scenario::{AttemptId, LANDING};
use crate::world::{Caller, Running, World};
use event_ingest::delivery::SendResult;
use event_ingest::idempotency::{BatchId, Delivered, Fenced, Fingerprint, Record, State};
use event_ingest::packing::Fifo;
use std::rc::Rc;

/// A description of a broken guarantee.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

/// A copy of an event in the queue.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueuedCopy {
    batch: u8,
    event: usize,
    body: usize,
    /// The request and the call that sent it, as long as that request runs.
    sender: Option<(AttemptId, CallId)>,
    /// Whether the sender received the acknowledgement.
    acknowledged: bool,
    /// Whether the sender recorded the delivery.
    recorded: bool,
    /// Whether guarantee 4 allows this copy to be a duplicate: before the delivery was recorded, the
    /// sender died, the acknowledgement was lost, or every attempt to write the record failed.
    excused: bool,
}

/// The promises made about an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Promise {
    pub batch: BatchId,
    pub fingerprint: Fingerprint,
    /// The real time until which the key must be remembered.
    pub until: u64,
    /// The real time from which the key must be forgotten, except for the rounding to seconds.
    pub no_longer: u64,
    /// A bitmap of the events that are recorded as delivered.
    pub recorded: u32,
}

/// The result of a request's last write of its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Write {
    /// There was no write, or it succeeded.
    None,
    /// Every attempt so far failed.
    Failed,
    /// The table refused the write, because another request owns the key.
    Lost,
}

/// The shortest time in milliseconds that an attempt to write the record must have, to count as one.
const SHORTEST_WRITE: u64 = 100;

/// The response that the final retry of a client must get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Accepted,
    KeyReused,
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Accepted => "202",
            Self::KeyReused => "422",
        })
    }
}

impl QueuedCopy {
    /// A copy whose acknowledgement is recorded.
    pub fn recorded(batch: BatchId, event: usize, body: usize) -> Self {
        Self { batch: number(batch), event, body, sender: None, acknowledged: true, recorded: true, excused: false }
    }
}

/// The number from which `scenario::batch_id` made the id.
fn number(batch: BatchId) -> u8 {
    u8::from_str_radix(&batch.to_string()[34..], 16).expect("two digits")
}

pub fn bits(delivered: &Delivered) -> u32 {
    (0..32).filter(|&index| delivered.contains(index)).map(|index| 1 << index).sum()
}

fn violation<T>(what: String) -> Result<T, Violation> {
    Err(Violation(what))
}

impl Running {
    /// Updates the facts on which the excuses for this request's copies depend.
    pub fn receive(&mut self, call: &Call, reply: &Reply, now: u64) {
        if !matches!(call.op, Op::Complete { .. } | Op::Release { .. } | Op::Sleep) {
            self.learned_at = now;
        }
        let writes = matches!(call.op, Op::Complete { .. } | Op::Release { delivered: Some(_), .. });
        let time_given = call.issued.until(call.by);
        match reply {
            Reply::Unavailable if writes && (self.frozen || millis(time_given) >= SHORTEST_WRITE) => {
                self.write = Write::Failed;
            }
            Reply::Fenced(Fenced::Lost) if writes => self.write = Write::Lost,
            Reply::Sent(results) => self.permanent_failure |= results.contains(&SendResult::Permanent),
            _ => {}
        }
    }
}

impl World {
    /// Checks a send as it starts. Events recorded as delivered are never sent again (guarantee 3).
    pub fn check_send(&self, rules: &Rules, attempt: AttemptId, messages: &[SentMessage]) -> Result<(), Violation> {
        let spec = rules.attempt(attempt);
        let key = rules.scenario.clients[spec.client].key;
        for message in messages {
            let Some(promise) = self.promises[key].as_ref().filter(|promise| promise.batch == message.batch) else {
                continue;
            };
            if let Some(event) = message.events.iter().find(|event| promise.recorded >> *event & 1 == 1) {
                return violation(format!(
                    "3: recorded events are not sent again: {} sends event {event}, which is recorded",
                    spec.name
                ));
            }
        }
        Ok(())
    }

    /// Adds a message to the queue, and checks that this is allowed.
    pub fn enqueue(
        &mut self,
        rules: &Rules,
        caller: Caller,
        call: CallId,
        message: &SentMessage,
    ) -> Result<(), Violation> {
        let Caller { attempt, alive, killed, .. } = caller;
        let (spec, key, body) = (rules.attempt(attempt), rules.key(attempt), rules.body(attempt));
        let Some(promise) = &self.promises[key] else {
            return violation(format!("{} sends a batch whose key no request has claimed", spec.name));
        };
        if promise.fingerprint != spec.claimant.fingerprint {
            return violation(format!(
                "another body with the same key: {} sends although another request owns the key",
                spec.name
            ));
        }
        if promise.batch != message.batch {
            return violation(format!("ids are stable: {} sends with another batch id", spec.name));
        }
        let owner = self.table.get(&spec.key).map(|record| &record.owner);
        if killed && rules.scenario.landing <= LANDING && owner != Some(&spec.claimant.owner) {
            return violation(format!(
                "the lease outlives the last effect of its owner: a call of {} takes effect after the take-over",
                spec.name
            ));
        }
        let batch = number(message.batch);
        let sender = alive.then_some((attempt, call));
        if let Some(fifo) = &message.fifo {
            if !Rc::make_mut(&mut self.groups).add(fifo) {
                // The queue acknowledges the message and drops it, so the first copy counts as acknowledged.
                let is_same = |copy: &&mut QueuedCopy| copy.batch == batch && message.events.contains(&copy.event);
                self.copies.iter_mut().filter(is_same).for_each(|copy| copy.sender = sender.or(copy.sender));
                return Ok(());
            }
            if rules.scenario.keeps_order() {
                self.check_order(rules, attempt, fifo, message)?;
            }
        }
        for &event in &message.events {
            self.copies.push(QueuedCopy {
                batch,
                event,
                body,
                sender,
                acknowledged: false,
                recorded: false,
                excused: !alive,
            });
            let same = self.copies.iter().filter(|copy| copy.batch == batch && copy.event == event);
            if rules.scenario.keeps_order() && same.clone().count() > 1 {
                return violation(format!("7: event {event} is in the ordered queue twice, sent by {}", spec.name));
            }
            if same.filter(|copy| !copy.excused).count() > 1 {
                return violation(format!(
                    "4: event {event} is in the queue twice without an allowed cause, sent by {}",
                    spec.name
                ));
            }
        }
        Ok(())
    }

    /// Checks that the events of a new message come after all earlier ones of its group (guarantee 7).
    fn check_order(
        &mut self,
        rules: &Rules,
        attempt: AttemptId,
        fifo: &Fifo,
        message: &SentMessage,
    ) -> Result<(), Violation> {
        let spec = rules.attempt(attempt);
        let turn = rules.scenario.turn(spec.client);
        for &event in &message.events {
            let last = self.last_in_group.insert(fifo.group_id.clone(), (turn, event));
            if last.is_some_and(|last| last >= (turn, event)) {
                return violation(format!(
                    "7: {} is in order: {} adds event {event} of turn {turn} after {last:?}",
                    fifo.group_id, spec.name
                ));
            }
        }
        Ok(())
    }

    /// Records the results of a send, as its sender receives them.
    pub fn record_results(&mut self, attempt: AttemptId, call: &Call, reply: &Reply) {
        let Op::Send { messages } = &call.op else { return };
        let is_acknowledged = |event: usize| match reply {
            Reply::Sent(results) => {
                let at = messages.iter().position(|message| message.events.contains(&event));
                at.is_some_and(|at| results[at] == SendResult::Acknowledged)
            }
            _ => false,
        };
        for copy in self.copies.iter_mut().filter(|copy| copy.sender == Some((attempt, call.id))) {
            copy.acknowledged |= is_acknowledged(copy.event);
            copy.excused |= !copy.acknowledged;
        }
    }

    /// Ends a sender. Its copies that are not recorded become excused if `excuse` is true.
    pub fn end_sender(&mut self, attempt: AttemptId, excuse: bool) {
        let is_own = |copy: &&mut QueuedCopy| copy.sender.is_some_and(|(sender, _)| sender == attempt);
        for copy in self.copies.iter_mut().filter(is_own) {
            copy.excused |= excuse && !copy.recorded;
            copy.sender = None;
        }
    }

    /// Checks the effect of a write to the table.
    ///
    /// `promised` is the time from which the key must be remembered for the window: the start of the
    /// attempt, or the acceptance of the batch.
    pub fn check_write(
        &mut self,
        rules: &Rules,
        caller: Caller,
        promised: u64,
        op: &Op,
        before: Option<&Record>,
    ) -> Result<(), Violation> {
        let Caller { attempt, started, .. } = caller;
        let (spec, key) = (rules.attempt(attempt), rules.key(attempt));
        let after = self.table.get(&spec.key).cloned();
        if after.as_ref() == before && !matches!(op, Op::Complete { .. }) {
            return Ok(());
        }
        let name = &spec.name;
        let window = millis(rules.scenario.window);
        let (until, no_longer) = (promised + window, self.now + window);
        match op {
            Op::Claim { record, .. } => {
                self.check_lease(rules, attempt, started)?;
                if let Some(promise) = &self.promises[key]
                    && self.now + rules.skew < promise.until
                {
                    return violation(format!("a key is remembered for the window: {name} claims it again too early"));
                }
                let (batch, fingerprint) = (record.batch_id, record.fingerprint);
                self.promises[key] = Some(Promise { batch, fingerprint, until, no_longer, recorded: 0 });
            }
            Op::TakeOver { .. } => {
                self.check_lease(rules, attempt, started)?;
                self.remember(key, until, no_longer);
            }
            Op::Complete { owner, .. } | Op::Release { owner, .. } => {
                let is_owner = before.is_some_and(|before| before.owner == *owner);
                if !is_owner && after.as_ref() != before {
                    return violation(format!("5: {name} changes a record that it does not own"));
                }
                if after.is_none() {
                    return violation(format!("ids are stable: {name} deletes the record"));
                }
                if !is_owner {
                    return Ok(());
                }
                let recorded = match op {
                    Op::Complete { delivered, .. } => bits(delivered),
                    Op::Release { delivered, .. } => delivered.as_ref().map_or(0, bits),
                    _ => 0,
                };
                self.remember(key, until, no_longer);
                self.record(attempt, key, recorded);
            }
            Op::Get | Op::Send { .. } | Op::Sleep => {}
        }
        Ok(())
    }

    fn remember(&mut self, key: usize, until: u64, no_longer: u64) {
        if let Some(promise) = &mut self.promises[key] {
            promise.until = promise.until.max(until);
            promise.no_longer = promise.no_longer.max(no_longer);
        }
    }

    fn record(&mut self, attempt: AttemptId, key: usize, recorded: u32) {
        if let Some(promise) = &mut self.promises[key] {
            promise.recorded |= recorded;
        }
        for copy in &mut self.copies {
            let is_own = copy.sender.is_some_and(|(sender, _)| sender == attempt) && copy.acknowledged;
            copy.recorded |= is_own && recorded >> copy.event & 1 == 1;
        }
    }

    /// Guarantee 6: a lease ends at most 5 s after the start of its owner.
    fn check_lease(&self, rules: &Rules, attempt: AttemptId, started: u64) -> Result<(), Violation> {
        let spec = rules.attempt(attempt);
        let lease = self.table.get(&spec.key).map_or(0, |record| record.lease_until.millis());
        if lease.saturating_sub(spec.ahead) > started + LONGEST_LEASE {
            return violation(format!("6: the lease of {} is longer than 5 s", spec.name));
        }
        Ok(())
    }

    /// Checks a response.
    pub fn check_response(&self, rules: &Rules, running: &Running, response: Response) -> Result<(), Violation> {
        let spec = rules.attempt(running.attempt);
        let client = &rules.scenario.clients[spec.client];
        let promise = self.promises[client.key].as_ref();
        let name = &spec.name;
        let slack = 1000 + rules.skew;
        if matches!(response, Response::Replayed(_) | Response::KeyReused)
            && promise.is_none_or(|promise| running.started >= promise.no_longer + slack)
        {
            return violation(format!("a key is forgotten after the window: the response to {name} is {response:?}"));
        }
        match response {
            Response::Accepted(reported) | Response::Replayed(reported) => {
                if !self.all_in_queue(client.body, reported) {
                    return violation(format!("1: success means queued: the response to {name} is {response:?}"));
                }
                let recorded = promise.map_or(0, |promise| promise.recorded);
                if reported == 0 || recorded & !reported != 0 {
                    return violation(format!(
                        "1: no recorded event is reported as rejected: the response to {name} is {response:?}"
                    ));
                }
                let is_replay = matches!(response, Response::Replayed(_));
                if is_replay && running.sent {
                    return violation(format!("a replay sends nothing: {name} sent events"));
                }
                let missing = spec.valid & !reported;
                if missing != 0 && !(is_replay && rules.scenario.rules_change()) {
                    return violation(format!(
                        "1: every valid event is reported as accepted: the response to {name} is {response:?}"
                    ));
                }
            }
            Response::KeyReused => {
                if running.sent {
                    return violation(format!("2: 4xx means that nothing was sent: {name} sent events"));
                }
                if promise.is_none_or(|promise| promise.fingerprint == spec.claimant.fingerprint) {
                    return violation(format!("422 only for another body: the body of {name} is the same"));
                }
            }
            Response::InProgress => {
                let record = self.table.get(&spec.key);
                if record.is_some_and(|record| record.owner == spec.claimant.owner) {
                    return violation(format!(
                        "503 request_in_progress only if another request owns the key: {name} owns it"
                    ));
                }
            }
            Response::Internal if !running.permanent_failure => {
                return violation(format!("500 only for a permanent failure: {name} had none"));
            }
            Response::Unavailable | Response::Internal => {}
        }
        Ok(())
    }

    /// Whether SQS acknowledged the events of a body in the bitmap, with one batch id (guarantee 1).
    fn all_in_queue(&self, body: usize, events: u32) -> bool {
        let has = |batch, event| {
            self.copies
                .iter()
                .any(|copy| copy.batch == batch && copy.event == event && copy.body == body && copy.acknowledged)
        };
        let is_reported = |event: &usize| events >> event & 1 == 1;
        self.copies.iter().any(|first| (0..32).filter(is_reported).all(|event| has(first.batch, event)))
    }

    /// The response that a request must get if it starts now and nothing fails.
    pub fn expected_response(&self, rules: &Rules, attempt: AttemptId) -> Expected {
        let spec = rules.attempt(attempt);
        let promise = self.promises[rules.scenario.clients[spec.client].key].as_ref();
        let reused =
            promise.is_some_and(|promise| promise.until > self.now && promise.fingerprint != spec.claimant.fingerprint);
        if reused { Expected::KeyReused } else { Expected::Accepted }
    }

    /// Checks that a request got the expected response. `check_response` has checked the response itself.
    pub fn check_expected(&self, rules: &Rules, attempt: AttemptId, expected: Expected) -> Result<(), Violation> {
        let spec = rules.attempt(attempt);
        let refused = self.clients[spec.client].begun == u8::MAX;
        if (expected == Expected::KeyReused) != refused {
            return violation(format!("3: the response to the final retry {} is not {expected}", spec.name));
        }
        Ok(())
    }
}

/// A short description of a record, for traces.
pub fn describe_record(record: Option<&Record>) -> String {
    record.map_or("no record".to_owned(), |record| {
        let state = match record.state {
            State::InProgress => "in progress",
            State::Accepted => "accepted",
        };
        format!("{state}, owner {}, delivered {:b}", record.owner.as_str(), bits(&record.delivered))
    })
}
