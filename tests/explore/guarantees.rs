//! What must hold in every schedule: contract section 3, guarantees 1 to 6, and one thing more,
//! on which the margin of the lease rests: nothing that a killed holder had on the wire lands once
//! another holds the key. (The contract would excuse such a duplicate.)
//!
//! The explorer keeps, beside the table and the queue, what the guarantees refer to and nobody in
//! the system can see: which copies of an event the queue ever took and what became of their
//! acknowledgements ([`Copy`]), and what was promised about a key ([`Memory`]).

use crate::behaviour::{Answer, Call, CallId, Op, Parcel, Reply};
use crate::scenario::{AttemptId, LANDING};
use crate::world::{Caller, LONGEST_LOCK, Live, Rules, World, millis};
use event_ingest::delivery::SendResult;
use event_ingest::idempotency::{BatchId, Delivered, Fenced, Fingerprint, Record, State};

/// A guarantee that does not hold, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

/// A copy of an event in the queue.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Copy {
    batch: u8,
    event: usize,
    body: usize,
    /// Who sent it and by which call, while that request runs.
    sender: Option<(AttemptId, CallId)>,
    /// Its sender got the acknowledgement.
    told: bool,
    /// Its sender recorded it.
    recorded: bool,
    /// Guarantee 4 lets this one be a duplicate: before it was recorded its sender died, or the
    /// acknowledgement was lost, or the table took none of the tries to record it.
    excused: bool,
}

/// What was promised about a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Memory {
    pub batch: BatchId,
    pub fingerprint: Fingerprint,
    /// Real time up to which the key must be remembered.
    pub until: u64,
    /// Real time from which it must not, give or take the rounding to seconds.
    pub no_longer: u64,
    /// Events recorded as delivered, by bit.
    pub recorded: u32,
}

/// How a request's last write of its record went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Write {
    /// There was none, or it is answered.
    None,
    /// The table took none of the tries so far.
    Failed,
    /// The request learnt that it had lost its claim.
    Lost,
}

/// The least time that a try to write the record must be given to count as one.
const REAL_TRY: u64 = 100;

/// What the last retry of a client must get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Accepted,
    KeyReused,
}

impl std::fmt::Display for Due {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Accepted => "202",
            Self::KeyReused => "422",
        })
    }
}

impl Copy {
    /// A copy that was acknowledged and recorded.
    pub fn recorded(batch: BatchId, event: usize, body: usize) -> Self {
        Self { batch: number(batch), event, body, sender: None, told: true, recorded: true, excused: false }
    }
}

/// The number that `scenario::batch_id` made the id from.
fn number(batch: BatchId) -> u8 {
    u8::from_str_radix(&batch.to_string()[34..], 16).expect("two digits")
}

fn bits(delivered: &Delivered) -> u32 {
    (0..32).filter(|&index| delivered.contains(index)).map(|index| 1 << index).sum()
}

fn violation<T>(what: String) -> Result<T, Violation> {
    Err(Violation(what))
}

impl Live {
    /// Notes what a request's answers mean for the excuses of its copies.
    pub fn hear(&mut self, call: &Call, reply: &Reply, now: u64) {
        if !matches!(call.op, Op::Complete { .. } | Op::Release { .. } | Op::Sleep) {
            self.knew = now;
        }
        let writes = matches!(call.op, Op::Complete { .. } | Op::Release { delivered: Some(_), .. });
        let given = call.issued.until(call.by);
        match reply {
            Reply::Unavailable if writes && (self.frozen || millis(given) >= REAL_TRY) => self.write = Write::Failed,
            Reply::Fenced(Fenced::Lost) if writes => self.write = Write::Lost,
            Reply::Sent(fates) => self.rejected |= fates.contains(&SendResult::Permanent),
            _ => {}
        }
    }
}

impl World {
    /// A request asks the queue to take messages.
    ///
    /// What was recorded as delivered is never sent again (guarantee 3).
    pub fn check_send(&self, rules: &Rules, attempt: AttemptId, parcels: &[Parcel]) -> Result<(), Violation> {
        let spec = rules.attempt(attempt);
        let key = rules.scenario.clients[spec.client].key;
        for parcel in parcels {
            let Some(memory) = self.memories[key].as_ref().filter(|memory| memory.batch == parcel.batch) else {
                continue;
            };
            if let Some(event) = parcel.events.iter().find(|event| memory.recorded >> *event & 1 == 1) {
                return violation(format!(
                    "3: recorded is never sent again: {} sends event {event}, which is recorded",
                    spec.name
                ));
            }
        }
        Ok(())
    }

