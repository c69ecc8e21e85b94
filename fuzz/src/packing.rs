//! The target `packing`: a generated batch, sent to a queue whose failures the input determines.

use super::generate::event;
use super::messages::{Packing, assert_few, assert_same_events};
use super::meter::Meter;
use super::reference::{MAX_BODY_BYTES, in_message};
use super::{KIB, MIB};
use arbitrary::{Result as Generated, Unstructured};
use contract::batch::Batch;
use contract::tenant::Mode;
use event_ingest::delivery::SendResult;
use std::num::NonZeroU16;

/// The most bytes of most batches.
const SMALL_BATCH: usize = 16 * KIB;

/// Sends a valid batch that is generated from the input.
///
/// # Panics
/// If an event is lost, duplicated, changed or out of order, or if a limit of SQS is exceeded.
pub fn run(input: &[u8], meter: Meter) {
    // This fails only if an input is longer than the fuzzer's inputs.
    let Ok(plan) = Plan::generate(&mut Unstructured::new(input)) else { return };
    let body = body_of(&plan.events);
    let batch = Batch::parse(body.as_bytes()).expect("generated batches are valid");
    let bound = Packing::bound(body.len(), plan.events.len(), plan.results.len());
    let deliver = || plan.packing.deliver(&batch, &plan.delivered, &plan.results);
    let (queue, delivery) = bound.check(meter, deliver);
    let sent: Vec<(usize, String)> = queue.messages().iter().flat_map(|message| plan.packing.read(message)).collect();
    for (index, event) in &sent {
        assert_eq!(*event, in_message(&plan.events[*index]), "event {index} was changed");
    }
    let mut times = vec![0; plan.events.len()];
    plan.delivered.iter().chain(sent.iter().map(|(index, _)| index)).for_each(|index| times[*index] += 1);
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
    let (queue, _) = plan.packing.deliver(&batch, &[], &[]);
    let messages = queue.messages();
    let indexed: Vec<_> = plan.events.iter().enumerate().collect();
    assert_same_events(&indexed, &messages);
    assert_few(&queue, plan.events.len(), plan.max_events_per_message);
    if !body.contains(['\u{FFFE}', '\u{FFFF}']) {
        let events = messages.iter().flat_map(|message| plan.packing.read(message)).map(|(_, event)| event);
        let body = body_of(&events.collect::<Vec<_>>());
        let batch = Batch::parse(body.as_bytes()).expect("the batch was valid before");
        assert_eq!(plan.packing.deliver(&batch, &[], &[]).0.messages(), messages);
    }
}

fn body_of(events: &[String]) -> String {
    format!("{{\"events\":[{}]}}", events.join(","))
}

/// The generated batch and the conditions of its delivery.
struct Plan {
    packing: Packing,
    max_events_per_message: NonZeroU16,
    events: Vec<String>,
    /// The events that an earlier attempt delivered.
    delivered: Vec<usize>,
    /// The results of the first messages; the queue acknowledges all others.
    results: Vec<SendResult>,
}

impl Plan {
    fn generate(input: &mut Unstructured<'_>) -> Generated<Self> {
        let max_events_per_message = NonZeroU16::MIN.saturating_add(input.int_in_range(0..=499)?);
        let project = "p".repeat(input.int_in_range(1..=64)?);
        let mode = if input.arbitrary()? { Mode::Live } else { Mode::Test };
        let results = (0..input.int_in_range(0..=12)?).map(|_| {
            input
                .choose(&[SendResult::Acknowledged, SendResult::Retryable, SendResult::Unknown, SendResult::Permanent])
                .copied()
        });
        let results = results.collect::<Generated<Vec<_>>>()?;
        let delivered_bits: u8 = input.arbitrary()?;

        // Large batches take a hundred times as long.
        let most_bytes = if input.ratio(1, 64)? { MAX_BODY_BYTES - 16 } else { SMALL_BATCH };
        let mut events: Vec<String> = Vec::new();
        let mut bytes = 0;
        while events.is_empty() || (!input.is_empty() && events.len() < 500) {
            let room = most_bytes - bytes;
            let event = event(input, room)?;
            let times = input.int_in_range(1..=100)?.min(500 - events.len()).min(room / (event.len() + 1));
            if times == 0 {
                break;
            }
            bytes += times * (event.len() + 1);
            events.extend(vec![event; times]);
        }
        if events.is_empty() {
            // The first event alone is larger than the batch may be.
            return Err(arbitrary::Error::IncorrectFormat);
        }
        let is_delivered = |index: &usize| delivered_bits >> (index % 8) & 1 == 1;
        let delivered = (0..events.len()).filter(is_delivered).collect();
        let packing = Packing::of(&project, mode, max_events_per_message);
        Ok(Self { packing, max_events_per_message, events, delivered, results })
    }
}
