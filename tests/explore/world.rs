//! One state of the whole system, what can happen next in it, and what follows.
//!
//! Time stands still unless an action moves it, and it only moves to instants at which somebody's
//! decision can change. A [`World`] is plain data: everything that can influence the future is in
//! it, so two equal ones need to be explored only once.

use crate::behaviour::{Answer, Call, CallId, Lab, NodeId, Op, Reply, Seen};
use crate::guarantees::{Copy, Memory, Violation, Write};
use crate::memory::Table;
use crate::scenario::{Attempt, AttemptId, BEGIN, BODIES, Scenario, at, batch_id, record_key};
use crate::search::describe_op;
use event_ingest::clock::Timestamp;
use event_ingest::deadline::{FUNCTION_TIMEOUT, OWNER_WAIT, RESERVE};
use event_ingest::delivery::SendResult;
use event_ingest::idempotency::{Delivered, Fingerprint, Owner, Record, RecordKey, State};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

/// What everybody shares.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct World {
    /// Real time; a sandbox's own clock may be ahead of it.
    pub now: u64,
    pub table: Rc<Table>,
    pub seats: Vec<Seat>,
    /// Calls whose caller is gone, which may still have their effect.
    pub flying: Vec<Flying>,
    /// What is in the queue, event by event, in no order.
    pub copies: Vec<Copy>,
    /// By key: what the guarantees refer to.
    pub memories: Vec<Option<Memory>>,
    pub faults: u8,
    pub stalls: u8,
}

/// A client.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Seat {
    pub begun: u8,
    pub satisfied: bool,
    pub live: Option<Live>,
    /// Until then neither the client nor its request does anything, nor do the request's calls.
    stalled_until: u64,
}

/// A request that runs.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Live {
    pub attempt: AttemptId,
    pub node: NodeId,
    pub born: u64,
    /// Time passed it by: it was not run although it could have been.
    pub frozen: bool,
    /// It asked the queue to take something.
    pub sent: bool,
    /// It was told that SQS will never take one of its messages.
    pub rejected: bool,
    /// How its write of the record went.
    pub write: Write,
    /// When it knew how its last claim, read or send went: from then it counts as accepted, and
    /// each try of its write says so.
    pub knew: u64,
    /// Calls that had their effect but are not answered yet.
    held: Vec<(CallId, Reply)>,
}

/// A call without a caller.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Flying {
    caller: Caller,
    call: Rc<Call>,
    until: u64,
}

/// One step of a schedule.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// A client begins its next attempt.
    Begin(usize),
    /// A call goes one way or another.
    Turn(usize, CallId, Turn),
    /// A sandbox dies; its calls may still land.
    Crash(usize),
    /// A call without a caller has its effect.
    Land(usize),
    /// A client stalls up to an instant: its calls are slow, its sandbox is frozen, or its retry
    /// comes late.
    Stall(usize, u64),
    /// Everybody sleeps or stalls: time passes up to the first instant at which somebody does not.
    Tick(u64),
    /// The table's TTL deletes an expired record.
    Expire(usize),
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug)]
pub enum Turn {
    /// It has its effect and is answered.
    Done,
    /// It has its effect, and the answer comes only at this instant.
    Hold(u64),
    /// The answer of a held call comes.
    Deliver,
    /// It has no effect, and the caller is told so.
    Refuse,
    /// It has its effect, but the answer is lost.
    LoseAnswer,
    /// It has its effect, the answer is lost, and the SDK asks again by itself.
    AskAgain,
    /// Its time is over; it may still land.
    GiveUp,
    /// Of a send's messages only these are taken, and the caller is told which.
    TakeSome(u16),
    /// Of a send's messages only these are taken, and the answer is lost.
    TakeSomeUntold(u16),
    /// A send's message of this number will never be taken, the others are.
    Reject(u8),
    /// A sleeper wakes.
    Wake,
}

/// A scenario, and the pipeline's behaviour in it as far as it is known.
pub struct Rules {
    pub scenario: Scenario,
    pub lab: Lab,
    first_attempts: Vec<AttemptId>,
    keys: Vec<RecordKey>,
    pub skew: u64,
}

/// Who makes a call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Caller {
    pub attempt: AttemptId,
    pub born: u64,
    pub knew: u64,
    /// Whether somebody will hear the answer.
    pub alive: bool,
    /// Whether its sandbox died while the call ran, rather than given it up.
    pub killed: bool,
}

