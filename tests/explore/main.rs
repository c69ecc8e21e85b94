//! Explores every schedule of the pipeline within a bound, and checks docs/contract.md, "Guarantees".
//!
//! The tests run `Pipeline::ingest` itself over ports in memory, and a scheduler decides at each port
//! call what happens next. There is no second model of the protocol that could differ from the code.
//!
//! **What is explored.** For each scenario below, every order of the clients' port calls, combined with
//! at most `faults` faults and at most `stalls` stalls.
//!
//! - Faults: a sandbox dies. A call is refused. The reply to a call is lost. The SDK repeats a call whose
//!   reply was lost. SQS accepts some messages of a call, and the reply arrives or is lost. SQS reports a
//!   permanent failure of a message. The 202 does not reach the client.
//! - Stalls: a client, its sandbox, or its calls hang, before a call takes effect or between its effect and
//!   its reply. A stall lasts until any time at which a decision changes: the time-out of a call, the send
//!   reserve, the end of the wait for an owner, the Lambda deadline, the last millisecond of a lease and
//!   the one after it, or the expiry of a record.
//! - A request that still runs at its deadline is killed. A call whose caller died or gave up may take
//!   effect at any later time within `landing`. The TTL deletes an expired record at any time.
//! - In every state in which no request runs, 5 s pass, and then each client retries once without faults.
//! - An ordered queue drops a message that has the group and the deduplication id of an earlier one. In addition
//!   to the other guarantees, no event may be in it twice, and each group must be in order.
//!
//! **What is not explored.** More faults, stalls, clients, and attempts than given; more than eleven
//! events; jitter other than always zero or always the ceiling; a sandbox that continues after its
//! deadline. Calls take no time unless they stall.
//!
//! The default bound takes well under a minute. The larger bound (`make explore`) takes a few minutes.
#![cfg(test)]

mod actions;
mod behavior;
mod guarantees;
#[path = "../memory/ports.rs"]
#[expect(dead_code, reason = "the explorer implements the ports itself; the port tests use these implementations")]
mod memory;
mod rules;
mod scenario;
mod search;
mod steps;
mod world;

use scenario::{Client, Jitter, SKEW, Scenario, client};
use search::explore;
use std::time::Duration;

/// A time longer than the margin of the lease, for networks and stalls that exceed it.
const LATE: u64 = 1_500;
const HOUR: Duration = Duration::from_hours(1);

/// The scenarios. `more` is added to the faults of each.
fn scenarios(more: u8) -> Vec<Scenario> {
    let s = |name, clients: Vec<Client>, faults: u8, stalls: u8| {
        Scenario::new(name, clients).faults(faults + more).stalls(stalls)
    };
    let single = |body| client(body, &[1]);
    vec![
        s("one client, one fault", vec![client(0, &[1, 2])], 1, 0),
        s("two equal clients, one fault", vec![single(0), single(0)], 1, 1),
        s("one client, repacked, three attempts", vec![client(0, &[1, 2, 1])], 2, 1),
        s("one client, no jitter", vec![client(0, &[1, 1])], 2, 1).jitter(Jitter::None),
        s("one client, late effects", vec![client(0, &[1, 1])], 1, 2).landing(LATE),
        s("two equal clients", vec![client(0, &[1, 2]), single(0)], 1, 1),
        s("two equal clients, skewed clocks", vec![single(2), single(2).ahead(SKEW)], 1, 2),
        s("two equal clients, late effects", vec![single(2), single(2)], 1, 2).landing(LATE),
        s("another body with the same key", vec![client(0, &[1, 1]), single(1)], 1, 1),
        s("different keys", vec![single(0), single(1).key(1)], 1, 1),
        s("three equal clients", vec![single(2), single(2), single(2)], 2, 0),
        s("two equal clients and another body", vec![single(2), single(2), single(1)], 1, 1),
        s("two concurrent calls", vec![client(3, &[1, 1])], 1, 1),
        s("bulk", vec![client(4, &[1, 2])], 2, 1),
        s("two equal bulk requests", vec![single(4), single(4)], 1, 1),
        s("bulk, other rules after a deployment", vec![client(4, &[1, 1]).before_deployment(1)], 2, 1),
        s("bulk, two equal clients during a deployment", vec![single(4).before_deployment(1), single(4)], 1, 1),
        s("ordered queue", vec![client(5, &[1, 1])], 2, 1).ordered(2),
        s("ordered queue, one lane", vec![client(0, &[1, 1, 1])], 2, 1).ordered(1),
        s("ordered queue, late effects", vec![client(0, &[1, 1])], 1, 2).ordered(1).landing(LATE),
        s("ordered queue, two equal clients", vec![single(0), single(0)], 1, 1).ordered(1),
        s("ordered queue, two equal clients, skewed clocks", vec![single(0), single(0).ahead(SKEW)], 1, 1).ordered(1),
        s("ordered queue, two batches of one client", vec![client(0, &[1, 1]), single(0).key(1).after(0)], 2, 1)
            .ordered(1),
        s("ordered queue, other packing", vec![client(5, &[1, 2, 1]).lanes(&[1, 2, 3])], 2, 1).ordered(2),
        s("ordered bulk", vec![client(4, &[1, 1])], 2, 1).ordered(2),
        s("expiry", vec![single(2), single(2)], 1, 2).window(HOUR),
        s("expiry, another body", vec![single(2), single(1)], 1, 2).window(HOUR),
        s("expiry of the record of a dead client", vec![single(0), single(1)], 1, 2).window(HOUR).left_behind(0),
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
#[ignore = "takes a few minutes: one more fault in every scenario"]
fn the_guarantees_hold_in_every_schedule_with_one_more_fault() {
    explore_all(scenarios(1));
}
