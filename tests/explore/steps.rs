//! The effect of each action on the state of the system.

use crate::actions::{Action, Turn};
use crate::behavior::{Call, CallId, NodeId, Observation, Op, Reply, Response};
use crate::guarantees::{Violation, Write};
use crate::rules::{LONGEST_LEASE, Rules, millis};
use crate::scenario::AttemptId;
use crate::world::{Caller, InFlight, Running, World};
use event_ingest::deadline::FUNCTION_TIMEOUT;
use event_ingest::delivery::SendResult;
use std::rc::Rc;

impl Rules {
    /// Returns the state after an action.
    pub fn apply(&mut self, before: &World, action: Action) -> Result<World, Violation> {
        let mut world = before.clone();
        match action {
            Action::Begin(client) => {
                let state = &mut world.clients[client];
                if std::mem::take(&mut state.satisfied) {
                    world.faults -= 1;
                }
                let attempt = self.first_attempts[client] + state.begun;
                state.begun += 1;
                self.begin(&mut world, client, attempt)?;
            }
            Action::Turn(client, call, turn) => self.turn(&mut world, client, call, turn)?,
            Action::Crash(client) => {
                world.faults -= 1;
                self.die(&mut world, client, before.now);
            }
            Action::Land(number) => {
                let InFlight { caller, call, .. } = world.in_flight.remove(number);
                self.effect(&mut world, caller, &call, u16::MAX)?;
            }
            Action::Tick(to) => self.advance(&mut world, to)?,
            Action::Stall(client, until) => world.stall(client, until),
            Action::Expire(key) => Rc::make_mut(&mut world.table).delete(&self.keys[key]),
        }
        world.in_flight.sort_by_key(|in_flight| (in_flight.caller, in_flight.call.id, in_flight.until));
        world.copies.sort_unstable();
        Ok(world)
    }

    pub fn begin(&mut self, world: &mut World, client: usize, attempt: AttemptId) -> Result<(), Violation> {
        let node = self.histories.begin(attempt, self.local_time(attempt, world.now));
        let running = Running {
            attempt,
            node,
            started: world.now,
            frozen: false,
            sent: false,
            permanent_failure: false,
            write: Write::None,
            learned_at: world.now,
            delayed: Vec::new(),
        };
        world.clients[client].running = Some(running);
        self.follow_up(world, client, None)
    }

    pub fn turn(&mut self, world: &mut World, client: usize, id: CallId, turn: Turn) -> Result<(), Violation> {
        let running = world.clients[client].running.as_ref().expect("a running request");
        let caller = running.caller();
        let calls = &self.histories.node(running.node).calls;
        let call = Rc::clone(calls.iter().find(|call| call.id == id).expect("the call waits"));
        if !matches!(turn, Turn::Done | Turn::DelayReply(_) | Turn::DeliverReply | Turn::GiveUp | Turn::Wake) {
            world.faults -= 1;
        }
        let reply = match turn {
            Turn::Wake => Reply::Woke,
            Turn::Done => self.effect(world, caller, &call, u16::MAX)?,
            Turn::AcceptSome(taken) => self.effect(world, caller, &call, taken)?,
            Turn::DelayReply(until) => {
                let reply = self.effect(world, caller, &call, u16::MAX)?;
                world.clients[client].running.as_mut().expect("a running request").delayed.push((id, reply));
                world.stall(client, until);
                return Ok(());
            }
            Turn::RetryAfterLostReply => {
                self.effect(world, caller, &call, u16::MAX)?;
                return Ok(());
            }
            Turn::DeliverReply => {
                running.delayed.iter().find(|(delayed, _)| *delayed == id).expect("delayed").1.clone()
            }
            Turn::Refuse => refusal(&call.op),
            Turn::LoseReply => {
                self.effect(world, caller, &call, u16::MAX)?;
                Reply::Unavailable
            }
            Turn::AcceptSomeLoseReply(taken) => {
                self.effect(world, caller, &call, taken)?;
                Reply::Unavailable
            }
            Turn::Reject(number) => {
                let taken = !(1 << number);
                let Reply::Sent(mut results) = self.effect(world, caller, &call, taken)? else { unreachable!() };
                results[usize::from(number)] = SendResult::Permanent;
                Reply::Sent(results)
            }
            Turn::GiveUp => {
                let has_taken_effect = running.delayed.iter().any(|(delayed, _)| *delayed == id);
                if !has_taken_effect {
                    self.leave_in_flight(world, caller, call.clone(), world.now);
                }
                Reply::Unavailable
            }
        };
        self.receive(world, client, &call, reply)
    }