impl Rules {
    pub fn new(scenario: Scenario) -> Self {
        let mut first = 0;
        let first_attempts = scenario.clients.iter().map(|client| {
            let this = first;
            first += AttemptId::try_from(client.attempts.len()).expect("few attempts") + 1;
            this
        });
        let first_attempts = first_attempts.collect();
        let lab = Lab::new(scenario.attempts(), scenario.jitter);
        let skew = scenario.clients.iter().map(|client| client.ahead).max().unwrap_or(0);
        let keys = scenario.clients.iter().map(|client| client.key + 1).max().unwrap_or(1);
        let keys = (0..keys).map(record_key).collect();
        Self { scenario, lab, first_attempts, keys, skew }
    }

    pub fn attempt(&self, id: AttemptId) -> &Attempt {
        self.lab.attempt(id)
    }

    pub fn key(&self, id: AttemptId) -> usize {
        self.scenario.clients[self.attempt(id).client].key
    }

    pub fn body(&self, id: AttemptId) -> usize {
        self.scenario.clients[self.attempt(id).client].body
    }

    /// The time on the clock of a request's sandbox.
    fn own(&self, id: AttemptId, real: u64) -> Timestamp {
        at(real + self.attempt(id).ahead)
    }

    /// The real time at which a request's own clock shows `own`.
    fn real(&self, id: AttemptId, own: Timestamp) -> u64 {
        own.millis().saturating_sub(self.attempt(id).ahead)
    }

    /// How every schedule begins.
    pub fn first_world(&self) -> World {
        let seat = Seat { begun: 0, satisfied: false, live: None, stalled_until: 0 };
        let mut world = World {
            now: BEGIN,
            table: Rc::default(),
            seats: vec![seat; self.scenario.clients.len()],
            flying: Vec::new(),
            copies: Vec::new(),
            memories: vec![None; self.keys.len()],
            faults: self.scenario.faults,
            stalls: self.scenario.stalls,
        };
        if let Some(body) = self.scenario.left_behind {
            world.leave_behind(body);
        }
        world
    }

    /// Everything that can happen next.
    pub fn actions(&self, world: &World) -> Vec<Action> {
        let mut actions = Vec::new();
        for (client, seat) in world.seats.iter().enumerate() {
            match &seat.live {
                _ if world.now < seat.stalled_until => {}
                None if self.may_begin(world, client) => {
                    actions.push(Action::Begin(client));
                    let stalls = self.stalls(world, client, None).into_iter();
                    actions.extend(stalls.map(|until| Action::Stall(client, until)));
                }
                None => {}
                Some(live) => self.turns(world, client, live, &mut actions),
            }
            if seat.live.is_some() && world.faults > 0 {
                actions.push(Action::Crash(client));
            }
        }
        actions.extend((0..world.flying.len()).map(Action::Land));
        for (number, key) in self.keys.iter().enumerate() {
            if world.table.get(key).is_some_and(|record| record.expires_at * 1000 <= world.now) {
                actions.push(Action::Expire(number));
            }
        }
        actions.extend(self.tick(world));
        actions
    }

    /// A client begins once it has no answer or a 5xx. One that has its 202 may have lost it.
    fn may_begin(&self, world: &World, client: usize) -> bool {
        let (seat, clients) = (&world.seats[client], &self.scenario.clients);
        let is_left = usize::from(seat.begun) < clients[client].attempts.len();
        // Of two clients that are alike, it does not matter which one is first.
        let twin_waits = client > 0 && clients[client] == clients[client - 1] && world.seats[client - 1].begun == 0;
        is_left && !twin_waits && (!seat.satisfied || world.faults > 0)
    }

    fn turns(&self, world: &World, client: usize, live: &Live, actions: &mut Vec<Action>) {
        let own = self.own(live.attempt, world.now);
        let stalls = self.stalls(world, client, Some(live));
        for call in &self.lab.node(live.node).calls {
            let mut add = |turn| actions.push(Action::Turn(client, call.id, turn));
            let is_held = live.held.iter().any(|(id, _)| *id == call.id);
            if own >= call.by && call.op != Op::Sleep {
                add(Turn::GiveUp);
            }
            match &call.op {
                _ if is_held => add(Turn::Deliver),
                Op::Sleep if own >= call.by => add(Turn::Wake),
                Op::Sleep => {}
                op => {
                    add(Turn::Done);
                    // A read that is answered late is a stale read.
                    for &until in &stalls {
                        add(Turn::Hold(until));
                    }
                    if world.faults > 0 {
                        faulty_turns(op).into_iter().for_each(add);
                    }
                }
            }
        }
        actions.extend(stalls.into_iter().map(|until| Action::Stall(client, until)));
    }

