//! The target `batch`: a body, parsed as a batch, as a bulk request, and as a single event.

use super::KIB;
use super::expand::expand;
use super::messages::{MAX_EVENTS_PER_MESSAGE, Packing, assert_few, assert_same_events};
use super::meter::{Bound, Meter};
use super::reference::{self, BulkEvent, BulkVerdict, Verdict, assert_violations};
use contract::batch::{Batch, BatchError, Bulk};

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
        let indexed: Vec<_> = events.iter().copied().enumerate().collect();
        assert_same_events(&indexed, &queue.messages());
        assert_few(&queue, events.len(), MAX_EVENTS_PER_MESSAGE);
    }
    let parsed = parsing(&body).check(meter, || Batch::parse_single(&body));
    compare(&parsed, &reference::single(&body));
    let parsed = bulk_parsing(&body).check(meter, || Bulk::parse(&body));
    compare_bulk(&parsed, &reference::bulk(&body));
}

/// Parsing copies only strings with escapes, one at a time, and reports at most 100 violations. A scan for
/// syntax needs a byte for each level of nesting, in a buffer that doubles its size.
fn parsing(body: &[u8]) -> Bound {
    Bound { count: 2 * KIB + body.len() / 2, bytes: 128 * KIB + 12 * body.len(), peak: 128 * KIB + 6 * body.len() }
}

/// As for [`parsing`], except that every violation of at most 1,000 events is reported.
fn bulk_parsing(body: &[u8]) -> Bound {
    let Bound { count, bytes, peak } = parsing(body);
    let violations = 512 * body.len().min(1000);
    Bound { count, bytes: bytes + 2 * violations, peak: peak + 2 * violations }
}

fn compare_bulk(parsed: &Result<Bulk<'_>, BatchError>, verdict: &BulkVerdict<'_>) {
    match (parsed, verdict) {
        (Ok(bulk), BulkVerdict::Events(expected)) => {
            assert_eq!(bulk.batch.received(), expected.len());
            let mut valid = bulk.batch.events().map(|(index, _)| index).peekable();
            for (index, event) in expected.iter().enumerate() {
                let of_event = bulk.violations.iter().filter(|violation| violation.event == Some(index));
                let found: Vec<_> = of_event.map(|found| (found.member.map(str::to_owned), &*found.message)).collect();
                match event {
                    BulkEvent::Valid(_) => assert_eq!((valid.next(), found.len()), (Some(index), 0)),
                    BulkEvent::Invalid(expected) => assert_violations(&found, expected),
                }
            }
            assert_eq!(valid.next(), None);
            assert!(bulk.violations.is_sorted_by_key(|violation| violation.event));
        }
        (Err(BatchError::Malformed(what)), BulkVerdict::Malformed) => assert!(what.contains(" at line "), "{what}"),
        (Err(BatchError::Invalid(found)), BulkVerdict::Invalid(rule)) => {
            assert_eq!((found.len(), found[0].field().as_deref()), (1, Some("events")));
            assert!(found[0].message.contains(rule), "{found:?} instead of {rule}");
        }
        (parsed, _) => panic!("the reference judges the bulk request differently: {parsed:?}"),
    }
}

fn compare(parsed: &Result<Batch<'_>, BatchError>, verdict: &Verdict<'_>) {
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