    /// A request receives a reply, and continues to its next calls or to its end.
    fn receive(&mut self, world: &mut World, client: usize, call: &Call, reply: Reply) -> Result<(), Violation> {
        let now = world.now;
        let running = world.clients[client].running.as_mut().expect("a running request");
        running.delayed.retain(|(delayed, _)| *delayed != call.id);
        running.receive(call, &reply, now);
        let (attempt, before) = (running.attempt, running.node);
        world.record_results(attempt, call, &reply);
        let observation = Observation { call: call.id, reply, now: self.local_time(attempt, now) };
        let after = self.histories.observe(before, observation);
        world.clients[client].running.as_mut().expect("a running request").node = after;
        self.follow_up(world, client, Some((before, call.id)))
    }

    /// Processes the new calls of a request, the calls that it dropped, its response, and its end.
    fn follow_up(&self, world: &mut World, client: usize, from: Option<(NodeId, CallId)>) -> Result<(), Violation> {
        let running = world.clients[client].running.as_ref().expect("a running request");
        let (attempt, caller) = (running.attempt, running.caller());
        let node = self.histories.node(running.node);
        let old = from.map_or(&[][..], |(before, _)| &self.histories.node(before).calls);
        let is_new = |call: &&Rc<Call>| !old.iter().any(|known| known.id == call.id);
        for call in node.calls.iter().filter(is_new) {
            if let Op::Send { messages } = &call.op {
                world.check_send(self, attempt, messages)?;
                world.clients[client].running.as_mut().expect("a running request").sent = true;
            }
        }
        // The calls that the request dropped before a reply.
        let running = world.clients[client].running.as_ref().expect("a running request");
        let is_dropped = |call: &&Rc<Call>| {
            from.is_some_and(|(_, received)| received != call.id)
                && !node.calls.iter().any(|kept| kept.id == call.id)
                && !running.delayed.iter().any(|(delayed, _)| *delayed == call.id)
        };
        let dropped: Vec<Rc<Call>> = old.iter().filter(is_dropped).cloned().collect();
        let abandoned = if node.ended { node.calls.as_slice() } else { &[] };
        for call in dropped.into_iter().chain(abandoned.iter().cloned()) {
            self.leave_in_flight(world, caller, call, world.now);
        }
        let had_answered = from.is_some_and(|(before, _)| self.histories.node(before).response.is_some());
        if let (Some(response), false) = (node.response, had_answered) {
            self.response(world, client, response)?;
        }
        if node.ended {
            let running = world.clients[client].running.take().expect("a running request");
            world.end_sender(running.attempt, running.write == Write::Failed);
        }
        Ok(())
    }

    /// A client receives its response. The sandbox may still have to write the record.
    fn response(&self, world: &mut World, client: usize, response: Response) -> Result<(), Violation> {
        let running = world.clients[client].running.as_ref().expect("a running request");
        world.check_response(self, running, response)?;
        world.clients[client].satisfied =
            matches!(response, Response::Accepted(_) | Response::Replayed(_) | Response::KeyReused);
        if response == Response::KeyReused {
            world.clients[client].begun = u8::MAX;
        }
        Ok(())
    }

    /// A sandbox died at `when`.
    fn die(&self, world: &mut World, client: usize, when: u64) {
        let running = world.clients[client].running.take().expect("a running request");
        for call in &self.histories.node(running.node).calls {
            if !running.delayed.iter().any(|(delayed, _)| *delayed == call.id) {
                self.leave_in_flight(world, Caller { killed: true, ..running.caller() }, Rc::clone(call), when);
            }
        }
        world.end_sender(running.attempt, true);
        world.clients[client].stalled_until = 0;
    }

    fn leave_in_flight(&self, world: &mut World, caller: Caller, call: Rc<Call>, since: u64) {
        if !matches!(call.op, Op::Get | Op::Sleep) {
            let caller = Caller { alive: false, ..caller };
            world.in_flight.push(InFlight { caller, call, until: since + self.scenario.landing });
        }
    }

