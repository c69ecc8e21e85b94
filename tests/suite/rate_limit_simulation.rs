//! The limiter's arithmetic under simulated traffic, and as properties.

use event_ingest::clock::Timestamp;
use event_ingest::rate_limit::{GrantResponse, Share, Step, WINDOW, Window};
use std::collections::BTreeMap;
use std::time::Duration;

/// The windows' counters, as the state table keeps them.
#[derive(Default)]
struct Counters {
    used: BTreeMap<u64, u64>,
    writes: u64,
}

impl Counters {
    fn grant(&mut self, window: Window, events: u64, capacity: u64) -> GrantResponse {
        self.writes += 1;
        let used = self.used.entry(window.start()).or_default();
        let granted = *used + events <= capacity;
        *used += if granted { events } else { 0 };
        GrantResponse { granted, used: *used }
    }
}

fn admit(share: &mut Share, counters: &mut Counters, now: Timestamp, events: u64, capacity: u64) -> bool {
    loop {
        match share.take(now, events, capacity) {
            Step::Pass => return true,
            Step::Over => return false,
            Step::Ask(grant) => {
                let window = share.window();
                let granted = counters.grant(window, grant, capacity);
                share.record(window, grant, granted, capacity);
            }
        }
    }
}

struct Simulated {
    accepted_of_offered: f64,
    accepted_of_limit: f64,
    writes_per_request: f64,
}

/// Poisson traffic of batches of 100 events on each sandbox, over 60 windows after 5 of warm-up.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a simulation"
)]
fn simulate(sandboxes: usize, requests_per_window: f64, limit: u64) -> Simulated {
    const EVENTS: u64 = 100;
    let mut random = fastrand::Rng::with_seed(42);
    let capacity = limit * WINDOW.as_secs();
    let start = Timestamp::from_millis(1_800_000_000_000);
    let (warm, end) = (start + WINDOW * 5, start + WINDOW * 65);
    let mut arrivals = Vec::new();
    for sandbox in 0..sandboxes {
        let mut at = 0.0;
        loop {
            at += -random.f64().max(1e-12).ln() / requests_per_window * WINDOW.as_millis() as f64;
            let now = start + Duration::from_millis(at as u64);
            if now >= end {
                break;
            }
            arrivals.push((now, sandbox));
        }
    }
    arrivals.sort_unstable();
    let mut shares = vec![Share::new(start); sandboxes];
    let mut counters = Counters::default();
    let (mut requests, mut accepted, mut writes_before) = (0, BTreeMap::<u64, u64>::new(), 0);
    for (now, sandbox) in arrivals {
        if now < warm {
            writes_before = counters.writes;
        }
        let admitted = admit(&mut shares[sandbox], &mut counters, now, EVENTS, capacity);
        if now >= warm {
            requests += 1;
            *accepted.entry(Window::at(now).start()).or_default() += if admitted { EVENTS } else { 0 };
        } else if now < warm {
            writes_before = counters.writes;
        }
    }
    assert!(accepted.values().all(|accepted| *accepted <= capacity), "no window is ever exceeded");
    let total = accepted.values().sum::<u64>() as f64;
    Simulated {
        accepted_of_offered: total / (requests * EVENTS) as f64,
        accepted_of_limit: total / (capacity * 60) as f64,
        writes_per_request: (counters.writes - writes_before) as f64 / requests as f64,
    }
}

/// Prints the README's table: `cargo test --test suite rate_limit_simulation -- --nocapture`.
#[test]
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a simulation"
)]
fn many_sandboxes_share_a_limit_for_nearly_nothing() {
    println!(
        "| sandboxes | requests per sandbox and window | offered / limit | accepted / limit | extra writes per request |"
    );
    println!("|---|---|---|---|---|");
    for sandboxes in [1, 10, 100, 1000] {
        for (requests, load) in
            [(2.0, 0.5), (20.0, 0.5), (20.0, 0.9), (20.0, 1.0), (20.0, 2.0), (100.0, 0.5), (100.0, 2.0)]
        {
            let limit = (sandboxes as f64 * requests * 100.0 / WINDOW.as_secs_f64() / load) as u64;
            let simulated = simulate(sandboxes, requests, limit.max(50));
            println!(
                "| {sandboxes} | {requests} | {:.0} % | {:.1} % | {:.3} |",
                load * 100.0,
                simulated.accepted_of_limit * 100.0,
                simulated.writes_per_request
            );
            if requests >= 2000.0 {
                // A request has two writes of its own, so 5 % of them is 0.1.
                assert!(simulated.writes_per_request < 0.1, "{}", simulated.writes_per_request);
            }
            if load <= 0.5 && sandboxes as f64 * requests >= 100.0 {
                assert!(simulated.accepted_of_offered > 0.999, "{}", simulated.accepted_of_offered);
            }
        }
    }
}
