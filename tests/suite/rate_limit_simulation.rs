//! The limiter's arithmetic under simulated traffic (docs/contract.md, "Rate limits"; docs/rate-limits.md).

use contract::rate_limit::RateLimit;
use event_ingest::clock::Timestamp;
use event_ingest::rate_limit::{Capacity, GrantRequest, GrantResponse, Share, Step, WINDOW, Window};
use std::collections::BTreeMap;
use std::time::Duration;

/// The events of each simulated batch.
const EVENTS: u64 = 100;
const WARM_UP_WINDOWS: u32 = 5;
const MEASURED_WINDOWS: u32 = 60;

/// The counters of the windows, with the condition of the state table.
#[derive(Default)]
struct Counters {
    windows: BTreeMap<u64, GrantResponse>,
    writes: u64,
}

impl Counters {
    fn grant(&mut self, window: Window, request: GrantRequest, capacity: Capacity) -> GrantResponse {
        self.writes += 1;
        let empty = GrantResponse { granted: true, used: 0, ahead: 0 };
        let counter = self.windows.entry(window.start()).or_insert(empty);
        let ahead = counter.ahead.saturating_add_signed(request.ahead);
        counter.granted =
            counter.used + request.events <= capacity.events && (request.ahead <= 0 || ahead <= capacity.ahead);
        if counter.granted {
            counter.used += request.events;
            counter.ahead = ahead;
        }
        *counter
    }
}

fn admit(share: &mut Share, counters: &mut Counters, now: Timestamp, events: u64, capacity: Capacity) -> bool {
    loop {
        match share.take(now, events, capacity) {
            Step::Pass => return true,
            Step::Over => return false,
            Step::Ask(request) => {
                let window = share.window();
                let response = counters.grant(window, request, capacity);
                share.record(window, request, response);
            }
        }
    }
}

/// One row of the table.
struct Row {
    sandboxes: usize,
    requests_per_window: f64,
    /// Offered events as a part of the limit.
    offered: f64,
    /// Accepted events as a part of the limit.
    accepted: f64,
    /// The accepted events of the fullest window, as a part of the limit.
    fullest_window: f64,
    /// The accepted events at the first refusal in a window, as a part of the limit. The lowest of all windows.
    first_refusal: f64,
    /// Writes to the counter per request.
    writes: f64,
    /// Whether sandboxes may keep unspent grants.
    grants_ahead: bool,
}

/// Simulates requests that arrive at random (a Poisson process) at each sandbox.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the numbers of the simulation are small and positive"
)]
fn simulate(sandboxes: usize, requests_per_window: f64, load: f64) -> Row {
    let offered_per_second = sandboxes as f64 * requests_per_window * EVENTS as f64 / WINDOW.as_secs_f64();
    let limit = RateLimit::at_least_min((offered_per_second / load).round() as u32).expect("a limit");
    let capacity = Capacity::of(limit);
    let start = Timestamp::from_millis(1_800_000_000_000);
    let (warm, end) = (start + WINDOW * WARM_UP_WINDOWS, start + WINDOW * (WARM_UP_WINDOWS + MEASURED_WINDOWS));

    let mut random = fastrand::Rng::with_seed(42);
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
    let mut first_refusal = capacity.events;
    for (now, sandbox) in arrivals {
        let is_admitted = admit(&mut shares[sandbox], &mut counters, now, EVENTS, capacity);
        if now < warm {
            writes_before = counters.writes;
        } else {
            requests += 1;
            let in_window = accepted.entry(Window::at(now).start()).or_default();
            if is_admitted {
                *in_window += EVENTS;
            } else {
                first_refusal = first_refusal.min(*in_window);
            }
        }
    }
    let measured_capacity = (capacity.events * u64::from(MEASURED_WINDOWS)) as f64;
    Row {
        sandboxes,
        requests_per_window,
        offered: (requests * EVENTS) as f64 / measured_capacity,
        accepted: accepted.values().sum::<u64>() as f64 / measured_capacity,
        fullest_window: accepted.values().copied().max().unwrap_or(0) as f64 / capacity.events as f64,
        first_refusal: first_refusal as f64 / capacity.events as f64,
        writes: (counters.writes - writes_before) as f64 / requests as f64,
        grants_ahead: capacity.ahead > 0,
    }
}

fn rows() -> impl Iterator<Item = Row> {
    let traffic = [(2.0, 0.5), (20.0, 0.5), (20.0, 0.9), (20.0, 1.0), (20.0, 2.0), (100.0, 0.5), (100.0, 2.0)];
    let of_sandboxes = move |sandboxes| traffic.map(|(requests, load)| simulate(sandboxes, requests, load));
    [1, 10, 100, 1000].into_iter().flat_map(of_sandboxes)
}

/// docs/rate-limits.md contains the table that this test creates.
#[test]
fn many_sandboxes_share_a_limit_with_few_writes() {
    let mut table = String::from(
        "| sandboxes | requests per sandbox and window | offered / limit | accepted / limit | counter writes per request |\n\
         |---|---|---|---|---|\n",
    );
    for Row {
        sandboxes,
        requests_per_window,
        offered,
        accepted,
        fullest_window,
        first_refusal,
        writes,
        grants_ahead,
    } in rows()
    {
        let row = format!(
            "| {sandboxes} | {requests_per_window} | {:.1} % | {:.1} % | {writes:.3} |\n",
            offered * 100.0,
            accepted * 100.0
        );
        table.push_str(&row);
        assert!(fullest_window <= 1.0, "a window accepts more than its limit: {row}");
        assert!(first_refusal >= 0.6, "a request is refused before 60 % of its window is accepted: {row}");
        // A low limit leaves no room for unspent grants, so each request needs one of its own.
        let most_writes = if grants_ahead { 10.0 } else { requests_per_window };
        assert!(writes * requests_per_window <= most_writes, "too many writes per sandbox and window: {row}");
        let possible = offered.min(1.0);
        assert!(accepted > 0.85 * possible, "too many requests are refused: {row}");
        if offered < 0.6 && sandboxes >= 10 {
            assert!(accepted > 0.98 * offered, "requests far below the limit are refused: {row}");
        }
    }
    let documented = include_str!("../../docs/rate-limits.md");
    assert!(documented.contains(&table), "docs/rate-limits.md must contain this table:\n\n{table}");
}
