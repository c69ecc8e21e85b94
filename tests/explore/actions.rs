//! The actions that are possible in a state of the system.
//!
//! Time passes only by an action, and only to a time at which the decision of a client or a request can
//! change.

use crate::behavior::{CallId, Op};
use crate::rules::{Rules, millis};
use crate::scenario::Client;
use crate::world::{Running, World};
use event_ingest::deadline::{FUNCTION_TIMEOUT, OWNER_WAIT, RESERVE};
use std::collections::BTreeSet;
use std::time::Duration;

/// One step of a schedule.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// A client starts its next attempt.
    Begin(usize),
    /// Something happens to a call.
    Turn(usize, CallId, Turn),
    /// A sandbox dies. Its calls may still take effect.
    Crash(usize),
    /// A call without a caller takes effect.
    Land(usize),
    /// A client stalls until a time: its calls are slow, its sandbox is frozen, or its retry is late.
    Stall(usize, u64),
    /// Every client sleeps or stalls, so time passes until the first of them continues.
    Tick(u64),
    /// The TTL of the table deletes an expired record.
    Expire(usize),
}

/// An event in the life of a call.
#[derive(Clone, Copy, Debug)]
pub enum Turn {
    /// The call takes effect, and its caller receives the reply.
    Done,
    /// The call takes effect, and the reply arrives at this time.
    DelayReply(u64),
    /// A delayed reply arrives.
    DeliverReply,
    /// The call has no effect, and its caller receives an error.
    Refuse,
    /// The call takes effect, but the reply is lost.
    LoseReply,
    /// The call takes effect, the reply is lost, and the SDK repeats the call.
    RetryAfterLostReply,
    /// The call times out. It may still take effect.
    GiveUp,
    /// SQS accepts only these messages of a send, and the caller receives the results.
    AcceptSome(u16),
    /// SQS accepts only these messages of a send, and the reply is lost.
    AcceptSomeLoseReply(u16),
    /// SQS reports a permanent failure of the message with this number, and accepts the others.
    Reject(u8),
    /// A sleep ends.
    Wake,
}

impl Rules {
    /// The actions that are possible in a state.
    pub fn actions(&self, world: &World) -> Vec<Action> {
        let mut actions = Vec::new();
        for (client, state) in world.clients.iter().enumerate() {
            match &state.running {
                _ if world.now < state.stalled_until => {}
                None if self.may_begin(world, client) => {
                    actions.push(Action::Begin(client));
                    let stalls = self.stalls(world, client, None).into_iter();
                    actions.extend(stalls.map(|until| Action::Stall(client, until)));
                }
                None => {}
                Some(running) => self.turns(world, client, running, &mut actions),
            }
            if state.running.is_some() && world.faults > 0 {
                actions.push(Action::Crash(client));
            }
        }
        actions.extend((0..world.in_flight.len()).map(Action::Land));
        for (number, key) in self.keys.iter().enumerate() {
            if world.table.get(key).is_some_and(|record| record.expires_at * 1000 <= world.now) {
                actions.push(Action::Expire(number));
            }
        }
        actions.extend(self.tick(world));
        actions
    }

    /// Whether a client may start its next attempt: at first, after no response, and after a 5xx. A client
    /// whose 202 was lost may retry, which counts as a fault.
    fn may_begin(&self, world: &World, client: usize) -> bool {
        let (state, clients) = (&world.clients[client], &self.scenario.clients);
        let is_left = usize::from(state.begun) < clients[client].attempts.len();
        // The order in which two equal clients start makes no difference.
        let same_client_is_first =
            client > 0 && clients[client] == clients[client - 1] && world.clients[client - 1].begun == 0;
        let may_start = clients[client].after.is_none_or(|first| world.clients[first].satisfied);
        // A client that continues with its next batch has received the success.
        let continues =
            |(number, other): (usize, &Client)| other.after == Some(client) && world.clients[number].begun > 0;
        let may_lose_success = world.faults > 0 && !clients.iter().enumerate().any(continues);
        is_left && may_start && !same_client_is_first && (!state.satisfied || may_lose_success)
    }