    /// Up to which instants a client may stall: those at which what it may do changes.
    fn stalls(&self, world: &World, client: usize, live: Option<&Live>) -> Vec<u64> {
        if world.stalls == 0 {
            return Vec::new();
        }
        let mut instants: Vec<u64> = Vec::new();
        if let Some(live) = live {
            let reserve = live.born + millis(FUNCTION_TIMEOUT) - millis(RESERVE);
            instants.extend([
                reserve,
                reserve + 1,
                live.born + millis(OWNER_WAIT),
                live.born + millis(FUNCTION_TIMEOUT),
            ]);
            instants.extend(self.dues(live));
        }
        let spec = &self.scenario.clients[client];
        if let Some(record) = world.table.get(&self.keys[spec.key]) {
            let lease = record.lease_until.millis().saturating_sub(spec.ahead);
            let expiry = (record.expires_at * 1000).saturating_sub(spec.ahead);
            instants.extend([lease.saturating_sub(1), lease]);
            if self.scenario.window <= Duration::from_hours(2) {
                instants.extend([expiry - 1, expiry]);
            }
        }
        let longest = live.map_or(u64::MAX, |live| live.born + millis(FUNCTION_TIMEOUT));
        instants.retain(|&instant| instant > world.now && instant <= longest);
        instants.sort_unstable();
        instants.dedup();
        instants
    }

    /// Time passes once everybody waits for it.
    fn tick(&self, world: &World) -> Option<Action> {
        let mut first = u64::MAX;
        for seat in &world.seats {
            if world.now < seat.stalled_until {
                first = first.min(seat.stalled_until);
            } else if let Some(live) = &seat.live {
                let calls = &self.lab.node(live.node).calls;
                let wakes = calls.iter().map(|call| match call.op {
                    Op::Sleep => self.real(live.attempt, call.by),
                    _ => 0,
                });
                first = first.min(wakes.min().unwrap_or(0));
            }
        }
        (world.now < first && first < u64::MAX).then_some(Action::Tick(first))
    }

    /// When a request's calls are given up and its sleeps end, unless they were due when made.
    fn dues<'a>(&'a self, live: &'a Live) -> impl Iterator<Item = u64> + 'a {
        self.lab.node(live.node).calls.iter().map(|call| self.real(live.attempt, call.by.max(call.issued)))
    }

    /// What follows from one action.
    pub fn apply(&mut self, before: &World, action: Action) -> Result<World, Violation> {
        let mut world = before.clone();
        match action {
            Action::Begin(client) => {
                let seat = &mut world.seats[client];
                if std::mem::take(&mut seat.satisfied) {
                    world.faults -= 1;
                }
                let attempt = self.first_attempts[client] + seat.begun;
                seat.begun += 1;
                self.begin(&mut world, client, attempt)?;
            }
            Action::Turn(client, call, turn) => self.turn(&mut world, client, call, turn)?,
            Action::Crash(client) => {
                world.faults -= 1;
                self.die(&mut world, client, before.now);
            }
            Action::Land(number) => {
                let Flying { caller, call, .. } = world.flying.remove(number);
                self.effect(&mut world, caller, &call, u16::MAX)?;
            }
            Action::Tick(to) => self.advance(&mut world, to)?,
            Action::Stall(client, until) => world.stall(client, until),
            Action::Expire(key) => Rc::make_mut(&mut world.table).delete(&self.keys[key]),
        }
        world.flying.sort_by_key(|flying| (flying.caller, flying.call.id, flying.until));
        world.copies.sort_unstable();
        Ok(world)
    }

    fn begin(&mut self, world: &mut World, client: usize, attempt: AttemptId) -> Result<(), Violation> {
        let node = self.lab.begin(attempt, self.own(attempt, world.now));
        let live = Live {
            attempt,
            node,
            born: world.now,
            frozen: false,
            sent: false,
            rejected: false,
            write: Write::None,
            knew: world.now,
            held: Vec::new(),
        };
        world.seats[client].live = Some(live);
        self.arrive(world, client, None)
    }

