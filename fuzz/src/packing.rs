//! The target `packing`: a generated batch, sent to a queue whose failures the input determines.

use super::MIB;
use super::checks::Checks;
use super::generate::{Plan, Size, body_of};
use super::messages::{Packing, assert_few, assert_same_events, assert_same_values};
use super::reference::in_message;
use arbitrary::Unstructured;
use contract::batch::Batch;

/// Sends a valid batch that is generated from the input.
///
/// # Panics
/// If an event is lost, duplicated, changed or out of order, or if a limit of SQS is exceeded.
pub fn run(input: &[u8], checks: Checks) {
    // This fails only if an input is longer than the fuzzer's inputs.
    let Ok(plan) = Plan::generate(Unstructured::new(input), Size::of(input)) else { return };
    let of_standard_queue = event_ingest::packing::Packing::standard(plan.max_events_per_message);
    let packing = Packing::of(&plan.project, plan.mode, of_standard_queue);
    let body = body_of(&plan.events);
    let batch = Batch::parse(body.as_bytes()).expect("generated batches are valid");
    let bound = Packing::bound(body.len(), plan.events.len(), plan.results.len());
    let deliver = || packing.deliver(&batch, &plan.delivered, &plan.results);
    let (queue, delivery) = bound.check(checks.meter, deliver);
    let messages = queue.messages();
    let mut times = vec![0; plan.events.len()];
    plan.delivered.iter().for_each(|index| times[*index] += 1);
    for (index, event) in messages.iter().flat_map(|message| packing.read(message)) {
        assert_eq!(event, in_message(&plan.events[index]), "event {index} was changed");
        times[index] += 1;
    }
    for (index, times) in times.into_iter().enumerate() {
        assert_eq!(times, usize::from(delivery.delivered.contains(index)), "event {index} was sent {times} times");
    }
    if plan.results.is_empty() {
        assert!(delivery.delivered.covers(0..plan.events.len()), "the queue acknowledged all, yet some are missing");
    }
    // A failure causes at most one resend of one message, and at most one further round of calls.
    let (failures, offered) = (plan.results.len(), queue.offered());
    assert!(offered.messages <= plan.events.len() + failures, "{offered:?}");
    assert!(queue.sends() <= 1 + failures + offered.messages / 10 + 2 * offered.bytes / MIB, "{offered:?}");

    // Sending the events that a consumer decodes gives the same messages again.
    let (queue, _) = packing.deliver(&batch, &[], &[]);
    let messages = queue.messages();
    let indexed: Vec<_> = plan.events.iter().enumerate().collect();
    assert_same_events(&indexed, &messages);
    assert_few(&queue, plan.events.len(), plan.max_events_per_message);
    if checks.are_slow(input) {
        assert_same_values(&indexed, &messages);
    }
    if in_message(&body) == body {
        let events = messages.iter().flat_map(|message| packing.read(message)).map(|(_, event)| event);
        let body = body_of(&events.collect::<Vec<_>>());
        let batch = Batch::parse(body.as_bytes()).expect("the batch was valid before");
        assert_eq!(*packing.deliver(&batch, &[], &[]).0.messages(), *messages);
    }
}
