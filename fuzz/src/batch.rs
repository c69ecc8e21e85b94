//! The target `batch`: a body, parsed as a batch and as a single event.

use super::KIB;
use super::expand::expand;
use super::messages::{MAX_EVENTS_PER_MESSAGE, Packing, assert_few, assert_same_events};
use super::meter::{Bound, Meter};
use super::reference::{self, Verdict, assert_violations};
use contract::batch::{Batch, BatchError};

/// The most bytes of a body: enough for the limits of an event.
const MAX_EXPANDED: usize = 1_100_000;

/// Parses a body. The violations must be those of the reference; the events of a valid body must reach
/// the queue unchanged.
///
/// # Panics
/// If the violations differ or an event changes.
pub fn run(input: &[u8], meter: Meter) {
    let body = expand(input, MAX_EXPANDED);
    let parsed = parsing(&body).check(meter, || Batch::parse(&body));
    let verdict = reference::batch(&body);
    compare(&parsed, &verdict);
    if let (Ok(batch), Verdict::Events(events)) = (&parsed, verdict) {
        let packing = Packing::new(MAX_EVENTS_PER_MESSAGE);
        let bound = Packing::bound(body.len(), events.len(), 0);
        let (queue, delivery) = bound.check(meter, || packing.deliver(batch, &[], &[]));
        assert!(delivery.delivered.covers(0..events.len()));
        assert_same_events(&events, &queue.messages());
        assert_few(&queue, events.len(), MAX_EVENTS_PER_MESSAGE);
    }
    let parsed = parsing(&body).check(meter, || Batch::parse_single(&body));
    compare(&parsed, &reference::single(&body));
}

/// Parsing copies only strings with escapes, one at a time, and reports at most 100 violations. A scan for
/// syntax needs a byte for each level of nesting, in a buffer that doubles its size.
fn parsing(body: &[u8]) -> Bound {
    Bound { count: 2 * KIB + body.len() / 2, bytes: 128 * KIB + 12 * body.len(), peak: 128 * KIB + 6 * body.len() }
}

fn compare(parsed: &Result<Batch<'_>, BatchError>, verdict: &Verdict<'_>) {
    match (parsed, verdict) {
        (Ok(batch), Verdict::Events(events)) => assert_eq!(batch.events().len(), events.len()),
        (Err(BatchError::Malformed(what)), Verdict::Malformed) => assert!(what.contains(" at line "), "{what}"),
        (Err(BatchError::Invalid(found)), Verdict::Invalid(expected)) => {
            let found: Vec<_> =
                found.iter().map(|violation| (violation.field.as_deref(), &*violation.message)).collect();
            assert_violations(&found, expected);
        }
        (parsed, Verdict::Events(_)) => panic!("the reference accepts the body, parsed as {parsed:?}"),
        (parsed, Verdict::Malformed) => panic!("to the reference the body is not JSON, parsed as {parsed:?}"),
        (parsed, Verdict::Invalid(expected)) => panic!("the reference finds {expected:?}, parsed as {parsed:?}"),
    }
}