    /// The queue takes a message.
    pub fn take(&mut self, rules: &Rules, caller: Caller, call: CallId, parcel: &Parcel) -> Result<(), Violation> {
        let Caller { attempt, alive, killed, .. } = caller;
        let (spec, key, body) = (rules.attempt(attempt), rules.key(attempt), rules.body(attempt));
        let Some(memory) = &self.memories[key] else {
            return violation(format!("{} sends under a key that nobody claimed", spec.name));
        };
        if memory.fingerprint != spec.claimant.fingerprint {
            return violation(format!("another body under one key: {} sends although the key is not its", spec.name));
        }
        if memory.batch != parcel.batch {
            return violation(format!("ids are stable: {} sends under another batch id", spec.name));
        }
        let holder = self.table.get(&spec.key).map(|record| &record.owner);
        if killed && rules.scenario.landing <= LANDING && holder != Some(&spec.claimant.owner) {
            return violation(format!(
                "the lease outlives its holder's last effect: what {} had on the wire lands after its successor began",
                spec.name
            ));
        }
        for &event in &parcel.events {
            let batch = number(parcel.batch);
            let sender = alive.then_some((attempt, call));
            self.copies.push(Copy { batch, event, body, sender, told: false, recorded: false, excused: !alive });
            let same = self.copies.iter().filter(|copy| copy.batch == batch && copy.event == event);
            if same.filter(|copy| !copy.excused).count() > 1 {
                return violation(format!(
                    "4: event {event} is in the queue twice without an excuse, by {}",
                    spec.name
                ));
            }
        }
        Ok(())
    }

    /// A sender hears what became of its messages.
    pub fn tell(&mut self, attempt: AttemptId, call: &Call, reply: &Reply) {
        let Op::Send { parcels } = &call.op else { return };
        let is_acknowledged = |event: usize| match reply {
            Reply::Sent(fates) => {
                let at = parcels.iter().position(|parcel| parcel.events.contains(&event));
                at.is_some_and(|at| fates[at] == SendResult::Acknowledged)
            }
            _ => false,
        };
        for copy in self.copies.iter_mut().filter(|copy| copy.sender == Some((attempt, call.id))) {
            copy.told = is_acknowledged(copy.event);
            copy.excused |= !copy.told;
        }
    }

    /// A sender is gone: what it did not record is excused, or never will be.
    pub fn settle_copies(&mut self, attempt: AttemptId, excuse: bool) {
        let is_its = |copy: &&mut Copy| copy.sender.is_some_and(|(sender, _)| sender == attempt);
        for copy in self.copies.iter_mut().filter(is_its) {
            copy.excused |= excuse && !copy.recorded;
            copy.sender = None;
        }
    }

