//! The time budget of one request: until when it may send, write, wait and hold its lease.
//!
//! ```text
//! start                      stop-700        stop-300   stop-100  stop       stop+700
//!   |---- sends may start -----|--- running sends --|-- write --|-- answer --|... lease
//! ```

use crate::clock::Timestamp;
use std::time::Duration;

/// The longest a request may run, and the template's function time-out (contract section 2).
pub const FUNCTION_TIMEOUT: Duration = Duration::from_secs(4);
/// The longest a request waits for a running twin (contract section 3).
pub const TWIN_WAIT: Duration = Duration::from_secs(3);
/// The longest one send may take. SQS usually answers within a tenth of it; a call that has
/// not answered by then most likely never will, and one retry still fits the deadline.
pub const SEND_TIMEOUT: Duration = Duration::from_millis(1500);

/// The shortest time-out worth giving a send of up to 1 MiB.
const SHORTEST_SEND: Duration = Duration::from_millis(400);
/// What is kept for writing the record after the last send.
const RECORD_WRITE: Duration = Duration::from_millis(200);
/// What is kept for handing the answer to Lambda before it ends the sandbox.
const ANSWER: Duration = Duration::from_millis(100);
/// No send starts unless this much is left: it and the record write must fit.
pub const RESERVE: Duration = Duration::from_millis(700);
/// How long the lease outlives the deadline: clock skew between sandboxes, and requests that
/// a killed sandbox had already put on the wire.
const LEASE_MARGIN: Duration = Duration::from_millis(700);

const _: () = assert!(
    RESERVE.as_millis() == (SHORTEST_SEND.as_millis() + RECORD_WRITE.as_millis() + ANSWER.as_millis()),
    "a send that starts at the last moment must leave time for its record"
);
const _: () = assert!(
    FUNCTION_TIMEOUT.as_millis() + LEASE_MARGIN.as_millis() <= 5000,
    "contract section 3, guarantee 6: a dead holder keeps its key for at most 5 s"
);

/// When a request began and when Lambda ends it.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    start: Timestamp,
    stop: Timestamp,
}

impl Deadline {
    /// The budget of a request that begins at `start` and that Lambda ends at `lambda_deadline`.
    ///
    /// An emulator's deadline may be constant; one in the past is taken as absent.
    #[must_use]
    pub fn new(start: Timestamp, lambda_deadline: Timestamp) -> Self {
        let longest = start + FUNCTION_TIMEOUT;
        let stop = if lambda_deadline <= start { longest } else { longest.min(lambda_deadline) };
        Self { start, stop }
    }

    /// When the request began.
    #[must_use]
    pub fn start(&self) -> Timestamp {
        self.start
    }

    /// Until when a claim made by this request bars others.
    #[must_use]
    pub fn lease_until(&self) -> Timestamp {
        self.stop + LEASE_MARGIN
    }

    /// Whether a send that starts now can still be recorded.
    #[must_use]
    pub fn may_send(&self, now: Timestamp) -> bool {
        now + RESERVE <= self.stop
    }

    /// When a claim is given up, since nothing could be sent under it any more.
    #[must_use]
    pub fn claim_by(&self) -> Timestamp {
        self.stop.minus(RESERVE)
    }

    /// When a send that starts now is given up.
    #[must_use]
    pub fn send_by(&self, now: Timestamp) -> Timestamp {
        (now + SEND_TIMEOUT).min(self.stop.minus(RECORD_WRITE + ANSWER))
    }

    /// When the last write of the record is given up, so that an answer still gets out.
    #[must_use]
    pub fn write_by(&self) -> Timestamp {
        self.stop.minus(ANSWER)
    }

    /// Until when to wait for a running twin.
    #[must_use]
    pub fn wait_until(&self) -> Timestamp {
        (self.start + TWIN_WAIT).min(self.claim_by())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn deadline(millis_after_start: i64) -> Deadline {
        let stop = START.millis().checked_add_signed(millis_after_start).unwrap();
        Deadline::new(START, Timestamp::from_millis(stop))
    }

    #[test]
    fn a_deadline_in_the_past_or_absurdly_late_counts_as_four_seconds() {
        for odd in [-1_700_000_000_000, -1, 0, 4001, 900_000] {
            assert_eq!(deadline(odd).lease_until(), START + Duration::from_millis(4700), "{odd}");
        }
        assert_eq!(Deadline::new(START, Timestamp::from_millis(u64::MAX)).stop, START + FUNCTION_TIMEOUT);
        assert_eq!(deadline(2500).lease_until(), START + Duration::from_millis(3200));
    }

    #[test]
    fn a_send_may_start_exactly_at_the_reserve_and_not_after() {
        let deadline = deadline(4000);
        assert!(deadline.may_send(START + Duration::from_millis(3300)));
        assert!(!deadline.may_send(START + Duration::from_millis(3301)));
    }

    #[test]
    fn every_send_ends_in_time_for_its_record() {
        let deadline = deadline(4000);
        for offset in 0..=3300 {
            let now = START + Duration::from_millis(offset);
            let by = deadline.send_by(now);
            assert!(by >= now + SHORTEST_SEND && by <= now + SEND_TIMEOUT);
            assert!(by + RECORD_WRITE <= deadline.write_by());
        }
    }

    #[test]
    fn waiting_ends_while_a_take_over_still_fits() {
        assert_eq!(deadline(4000).wait_until(), START + TWIN_WAIT);
        assert_eq!(deadline(2000).wait_until(), START + Duration::from_millis(1300));
    }
}
