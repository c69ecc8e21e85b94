//! The search through every schedule of a scenario. Each state is explored once.

use crate::actions::{Action, Turn};
use crate::behavior::{Call, CallId, Op};
use crate::guarantees::{Violation, describe_record};
use crate::rules::Rules;
use crate::scenario::{AttemptId, BEGIN, Scenario};
use crate::world::World;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

/// The size of one exploration.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Distinct states of the whole system.
    pub states: usize,
    /// Steps from one state to another.
    pub steps: usize,
    /// Distinct sequences of steps from the first state to an end. They share states, so there are many more
    /// sequences than steps.
    pub schedules: f64,
    /// Distinct histories of a request. The pipeline ran once for each.
    pub histories: usize,
    /// The steps of the longest schedule.
    pub longest: usize,
    pub took: Duration,
}

/// Explores every schedule of a scenario.
///
/// A state is skipped if its 128-bit hash was seen before. The probability that two of n states have the
/// same hash is about n²/2¹²⁹, which is 10⁻²³ for a hundred million states.
///
/// # Panics
/// With the shortest schedule that breaks a guarantee.
pub fn explore(scenario: Scenario) -> Counts {
    let started = Instant::now();
    let mut search = Search { rules: Rules::new(scenario), seen: HashMap::new(), steps: 0, longest: 0 };
    let first = search.rules.first_world();
    match search.visit(&first, 0) {
        Ok(schedules) => {
            let counts = Counts {
                states: search.seen.len(),
                steps: search.steps,
                schedules,
                histories: search.rules.histories.runs(),
                longest: search.longest,
                took: started.elapsed(),
            };
            println!(
                "{:<44} {:>8} states {:>9} steps {:>9.2e} schedules of up to {:>2} steps, {:>6} histories, {:>5.1} s",
                search.rules.scenario.name,
                counts.states,
                counts.steps,
                counts.schedules,
                counts.longest,
                counts.histories,
                counts.took.as_secs_f32(),
            );
            counts
        }
        Err(violation) => panic!("{}", shortest(search.rules, &violation)),
    }
}

/// More than twice the length of any schedule of the scenarios. A longer schedule means that a request
/// never ends.
const TOO_LONG: usize = 250;

struct Search {
    rules: Rules,
    /// The number of schedules that start at each state, by the hash of the state.
    seen: HashMap<u128, f64>,
    steps: usize,
    longest: usize,
}

impl Search {
    /// Explores the states that can follow a state, and counts the schedules.
    fn visit(&mut self, world: &World, depth: usize) -> Result<f64, Violation> {
        if depth > TOO_LONG {
            return Err(Violation("every request ends: this one does not".to_owned()));
        }
        let hash = hash(world);
        if let Some(&schedules) = self.seen.get(&hash) {
            return Ok(schedules);
        }
        self.longest = self.longest.max(depth);
        self.check(world)?;
        let mut schedules = 0.0;
        for action in self.rules.actions(world) {
            self.steps += 1;
            let next = self.rules.apply(world, action)?;
            schedules += self.visit(&next, depth + 1)?;
        }
        let schedules = f64::max(schedules, 1.0);
        self.seen.insert(hash, schedules);
        Ok(schedules)
    }

    fn check(&mut self, world: &World) -> Result<(), Violation> {
        let any_is_running = world.clients.iter().any(|state| state.running.is_some());
        if any_is_running { Ok(()) } else { self.rules.check_final_retries(world) }
    }
}

/// The hash of a state.
///
/// Every step makes a change that no later step reverts: to the time, a limit, or the history of a request.
/// No schedule therefore contains a state twice, and the search ends.
fn hash(world: &World) -> u128 {
    let mut half = [DefaultHasher::new(), DefaultHasher::new()];
    half[1].write_u8(1);
    let [low, high] = half.map(|mut hasher| {
        world.hash(&mut hasher);
        u128::from(hasher.finish())
    });
    high << 64 | low
}

/// Finds the shortest schedule that leads to a violation, breadth first, and describes it.
fn shortest(rules: Rules, found: &Violation) -> String {
    let mut search = Search { rules, seen: HashMap::new(), steps: 0, longest: 0 };
    let first = search.rules.first_world();
    let mut seen = HashSet::from([hash(&first)]);
    let mut links: Vec<(usize, Option<Action>)> = vec![(0, None)];
    let mut waiting = VecDeque::from([(0, first)]);
    while let Some((number, world)) = waiting.pop_front() {
        if let Err(violation) = search.check(&world) {
            return render(&mut search.rules, &links, number, None, &violation);
        }
        for action in search.rules.actions(&world) {
            match search.rules.apply(&world, action) {
                _ if depth(&links, number) > TOO_LONG => return render(&mut search.rules, &links, number, None, found),
                Err(violation) => return render(&mut search.rules, &links, number, Some(action), &violation),
                Ok(next) if seen.insert(hash(&next)) => {
                    links.push((number, Some(action)));
                    waiting.push_back((links.len() - 1, next));
                }
                Ok(_) => {}
            }
        }
    }
    unreachable!("{found:?} was found depth first")
}