    fn turns(&self, world: &World, client: usize, running: &Running, actions: &mut Vec<Action>) {
        let local_time = self.local_time(running.attempt, world.now);
        let stalls = self.stalls(world, client, Some(running));
        for call in &self.histories.node(running.node).calls {
            let mut add = |turn| actions.push(Action::Turn(client, call.id, turn));
            let is_held = running.delayed.iter().any(|(id, _)| *id == call.id);
            if local_time >= call.by && call.op != Op::Sleep {
                add(Turn::GiveUp);
            }
            match &call.op {
                _ if is_held => add(Turn::DeliverReply),
                Op::Sleep if local_time >= call.by => add(Turn::Wake),
                Op::Sleep => {}
                op => {
                    add(Turn::Done);
                    // A delayed reply to a read contains an old record.
                    for &until in &stalls {
                        add(Turn::DelayReply(until));
                    }
                    if world.faults > 0 {
                        faulty_turns(op).into_iter().for_each(add);
                    }
                }
            }
        }
        actions.extend(stalls.into_iter().map(|until| Action::Stall(client, until)));
    }

    /// The times until which a client may stall: those at which its possible actions change.
    fn stalls(&self, world: &World, client: usize, running: Option<&Running>) -> Vec<u64> {
        if world.stalls == 0 {
            return Vec::new();
        }
        let mut instants: Vec<u64> = Vec::new();
        if let Some(running) = running {
            let reserve = running.started + millis(FUNCTION_TIMEOUT) - millis(RESERVE);
            instants.extend([
                reserve,
                reserve + 1,
                running.started + millis(OWNER_WAIT),
                running.started + millis(FUNCTION_TIMEOUT),
            ]);
            instants.extend(self.due_times(running));
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
        let longest = running.map_or(u64::MAX, |running| running.started + millis(FUNCTION_TIMEOUT));
        instants.retain(|&instant| instant > world.now && instant <= longest);
        instants.sort_unstable();
        instants.dedup();
        instants
    }

    /// The passage of time, if every client waits for it.
    fn tick(&self, world: &World) -> Option<Action> {
        let mut first = u64::MAX;
        for state in &world.clients {
            if world.now < state.stalled_until {
                first = first.min(state.stalled_until);
            } else if let Some(running) = &state.running {
                let calls = &self.histories.node(running.node).calls;
                let wakes = calls.iter().map(|call| match call.op {
                    Op::Sleep => self.real_time(running.attempt, call.by),
                    _ => 0,
                });
                first = first.min(wakes.min().unwrap_or(0));
            }
        }
        (world.now < first && first < u64::MAX).then_some(Action::Tick(first))
    }

    /// The times at which the calls of a request time out and its sleeps end. A call that was already
    /// overdue at its start counts from its start.
    pub fn due_times<'a>(&'a self, running: &'a Running) -> impl Iterator<Item = u64> + 'a {
        self.histories
            .node(running.node)
            .calls
            .iter()
            .map(|call| self.real_time(running.attempt, call.by.max(call.issued)))
    }
}

/// The faults that are possible for a call.
fn faulty_turns(op: &Op) -> Vec<Turn> {
    match op {
        Op::Get | Op::Sleep => vec![Turn::Refuse],
        Op::Send { messages } => {
            let all = u16::try_from((1_u32 << messages.len()) - 1).expect("a call has at most ten messages");
            let some: BTreeSet<u16> = [1, all & !1].into_iter().filter(|some| *some != 0 && *some != all).collect();
            let lost_reply = some.iter().copied().chain([0, all]);
            let mut turns = vec![Turn::Refuse, Turn::Reject(0)];
            turns.extend(some.iter().copied().map(Turn::AcceptSome));
            turns.extend(lost_reply.map(Turn::AcceptSomeLoseReply));
            turns
        }
        _ => vec![Turn::Refuse, Turn::LoseReply, Turn::RetryAfterLostReply],
    }
}