    /// A write of the table had its chance: its effect must be one that the writer may have.
    ///
    /// `promised` is when the attempt began or the batch was accepted.
    pub fn check_write(
        &mut self,
        rules: &Rules,
        caller: Caller,
        promised: u64,
        op: &Op,
        before: Option<&Record>,
    ) -> Result<(), Violation> {
        let Caller { attempt, born, .. } = caller;
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
                self.check_lock(rules, attempt, born)?;
                if let Some(memory) = &self.memories[key]
                    && self.now + rules.skew < memory.until
                {
                    return violation(format!("a key is remembered for the window: {name} claims it anew too early"));
                }
                let (batch, fingerprint) = (record.batch_id, record.fingerprint);
                self.memories[key] = Some(Memory { batch, fingerprint, until, no_longer, recorded: 0 });
            }
            Op::TakeOver { .. } => {
                self.check_lock(rules, attempt, born)?;
                self.remember(key, until, no_longer);
            }
            Op::Complete { owner, .. } | Op::Release { owner, .. } => {
                let holds = before.is_some_and(|before| before.owner == *owner);
                if !holds && after.as_ref() != before {
                    return violation(format!("5: {name} changes a record that it does not hold"));
                }
                if after.is_none() {
                    return violation(format!("ids are stable: {name} deletes the record"));
                }
                if !holds {
                    return Ok(());
                }
                let recorded = match op {
                    Op::Release { delivered, .. } => delivered.as_ref().map_or(0, bits),
                    _ => u32::MAX,
                };
                self.remember(key, until, no_longer);
                self.record(attempt, key, recorded);
            }
            Op::Get | Op::Send { .. } | Op::Sleep => {}
        }
        Ok(())
    }

    fn remember(&mut self, key: usize, until: u64, no_longer: u64) {
        if let Some(memory) = &mut self.memories[key] {
            memory.until = memory.until.max(until);
            memory.no_longer = memory.no_longer.max(no_longer);
        }
    }

    fn record(&mut self, attempt: AttemptId, key: usize, recorded: u32) {
        if let Some(memory) = &mut self.memories[key] {
            memory.recorded |= recorded;
        }
        for copy in &mut self.copies {
            let is_its = copy.sender.is_some_and(|(sender, _)| sender == attempt) && copy.told;
            copy.recorded |= is_its && recorded >> copy.event & 1 == 1;
        }
    }

    /// Guarantee 6: a claim ends 5 s after its holder began, at the latest.
    fn check_lock(&self, rules: &Rules, attempt: AttemptId, born: u64) -> Result<(), Violation> {
        let spec = rules.attempt(attempt);
        let lease = self.table.get(&spec.key).map_or(0, |record| record.lease_until.millis());
        if lease.saturating_sub(spec.ahead) > born + LONGEST_LOCK {
            return violation(format!("6: {} locks its key for longer than 5 s", spec.name));
        }
        Ok(())
    }

    /// A request answers.
    pub fn check_answer(&self, rules: &Rules, live: &Live, answer: Answer) -> Result<(), Violation> {
        let spec = rules.attempt(live.attempt);
        let client = &rules.scenario.clients[spec.client];
        let memory = self.memories[client.key].as_ref();
        let name = &spec.name;
        let slack = 1000 + rules.skew;
        if matches!(answer, Answer::Replayed | Answer::KeyReused)
            && memory.is_none_or(|memory| live.born >= memory.no_longer + slack)
        {
            return violation(format!("a key is forgotten after the window: {name} is answered {answer:?}"));
        }
        match answer {
            Answer::Accepted | Answer::Replayed => {
                if !self.all_in_queue(client.body, spec.events.len()) {
                    return violation(format!("1: 202 means in the queue: {name} is answered {answer:?}"));
                }
                if answer == Answer::Replayed && live.sent {
                    return violation(format!("a replay sends nothing: {name} did"));
                }
            }
            Answer::KeyReused => {
                if live.sent {
                    return violation(format!("2: 4xx means that nothing was sent: {name} did send"));
                }
                if memory.is_none_or(|memory| memory.fingerprint == spec.claimant.fingerprint) {
                    return violation(format!("422 only for another body: {name}"));
                }
            }
            Answer::InProgress => {
                let record = self.table.get(&spec.key);
                if record.is_some_and(|record| record.owner == spec.claimant.owner) {
                    return violation(format!("503 request_in_progress is for others' claims: {name} met its own"));
                }
            }
            Answer::Internal if !live.rejected => {
                return violation(format!("500 only for a defect: {name}"));
            }
            Answer::Unavailable | Answer::Internal => {}
        }
        Ok(())
    }

    /// Guarantee 1, of a body: the queue took every event under one batch id, and said so.
    fn all_in_queue(&self, body: usize, events: usize) -> bool {
        let has = |batch, event| {
            self.copies.iter().any(|copy| copy.batch == batch && copy.event == event && copy.body == body && copy.told)
        };
        self.copies.iter().any(|first| (0..events).all(|event| has(first.batch, event)))
    }

    /// What a request that begins now must get if nothing fails.
    pub fn due_answer(&self, rules: &Rules, attempt: AttemptId) -> Due {
        let spec = rules.attempt(attempt);
        let memory = self.memories[rules.scenario.clients[spec.client].key].as_ref();
        let reused =
            memory.is_some_and(|memory| memory.until > self.now && memory.fingerprint != spec.claimant.fingerprint);
        if reused { Due::KeyReused } else { Due::Accepted }
    }

    /// Whether it got that: `check_answer` has looked at what it got.
    pub fn check_due(&self, rules: &Rules, attempt: AttemptId, due: Due) -> Result<(), Violation> {
        let spec = rules.attempt(attempt);
        let client = &rules.scenario.clients[spec.client];
        let refused = self.seats[spec.client].begun == u8::MAX;
        let in_queue = self.all_in_queue(client.body, spec.events.len());
        if (due == Due::KeyReused) != refused || (due == Due::Accepted && !in_queue) {
            return violation(format!("3: after everything, {} does not get {due}", spec.name));
        }
        Ok(())
    }
}

/// A record in a few words.
pub fn short(record: Option<&Record>) -> String {
    record.map_or("nothing".to_owned(), |record| {
        let state = match record.state {
            State::InProgress => "in progress",
            State::Accepted => "accepted",
        };
        format!("{state} by {} delivered {:b}", record.owner.as_str(), bits(&record.delivered))
    })
}