    fn turn(&mut self, world: &mut World, client: usize, id: CallId, turn: Turn) -> Result<(), Violation> {
        let live = world.seats[client].live.as_ref().expect("alive");
        let caller = live.caller();
        let calls = &self.lab.node(live.node).calls;
        let call = Rc::clone(calls.iter().find(|call| call.id == id).expect("a call that waits"));
        if !matches!(turn, Turn::Done | Turn::Hold(_) | Turn::Deliver | Turn::GiveUp | Turn::Wake) {
            world.faults -= 1;
        }
        let reply = match turn {
            Turn::Wake => Reply::Woke,
            Turn::Done => self.effect(world, caller, &call, u16::MAX)?,
            Turn::TakeSome(taken) => self.effect(world, caller, &call, taken)?,
            Turn::Hold(until) => {
                let reply = self.effect(world, caller, &call, u16::MAX)?;
                world.seats[client].live.as_mut().expect("alive").held.push((id, reply));
                world.stall(client, until);
                return Ok(());
            }
            Turn::AskAgain => {
                self.effect(world, caller, &call, u16::MAX)?;
                return Ok(());
            }
            Turn::Deliver => live.held.iter().find(|(held, _)| *held == id).expect("held").1.clone(),
            Turn::Refuse => refusal(&call.op),
            Turn::LoseAnswer => {
                self.effect(world, caller, &call, u16::MAX)?;
                Reply::Unavailable
            }
            Turn::TakeSomeUntold(taken) => {
                self.effect(world, caller, &call, taken)?;
                Reply::Unavailable
            }
            Turn::Reject(number) => {
                let taken = !(1 << number);
                let Reply::Sent(mut fates) = self.effect(world, caller, &call, taken)? else { unreachable!() };
                fates[usize::from(number)] = SendResult::Permanent;
                Reply::Sent(fates)
            }
            Turn::GiveUp => {
                let landed = live.held.iter().any(|(held, _)| *held == id);
                if !landed {
                    self.fly(world, caller, call.clone(), world.now);
                }
                Reply::Unavailable
            }
        };
        self.hear(world, client, &call, reply)
    }

    /// A request gets an answer and goes on to its next calls or to its end.
    fn hear(&mut self, world: &mut World, client: usize, call: &Call, reply: Reply) -> Result<(), Violation> {
        let now = world.now;
        let live = world.seats[client].live.as_mut().expect("alive");
        live.held.retain(|(held, _)| *held != call.id);
        live.hear(call, &reply, now);
        let (attempt, before) = (live.attempt, live.node);
        world.tell(attempt, call, &reply);
        let seen = Seen { call: call.id, reply, now: self.own(attempt, now) };
        let after = self.lab.observe(before, seen);
        world.seats[client].live.as_mut().expect("alive").node = after;
        self.arrive(world, client, Some((before, call.id)))
    }

    /// Looks at what a request asks for now, or answers.
    fn arrive(&self, world: &mut World, client: usize, from: Option<(NodeId, CallId)>) -> Result<(), Violation> {
        let live = world.seats[client].live.as_ref().expect("alive");
        let (attempt, caller) = (live.attempt, live.caller());
        let node = self.lab.node(live.node);
        let old = from.map_or(&[][..], |(before, _)| &self.lab.node(before).calls);
        let is_new = |call: &&Rc<Call>| !old.iter().any(|known| known.id == call.id);
        for call in node.calls.iter().filter(is_new) {
            if let Op::Send { parcels } = &call.op {
                world.check_send(self, attempt, parcels)?;
                world.seats[client].live.as_mut().expect("alive").sent = true;
            }
        }
        // Calls that the request dropped unanswered.
        let live = world.seats[client].live.as_ref().expect("alive");
        let is_dropped = |call: &&Rc<Call>| {
            from.is_some_and(|(_, heard)| heard != call.id)
                && !node.calls.iter().any(|kept| kept.id == call.id)
                && !live.held.iter().any(|(held, _)| *held == call.id)
        };
        let dropped: Vec<Rc<Call>> = old.iter().filter(is_dropped).cloned().collect();
        let abandoned = if node.ended { node.calls.as_slice() } else { &[] };
        for call in dropped.into_iter().chain(abandoned.iter().cloned()) {
            self.fly(world, caller, call, world.now);
        }
        let had_answered = from.is_some_and(|(before, _)| self.lab.node(before).answer.is_some());
        if let (Some(answer), false) = (node.answer, had_answered) {
            self.answer(world, client, answer)?;
        }
        if node.ended {
            let live = world.seats[client].live.take().expect("alive");
            world.settle_copies(live.attempt, live.write == Write::Failed);
        }
        Ok(())
    }