    /// Lets time pass until `to`: marks frozen requests, kills requests at their deadline, and removes the
    /// calls that can no longer take effect.
    fn advance(&self, world: &mut World, to: u64) -> Result<(), Violation> {
        for client in 0..world.clients.len() {
            let Some(running) = &mut world.clients[client].running else { continue };
            let killed = running.started + millis(FUNCTION_TIMEOUT);
            let is_late = self.due_times(running).any(|expected| expected < to.min(killed));
            running.frozen |= is_late;
            if killed <= to {
                if !running.frozen {
                    return Err(Violation(format!(
                        "it responds in time: {} was killed at its deadline although it was never frozen",
                        self.attempt(running.attempt).name
                    )));
                }
                self.die(world, client, killed);
            }
        }
        world.in_flight.retain(|in_flight| in_flight.until >= to);
        world.now = to;
        for state in &mut world.clients {
            if state.stalled_until <= to {
                state.stalled_until = 0;
            }
        }
        Ok(())
    }

    /// Carries a call out. SQS accepts only the messages of a send that are in the bitmap `taken`.
    fn effect(&self, world: &mut World, caller: Caller, call: &Call, taken: u16) -> Result<Reply, Violation> {
        let attempt = caller.attempt;
        let record_key = &self.attempt(attempt).key;
        // The expiry counts from the acceptance of the batch, not from the attempt to write it.
        let promised = match call.op {
            Op::Complete { .. } | Op::Release { .. } => caller.learned_at,
            _ => self.real_time(attempt, call.issued),
        };
        let before = world.table.get(record_key).cloned();
        let reply = match &call.op {
            Op::Sleep => unreachable!("a sleep is not carried out"),
            Op::Get => Reply::Got(before.clone()),
            Op::Claim { record, now } => Reply::Claimed(Rc::make_mut(&mut world.table).claim(record_key, record, *now)),
            Op::TakeOver { take_over, now } => {
                Reply::Claimed(Rc::make_mut(&mut world.table).take_over(record_key, take_over, *now))
            }
            Op::Complete { owner, delivered, expires_at } => {
                let table = Rc::make_mut(&mut world.table);
                Reply::Fenced(table.complete(record_key, owner, delivered, *expires_at))
            }
            Op::Release { owner, delivered, expires_at } => {
                let table = Rc::make_mut(&mut world.table);
                Reply::Fenced(table.release(record_key, owner, delivered.as_ref(), *expires_at))
            }
            Op::Send { messages } => {
                let is_taken = |number: usize| taken >> number & 1 == 1;
                let mut results = vec![SendResult::Retryable; messages.len()];
                for (number, message) in messages.iter().enumerate().filter(|(number, _)| is_taken(*number)) {
                    results[number] = SendResult::Acknowledged;
                    world.enqueue(self, caller, call.id, message)?;
                }
                Reply::Sent(results)
            }
        };
        if !matches!(call.op, Op::Get | Op::Send { .. }) {
            world.check_write(self, caller, promised, &call.op, before.as_ref())?;
        }
        Ok(reply)
    }

    /// Checks the final retries. In a state in which no request runs, time passes until no call is in flight
    /// and every lease of a dead owner has ended. Then each client retries once without faults, and must get
    /// the expected response.
    pub fn check_final_retries(&mut self, world: &World) -> Result<(), Violation> {
        let mut world = world.clone();
        // Rounded up, so that fewer histories have to be explored.
        world.now = (world.now + LONGEST_LEASE).next_multiple_of(100_000);
        world.in_flight.clear();
        (world.faults, world.stalls) = (0, 0);
        world.clients.iter_mut().for_each(|state| state.stalled_until = 0);
        for client in 0..world.clients.len() {
            let last =
                u8::try_from(self.scenario.clients[client].attempts.len()).expect("the attempts fit into the id");
            let attempt = self.first_attempts[client] + last;
            let expected = world.expected_response(self, attempt);
            world.clients[client].begun = 0;
            self.begin(&mut world, client, attempt)?;
            let mut response = None;
            while let Some(running) = &world.clients[client].running {
                let call = Rc::clone(&self.histories.node(running.node).calls[0]);
                if call.op == Op::Sleep {
                    world.now = world.now.max(self.real_time(attempt, call.by));
                    self.turn(&mut world, client, call.id, Turn::Wake)?;
                } else {
                    self.turn(&mut world, client, call.id, Turn::Done)?;
                }
                response = Some(world.clients[client].satisfied);
            }
            if response != Some(true) {
                return Err(Violation(format!(
                    "3, 6: the response to the final retry {} is a 5xx instead of {expected}",
                    self.attempt(attempt).name
                )));
            }
            world.check_expected(self, attempt, expected)?;
        }
        Ok(())
    }
}

/// The reply to a refused call.
fn refusal(op: &Op) -> Reply {
    match op {
        Op::Send { messages } => Reply::Sent(vec![SendResult::Retryable; messages.len()]),
        _ => Reply::Unavailable,
    }
}
