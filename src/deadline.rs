//! The time budget of one request: the deadlines for its sends, its record writes and its wait for
//! another owner, and the end of its lease.
//!
//! ```text
//! start                        stop-700          stop-300         stop-100    stop       stop+700
//!   |--- sends and claims start ---|-- sends end --|- record writes -|- response -|-- lease --|
//! ```
//!
//! `stop` is the moment at which Lambda ends the sandbox. A failed attempt releases the key before the
//! response. A successful attempt completes the record after the response.

use crate::clock::Timestamp;
use std::time::Duration;

/// The longest time that a request may run. It is also the function's time-out in template.yaml.
pub const FUNCTION_TIMEOUT: Duration = Duration::from_secs(4);
/// The longest time that a request waits for the owner of its key.
pub const OWNER_WAIT: Duration = Duration::from_secs(3);
/// The longest time for one send. SQS usually responds within a tenth of this time. A call without a
/// response by then will most likely never get one, and there is still time for one retry.
pub const SEND_TIMEOUT: Duration = Duration::from_millis(1500);

/// The shortest useful time-out for a send of up to 1 MiB.
const SHORTEST_SEND: Duration = Duration::from_millis(400);
/// The time reserved for writing the record after the last send.
const RECORD_WRITE: Duration = Duration::from_millis(200);
/// The time reserved for the response, and for the end of the last write, before Lambda ends the sandbox.
const RESPONSE: Duration = Duration::from_millis(100);
/// The time that must be left when a send starts, so that the send and the record write fit.
pub const RESERVE: Duration = Duration::from_millis(700);
/// The time from the deadline to the end of the lease. It covers clock skew between sandboxes, and
/// calls of a killed sandbox that are still in transit.
const LEASE_MARGIN: Duration = Duration::from_millis(700);

const _: () = assert!(
    RESERVE.as_millis() == (SHORTEST_SEND.as_millis() + RECORD_WRITE.as_millis() + RESPONSE.as_millis()),
    "a send that starts at the last moment must leave time for the record write"
);
const _: () = assert!(
    FUNCTION_TIMEOUT.as_millis() + LEASE_MARGIN.as_millis() <= 5000,
    "docs/contract.md, Guarantees, 6: a dead owner keeps its key for at most 5 s"
);

/// The start of a request, and the time at which Lambda ends it.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    start: Timestamp,
    stop: Timestamp,
}

impl Deadline {
    /// The budget of a request that starts at `start` and that Lambda ends at `lambda_deadline`.
    ///
    /// A deadline in the past counts as absent, because some emulators send a constant.
    #[must_use]
    pub fn new(start: Timestamp, lambda_deadline: Timestamp) -> Self {
        let longest = start + FUNCTION_TIMEOUT;
        let stop = if lambda_deadline <= start { longest } else { longest.min(lambda_deadline) };
        Self { start, stop }
    }

    /// The start of the request.
    #[must_use]
    pub fn start(&self) -> Timestamp {
        self.start
    }

    /// The end of the lease of a claim that this request makes.
    #[must_use]
    pub fn lease_until(&self) -> Timestamp {
        self.stop + LEASE_MARGIN
    }

    /// Whether a send that starts at `now` leaves time for the record write.
    #[must_use]
    pub fn may_send(&self, now: Timestamp) -> bool {
        now + RESERVE <= self.stop
    }

    /// The time by which a claim must return. After this time, nothing can be sent.
    #[must_use]
    pub fn claim_by(&self) -> Timestamp {
        self.stop.minus(RESERVE)
    }

    /// The time by which a send that starts at `now` must return.
    #[must_use]
    pub fn send_by(&self, now: Timestamp) -> Timestamp {
        (now + SEND_TIMEOUT).min(self.stop.minus(RECORD_WRITE + RESPONSE))
    }

    /// The time by which the last write of the record must return.
    #[must_use]
    pub fn write_by(&self) -> Timestamp {
        self.stop.minus(RESPONSE)
    }

    /// The time until which the request waits for the owner of its key.
    #[must_use]
    pub fn wait_until(&self) -> Timestamp {
        (self.start + OWNER_WAIT).min(self.claim_by())
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
    fn a_deadline_in_the_past_or_far_in_the_future_counts_as_four_seconds() {
        for odd in [-1_700_000_000_000, -1, 0, 4001, 900_000] {
            assert_eq!(deadline(odd).lease_until(), START + Duration::from_millis(4700), "{odd}");
        }
        assert_eq!(Deadline::new(START, Timestamp::from_millis(u64::MAX)).stop, START + FUNCTION_TIMEOUT);
        assert_eq!(deadline(2500).lease_until(), START + Duration::from_millis(3200));
    }

    #[test]
    fn a_send_may_start_at_the_reserve_but_not_after() {
        let deadline = deadline(4000);
        assert!(deadline.may_send(START + Duration::from_millis(3300)));
        assert!(!deadline.may_send(START + Duration::from_millis(3301)));
    }

    #[test]
    fn every_send_ends_in_time_for_the_record_write() {
        let deadline = deadline(4000);
        for offset in 0..=3300 {
            let now = START + Duration::from_millis(offset);
            let by = deadline.send_by(now);
            assert!(by >= now + SHORTEST_SEND && by <= now + SEND_TIMEOUT);
            assert!(by + RECORD_WRITE <= deadline.write_by());
        }
    }

    #[test]
    fn waiting_ends_in_time_for_a_take_over() {
        assert_eq!(deadline(4000).wait_until(), START + OWNER_WAIT);
        assert_eq!(deadline(2000).wait_until(), START + Duration::from_millis(1300));
    }
}