    /// A client gets its answer, while the sandbox may have a write left to do.
    fn answer(&self, world: &mut World, client: usize, answer: Answer) -> Result<(), Violation> {
        let live = world.seats[client].live.as_ref().expect("alive");
        world.check_answer(self, live, answer)?;
        world.seats[client].satisfied = matches!(answer, Answer::Accepted | Answer::Replayed | Answer::KeyReused);
        if answer == Answer::KeyReused {
            world.seats[client].begun = u8::MAX;
        }
        Ok(())
    }

    /// A sandbox is gone since `when`.
    fn die(&self, world: &mut World, client: usize, when: u64) {
        let live = world.seats[client].live.take().expect("alive");
        for call in &self.lab.node(live.node).calls {
            if !live.held.iter().any(|(held, _)| *held == call.id) {
                self.fly(world, Caller { killed: true, ..live.caller() }, Rc::clone(call), when);
            }
        }
        world.settle_copies(live.attempt, true);
        world.seats[client].stalled_until = 0;
    }

    fn fly(&self, world: &mut World, caller: Caller, call: Rc<Call>, since: u64) {
        if !matches!(call.op, Op::Get | Op::Sleep) {
            let caller = Caller { alive: false, ..caller };
            world.flying.push(Flying { caller, call, until: since + self.scenario.landing });
        }
    }

    /// Lets time pass: freezes, kills at the deadline, and ends what can land no more.
    fn advance(&self, world: &mut World, to: u64) -> Result<(), Violation> {
        for client in 0..world.seats.len() {
            let Some(live) = &mut world.seats[client].live else { continue };
            let killed = live.born + millis(FUNCTION_TIMEOUT);
            let is_late = self.dues(live).any(|due| due < to.min(killed));
            live.frozen |= is_late;
            if killed <= to {
                if !live.frozen {
                    return Err(Violation(format!(
                        "it answers in time: {} was killed at its deadline without having been frozen",
                        self.attempt(live.attempt).name
                    )));
                }
                self.die(world, client, killed);
            }
        }
        world.flying.retain(|flying| flying.until >= to);
        world.now = to;
        for seat in &mut world.seats {
            if seat.stalled_until <= to {
                seat.stalled_until = 0;
            }
        }
        Ok(())
    }

    /// Carries a call out. Of a send only the messages in `taken` are.
    fn effect(&self, world: &mut World, caller: Caller, call: &Call, taken: u16) -> Result<Reply, Violation> {
        let attempt = caller.attempt;
        let record_key = &self.attempt(attempt).key;
        // Each try of a write says when the batch was accepted, not when the try was made.
        let promised = match call.op {
            Op::Complete { .. } | Op::Release { .. } => caller.knew,
            _ => self.real(attempt, call.issued),
        };
        let before = world.table.get(record_key).cloned();
        let reply = match &call.op {
            Op::Sleep => unreachable!("nobody carries out a sleep"),
            Op::Get => Reply::Got(before.clone()),
            Op::Claim { record, now } => Reply::Claimed(Rc::make_mut(&mut world.table).claim(record_key, record, *now)),
            Op::TakeOver { take_over, now } => {
                Reply::Claimed(Rc::make_mut(&mut world.table).take_over(record_key, take_over, *now))
            }
            Op::Complete { owner, expires_at } => {
                Reply::Fenced(Rc::make_mut(&mut world.table).complete(record_key, owner, *expires_at))
            }
            Op::Release { owner, delivered, expires_at } => {
                let table = Rc::make_mut(&mut world.table);
                Reply::Fenced(table.release(record_key, owner, delivered.as_ref(), *expires_at))
            }
            Op::Send { parcels } => {
                let is_taken = |number: usize| taken >> number & 1 == 1;
                let mut fates = vec![SendResult::Retryable; parcels.len()];
                for (number, parcel) in parcels.iter().enumerate().filter(|(number, _)| is_taken(*number)) {
                    fates[number] = SendResult::Acknowledged;
                    world.take(self, caller, call.id, parcel)?;
                }
                Reply::Sent(fates)
            }
        };
        if !matches!(call.op, Op::Get | Op::Send { .. }) {
            world.check_write(self, caller, promised, &call.op, before.as_ref())?;
        }
        Ok(reply)
    }

