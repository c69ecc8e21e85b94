//! The target `batch`: a body, parsed as a batch.

use super::KIB;
use super::checks::Checks;
use super::expand::expand;
use super::messages::{MAX_EVENTS_PER_MESSAGE, Packing, assert_few, assert_same_events};
use super::meter::Bound;
use super::reference::{Body, Verdict, assert_violations, in_message};
use contract::batch::{Batch, BatchError};

/// The most bytes of a body: enough for the limits of an event.
pub const MAX_EXPANDED: usize = 1_100_000;

/// Parses a body. The violations must be those of the reference; the events of a valid body must be written
/// unchanged. For a sample of the valid bodies, the events must reach the queue unchanged.
///
/// # Panics
/// If the violations differ or an event changes.
pub fn run(input: &[u8], checks: Checks) {
    let body = expand(input, MAX_EXPANDED);
    let parsed = parsing(&body).check(checks.meter, || Batch::parse(&body));
    let verdict = Body::read(&body).batch();
    compare(&parsed, &verdict);
    let (Ok(batch), Verdict::Events(events)) = (&parsed, verdict) else { return };
    assert_unchanged(batch, events.iter().copied().enumerate());
    if checks.are_slow(input) {
        let packing = Packing::new(MAX_EVENTS_PER_MESSAGE);
        let bound = Packing::bound(body.len(), events.len(), 0);
        let (queue, delivery) = bound.check(checks.meter, || packing.deliver(batch, &[], &[]));
        assert!(delivery.delivered.covers(0..events.len()));
        let indexed: Vec<_> = events.iter().copied().enumerate().collect();
        assert_same_events(&indexed, &queue.messages());
        assert_few(&queue, events.len(), MAX_EVENTS_PER_MESSAGE);
    }
}

/// Parsing copies only strings with escapes, one at a time, and reports at most 100 violations. A scan for
/// syntax needs a byte for each level of nesting, in a buffer that doubles its size.
pub fn parsing(body: &[u8]) -> Bound {
    Bound { count: 2 * KIB + body.len() / 2, bytes: 128 * KIB + 12 * body.len(), peak: 128 * KIB + 6 * body.len() }
}

/// Asserts that a batch has exactly these events, by index, and writes them as docs/contract.md says.
pub fn assert_unchanged<'body>(batch: &Batch<'_>, expected: impl Iterator<Item = (usize, &'body str)>) {
    let mut written = String::new();
    let mut events = batch.events();
    for (index, text) in expected {
        let (found, event) = events.next().expect("an event");
        written.clear();
        event.write_to(&mut written);
        let expected = in_message(text);
        let is_same = written == *expected;
        assert!(found == index && is_same && event.message_len() == written.len(), "event {index} was changed");
    }
    assert!(events.next().is_none(), "an event too many");
}

/// Asserts that a body was parsed as the reference does.
pub fn compare(parsed: &Result<Batch<'_>, BatchError>, verdict: &Verdict<'_>) {
    match (parsed, verdict) {
        (Ok(batch), Verdict::Events(events)) => assert_eq!(batch.received(), events.len()),
        (Err(BatchError::Malformed(what)), Verdict::Malformed) => assert!(what.contains(" at line "), "{what}"),
        (Err(BatchError::Invalid(found)), Verdict::Invalid(expected)) => {
            let found: Vec<_> = found.iter().map(|violation| (violation.field(), &*violation.message)).collect();
            assert_violations(&found, expected);
        }
        (parsed, Verdict::Events(_)) => panic!("the reference accepts the body, parsed as {parsed:?}"),
        (parsed, Verdict::Malformed) => panic!("to the reference the body is not JSON, parsed as {parsed:?}"),
        (parsed, Verdict::Invalid(expected)) => panic!("the reference finds {expected:?}, parsed as {parsed:?}"),
    }
}
