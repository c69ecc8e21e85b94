//! The search: every schedule of a scenario, each state once.

use crate::behaviour::{Call, CallId, Op};
use crate::guarantees::{Violation, short};
use crate::scenario::{BEGIN, Scenario};
use crate::world::{Action, Rules, Turn, World};
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

/// What one exploration saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Different states of the whole system.
    pub states: usize,
    /// Steps from a state to a next one.
    pub steps: usize,
    /// Different orders of steps from the first state to an end. They share states, so there are
    /// far more of them than steps.
    pub schedules: f64,
    /// Different histories of a request, for each of which the pipeline ran.
    pub histories: usize,
    pub longest: usize,
    pub took: Duration,
}

/// Explores every schedule of a scenario.
///
/// A state is not explored again when its 128-bit hash was seen before. For two of n states to
/// collide has a chance of about n²/2¹²⁹: for a hundred million, 10⁻²³.
///
/// # Panics
/// With the shortest schedule that breaks a guarantee.
pub fn explore(scenario: Scenario) -> Counts {
    let begun = Instant::now();
    let mut search = Search { rules: Rules::new(scenario), seen: HashMap::new(), steps: 0, longest: 0 };
    let first = search.rules.first_world();
    match search.visit(&first, 0) {
        Ok(schedules) => {
            let counts = Counts {
                states: search.seen.len(),
                steps: search.steps,
                schedules,
                histories: search.rules.lab.runs(),
                longest: search.longest,
                took: begun.elapsed(),
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

/// No schedule of our scenarios is half as long; a request that never ends has no other mark.
const TOO_LONG: usize = 250;

struct Search {
    rules: Rules,
    /// The schedules that begin at each state seen.
    seen: HashMap<u128, f64>,
    steps: usize,
    longest: usize,
}

impl Search {
    /// Explores what can follow a world, and counts the schedules.
    fn visit(&mut self, world: &World, depth: usize) -> Result<f64, Violation> {
        if depth > TOO_LONG {
            return Err(Violation("every request ends: this one goes on and on".to_owned()));
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
        let somebody_runs = world.seats.iter().any(|seat| seat.live.is_some());
        if somebody_runs { Ok(()) } else { self.rules.check_epilogue(world) }
    }
}

/// Every step changes something that no later one changes back (time, a budget, a request's
/// history), so no schedule meets a state twice and the search ends.
fn hash(world: &World) -> u128 {
    let mut half = [DefaultHasher::new(), DefaultHasher::new()];
    half[1].write_u8(1);
    let [low, high] = half.map(|mut hasher| {
        world.hash(&mut hasher);
        u128::from(hasher.finish())
    });
    high << 64 | low
}

/// Finds the shortest schedule to a violation, breadth first, and tells it.
fn shortest(rules: Rules, found: &Violation) -> String {
    let mut search = Search { rules, seen: HashMap::new(), steps: 0, longest: 0 };
    let first = search.rules.first_world();
    let mut seen = HashSet::from([hash(&first)]);
    let mut links: Vec<(usize, Option<Action>)> = vec![(0, None)];
    let mut waiting = VecDeque::from([(0, first)]);
    while let Some((number, world)) = waiting.pop_front() {
        if let Err(violation) = search.check(&world) {
            return tell(&mut search.rules, &links, number, None, &violation);
        }
        for action in search.rules.actions(&world) {
            match search.rules.apply(&world, action) {
                _ if depth(&links, number) > TOO_LONG => return tell(&mut search.rules, &links, number, None, found),
                Err(violation) => return tell(&mut search.rules, &links, number, Some(action), &violation),
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

/// One line a step.
fn tell(
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
        // That time passes shows in the first column.
        if !matches!(action, Action::Tick(_) | Action::Turn(_, _, Turn::Wake)) {
            let _ = writeln!(text, "  {when:>7} ms  {what}");
        }
        let Ok(next) = next else { break };
        for (before, after) in world.seats.iter().zip(&next.seats) {
            if let (Action::Tick(_), Some(live), None) = (action, &before.live, &after.live) {
                let _ = writeln!(text, "             {} is killed at its deadline", rules.attempt(live.attempt).name);
            }
        }
        world = next;
    }
    text
}

fn describe(rules: &Rules, world: &World, action: Action) -> String {
    let name = |client: usize| {
        let live = world.seats[client].live.as_ref();
        live.map_or_else(|| format!("c{client}"), |live| rules.attempt(live.attempt).name.clone())
    };
    match action {
        Action::Begin(client) => format!("{} begins attempt {}", name(client), world.seats[client].begun + 1),
        Action::Turn(client, call, turn) => {
            let call = call_of(rules, world, client, call);
            let table = short(world.table.get(&rules.attempt(rules_attempt(world, client)).key));
            let turn = match turn {
                Turn::Done => "done".to_owned(),
                Turn::Hold(until) => format!("done, answered only at {} ms", until - BEGIN),
                turn => format!("{turn:?}"),
            };
            format!("{} {}: {turn}   (table: {table})", name(client), describe_op(call))
        }
        Action::Crash(client) => format!("{} dies", name(client)),
        Action::Land(number) => format!("{} lands late", world.flying[number].describe(rules)),
        Action::Tick(_) => String::new(),
        Action::Stall(client, until) => format!("{} stalls up to {} ms", name(client), until - BEGIN),
        Action::Expire(key) => format!("TTL deletes the record of key {key}"),
    }
}

fn rules_attempt(world: &World, client: usize) -> u8 {
    world.seats[client].live.as_ref().expect("alive").attempt
}

fn call_of<'a>(rules: &'a Rules, world: &World, client: usize, id: CallId) -> &'a Call {
    let node = world.seats[client].live.as_ref().expect("alive").node;
    rules.lab.node(node).calls.iter().find(|call| call.id == id).expect("a call that waits")
}

/// A call in a few words.
pub fn describe_op(call: &Call) -> String {
    match &call.op {
        Op::Get => "get".to_owned(),
        Op::Claim { .. } => "claim".to_owned(),
        Op::TakeOver { take_over, .. } => format!("take over from {}", take_over.seen.as_str()),
        Op::Complete { .. } => "complete".to_owned(),
        Op::Release { delivered: None, .. } => "release".to_owned(),
        Op::Release { delivered: Some(delivered), .. } => format!("release with {delivered:?}"),
        Op::Send { parcels } => {
            let messages: Vec<_> = parcels.iter().map(|parcel| &parcel.events).collect();
            format!("send {messages:?}")
        }
        Op::Sleep => "sleep".to_owned(),
    }
}