    /// After everything: nobody runs, nothing flies, every lease of a dead holder is over. Then
    /// each client tries once more, nothing fails, and it must get its due answer.
    pub fn check_epilogue(&mut self, world: &World) -> Result<(), Violation> {
        let mut world = world.clone();
        // Rounded up, so that the pipeline is not run for every instant anew.
        world.now = (world.now + LONGEST_LOCK).next_multiple_of(100_000);
        world.flying.clear();
        (world.faults, world.stalls) = (0, 0);
        world.seats.iter_mut().for_each(|seat| seat.stalled_until = 0);
        for client in 0..world.seats.len() {
            let last = u8::try_from(self.scenario.clients[client].attempts.len()).expect("few attempts");
            let attempt = self.first_attempts[client] + last;
            let due = world.due_answer(self, attempt);
            world.seats[client].begun = 0;
            self.begin(&mut world, client, attempt)?;
            let mut answer = None;
            while let Some(live) = &world.seats[client].live {
                let call = Rc::clone(&self.lab.node(live.node).calls[0]);
                if call.op == Op::Sleep {
                    world.now = world.now.max(self.real(attempt, call.by));
                    self.turn(&mut world, client, call.id, Turn::Wake)?;
                } else {
                    self.turn(&mut world, client, call.id, Turn::Done)?;
                }
                answer = Some(world.seats[client].satisfied);
            }
            if answer != Some(true) {
                return Err(Violation(format!(
                    "3, 6: after everything, {} must get {due} at once and gets a 5xx",
                    self.attempt(attempt).name
                )));
            }
            world.check_due(self, attempt, due)?;
        }
        Ok(())
    }
}

/// What can go wrong with a call.
fn faulty_turns(op: &Op) -> Vec<Turn> {
    match op {
        Op::Get | Op::Sleep => vec![Turn::Refuse],
        Op::Send { parcels } => {
            let all = u16::try_from((1_u32 << parcels.len()) - 1).expect("at most ten messages");
            let some: BTreeSet<u16> = [1, all & !1].into_iter().filter(|some| *some != 0 && *some != all).collect();
            let untold = some.iter().copied().chain([0, all]);
            let mut turns = vec![Turn::Refuse, Turn::Reject(0)];
            turns.extend(some.iter().copied().map(Turn::TakeSome));
            turns.extend(untold.map(Turn::TakeSomeUntold));
            turns
        }
        _ => vec![Turn::Refuse, Turn::LoseAnswer, Turn::AskAgain],
    }
}

fn refusal(op: &Op) -> Reply {
    match op {
        Op::Send { parcels } => Reply::Sent(vec![SendResult::Retryable; parcels.len()]),
        _ => Reply::Unavailable,
    }
}

/// Contract section 3, guarantee 6: how long a dead holder keeps its key.
pub const LONGEST_LOCK: u64 = 5000;

pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("a short time")
}

impl Live {
    fn caller(&self) -> Caller {
        Caller { attempt: self.attempt, born: self.born, knew: self.knew, alive: true, killed: false }
    }
}

impl Flying {
    /// A few words for traces.
    pub fn describe(&self, rules: &Rules) -> String {
        format!("{}'s {}", rules.attempt(self.caller.attempt).name, describe_op(&self.call))
    }
}

impl World {
    fn stall(&mut self, client: usize, until: u64) {
        self.stalls -= 1;
        self.seats[client].stalled_until = until;
    }

    /// Before the first schedule, a client of key 0 died under its lease. What it had sent and
    /// recorded is its first event. Its record expires in two seconds.
    fn leave_behind(&mut self, body: usize) {
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
        let memory = Memory {
            batch,
            fingerprint: record.fingerprint,
            until: record.expires_at * 1000 - 1000,
            no_longer: record.expires_at * 1000,
            recorded: 1,
        };
        self.copies.push(Copy::recorded(batch, 0, body));
        self.memories[0] = Some(memory);
        Rc::make_mut(&mut self.table).put(&record_key(0), record);
    }
}
