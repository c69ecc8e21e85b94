//! Every schedule of the real pipeline, up to a bound: contract section 3.
//!
//! `Pipeline::ingest` itself runs here, over ports in memory, and a scheduler of our own decides
//! what happens next at each port call. No second model of the protocol can drift from the code.
//!
//! **What is explored.** Of each scenario below: every order of the clients' port calls × at most
//! `faults` of {a sandbox dies · a call is refused · a call's answer is lost · the SDK repeats a
//! call whose answer was lost · SQS takes some messages of a call, with or without saying so ·
//! SQS rejects a message for ever · the client misses its 202} × at most `stalls` of {a client or
//! its sandbox or its calls hang, before a call's effect or between that and its answer}, each up
//! to any instant at which anybody's decision changes: a call's time-out, the send reserve, the
//! end of waiting, the Lambda deadline, a lease's last and next millisecond, a record's expiry.
//! A request that still runs at its deadline is killed. A call whose caller died or gave it up may
//! land at any later moment up to `landing`. TTL deletes an expired record at any moment. In every
//! state in which nobody runs, everybody retries once without faults, 5 s later ("after
//! everything").
//!
//! **What is not.** More faults, stalls, clients and attempts than given; more than eleven events;
//! jitter other than always none or always the ceiling; a sandbox that goes on after its deadline.
//! Calls take no time unless they stall.
//!
//! The default bound takes well under a minute. The larger one, `make explore`, a few minutes.
#![expect(clippy::expect_used, reason = "a helper that panics is a failed test")]
#![expect(clippy::print_stdout, reason = "how much was explored is part of the result")]

mod behaviour;
mod guarantees;
#[path = "../memory/ports.rs"]
#[expect(dead_code, reason = "the explorer makes its own ports of the table; the contract suite uses these")]
mod memory;
mod scenario;
mod search;
mod world;

use scenario::{Client, Jitter, SKEW, Scenario, client};
use search::explore;
use std::time::Duration;

/// Longer than a lease outlives its holder: a network, or a stall, that keeps no promise.
const LATE: u64 = 1_500;
const HOUR: Duration = Duration::from_hours(1);

/// The scenarios; `more` adds faults and stalls to each.
fn scenarios(more: u8) -> Vec<Scenario> {
    let s = |name, clients: Vec<Client>, faults: u8, stalls: u8| {
        Scenario::new(name, clients).faults(faults + more).stalls(stalls)
    };
    let single = |body| client(body, &[1]);
    vec![
        s("one client, one fault", vec![client(0, &[1, 2])], 1, 0),
        s("twins, one fault", vec![single(0), single(0)], 1, 1),
        s("one client, repacked, three attempts", vec![client(0, &[1, 2, 1])], 2, 1),
        s("one client, no jitter", vec![client(0, &[1, 1])], 2, 1).jitter(Jitter::None),
        s("one client, late landing", vec![client(0, &[1, 1])], 1, 2).landing(LATE),
        s("twins", vec![client(0, &[1, 2]), single(0)], 1, 1),
        s("twins, skewed", vec![single(2), single(2).ahead(SKEW)], 1, 2),
        s("twins, late landing", vec![single(2), single(2)], 1, 2).landing(LATE),
        s("another body under one key", vec![client(0, &[1, 1]), single(1)], 1, 1),
        s("different keys", vec![single(0), single(1).key(1)], 1, 1),
        s("three alike", vec![single(2), single(2), single(2)], 2, 0),
        s("two alike and another body", vec![single(2), single(2), single(1)], 1, 1),
        s("two calls at once", vec![client(3, &[1, 1])], 1, 1),
        s("expiry", vec![single(2), single(2)], 1, 2).window(HOUR),
        s("expiry, another body", vec![single(2), single(1)], 1, 2).window(HOUR),
        s("expiry of what a dead client left", vec![single(0), single(1)], 1, 2).window(HOUR).left_behind(0),
    ]
}

fn explore_all(scenarios: Vec<Scenario>) {
    let counts: Vec<_> = scenarios.into_iter().map(explore).collect();
    println!(
        "{} states, {} steps, {:.1e} schedules; the pipeline ran for {} histories",
        counts.iter().map(|counts| counts.states).sum::<usize>(),
        counts.iter().map(|counts| counts.steps).sum::<usize>(),
        counts.iter().map(|counts| counts.schedules).sum::<f64>(),
        counts.iter().map(|counts| counts.histories).sum::<usize>(),
    );
}

#[test]
fn the_guarantees_hold_in_every_schedule() {
    explore_all(scenarios(0));
}

#[test]
#[ignore = "the larger bound: one more fault everywhere, a few minutes"]
fn the_guarantees_hold_in_every_schedule_of_the_larger_bound() {
    explore_all(scenarios(1));
}
