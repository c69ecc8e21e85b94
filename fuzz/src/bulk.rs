//! The target `bulk`: a body, parsed as a bulk request and as a single event.

use super::batch::{MAX_EXPANDED, assert_unchanged, compare, parsing};
use super::checks::Checks;
use super::expand::expand;
use super::meter::Bound;
use super::reference::{Body, BulkEvent, BulkVerdict, Verdict, assert_violations};
use contract::batch::{Batch, BatchError, Bulk};

/// Parses a body in both ways. The violations must be those of the reference, and the valid events must be
/// written unchanged.
///
/// # Panics
/// If the violations differ or an event changes.
pub fn run(input: &[u8], checks: Checks) {
    let body = expand(input, MAX_EXPANDED);
    let read = Body::read(&body);
    let parsed = parsing(&body).check(checks.meter, || Batch::parse_single(&body));
    let verdict = read.single();
    compare(&parsed, &verdict);
    if let (Ok(batch), Verdict::Events(events)) = (&parsed, verdict) {
        assert_unchanged(batch, events.into_iter().enumerate());
    }
    let parsed = bulk_parsing(&body).check(checks.meter, || Bulk::parse(&body));
    compare_bulk(&parsed, &read.bulk());
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
            let mut violations = bulk.violations.as_slice();
            for (index, event) in expected.iter().enumerate() {
                let of_event = violations.iter().take_while(|violation| violation.event == Some(index)).count();
                let (found, rest) = violations.split_at(of_event);
                violations = rest;
                match event {
                    BulkEvent::Valid(_) => assert_eq!(found, []),
                    BulkEvent::Invalid(expected) => {
                        let found: Vec<_> =
                            found.iter().map(|one| (one.member.map(str::to_owned), &*one.message)).collect();
                        assert_violations(&found, expected);
                    }
                }
            }
            assert_eq!(violations, [], "violations of other events, or out of order");
            let valid = expected.iter().enumerate().filter_map(|(index, event)| match event {
                BulkEvent::Valid(text) => Some((index, *text)),
                BulkEvent::Invalid(_) => None,
            });
            assert_unchanged(&bulk.batch, valid);
        }
        (Err(BatchError::Malformed(what)), BulkVerdict::Malformed) => assert!(what.contains(" at line "), "{what}"),
        (Err(BatchError::Invalid(found)), BulkVerdict::Invalid(rule)) => {
            assert_eq!((found.len(), found[0].field().as_deref()), (1, Some("events")));
            assert!(found[0].message.contains(rule), "{found:?} instead of {rule}");
        }
        (parsed, _) => panic!("the reference judges the bulk request differently: {parsed:?}"),
    }
}