fn depth(links: &[(usize, Option<Action>)], mut number: usize) -> usize {
    let mut depth = 0;
    while let (before, Some(_)) = links[number] {
        number = before;
        depth += 1;
    }
    depth
}

/// Describes a schedule, with one line per step.
fn render(
    rules: &mut Rules,
    links: &[(usize, Option<Action>)],
    end: usize,
    last: Option<Action>,
    violation: &Violation,
) -> String {
    let mut actions: Vec<Action> = last.into_iter().collect();
    let mut number = end;
    while let (before, Some(action)) = links[number] {
        actions.push(action);
        number = before;
    }
    let mut text = format!("{}: guarantee broken: {}\n", rules.scenario.name, violation.0);
    let mut world = rules.first_world();
    for action in actions.into_iter().rev() {
        let when = world.now - BEGIN;
        let what = describe(rules, &world, action);
        let next = rules.apply(&world, action);
        // The first column shows the passage of time.
        if !matches!(action, Action::Tick(_) | Action::Turn(_, _, Turn::Wake)) {
            let _ = writeln!(text, "  {when:>7} ms  {what}");
        }
        let Ok(next) = next else { break };
        for (before, after) in world.clients.iter().zip(&next.clients) {
            if let (Action::Tick(_), Some(running), None) = (action, &before.running, &after.running) {
                let _ =
                    writeln!(text, "             {} is killed at its deadline", rules.attempt(running.attempt).name);
            }
        }
        world = next;
    }
    text
}

fn describe(rules: &Rules, world: &World, action: Action) -> String {
    let name = |client: usize| {
        let running = world.clients[client].running.as_ref();
        running.map_or_else(|| format!("c{client}"), |running| rules.attempt(running.attempt).name.clone())
    };
    match action {
        Action::Begin(client) => format!("{} starts attempt {}", name(client), world.clients[client].begun + 1),
        Action::Turn(client, call, turn) => {
            let call = call_of(rules, world, client, call);
            let table = describe_record(world.table.get(&rules.attempt(current_attempt(world, client)).key));
            let turn = match turn {
                Turn::Done => "done".to_owned(),
                Turn::DelayReply(until) => format!("done, reply delayed until {} ms", until - BEGIN),
                turn => format!("{turn:?}"),
            };
            format!("{} {}: {turn}   (table: {table})", name(client), describe_op(call))
        }
        Action::Crash(client) => format!("{} dies", name(client)),
        Action::Land(number) => format!("{} takes effect late", world.in_flight[number].describe(rules)),
        Action::Tick(_) => String::new(),
        Action::Stall(client, until) => format!("{} stalls until {} ms", name(client), until - BEGIN),
        Action::Expire(key) => format!("TTL deletes the record of key {key}"),
    }
}

/// The attempt that a client is running.
fn current_attempt(world: &World, client: usize) -> AttemptId {
    world.clients[client].running.as_ref().expect("a running request").attempt
}

fn call_of<'a>(rules: &'a Rules, world: &World, client: usize, id: CallId) -> &'a Call {
    let node = world.clients[client].running.as_ref().expect("a running request").node;
    rules.histories.node(node).calls.iter().find(|call| call.id == id).expect("the call waits")
}

/// A short description of a call.
pub fn describe_op(call: &Call) -> String {
    match &call.op {
        Op::Get => "get".to_owned(),
        Op::Claim { .. } => "claim".to_owned(),
        Op::TakeOver { take_over, .. } => format!("take over from {}", take_over.seen.as_str()),
        Op::Complete { .. } => "complete".to_owned(),
        Op::Release { delivered: None, .. } => "release".to_owned(),
        Op::Release { delivered: Some(delivered), .. } => format!("release with {delivered:?}"),
        Op::Send { messages } => {
            let messages: Vec<_> = messages.iter().map(|message| &message.events).collect();
            format!("send {messages:?}")
        }
        Op::Sleep => "sleep".to_owned(),
    }
}
