//! The targets, and whether a run met them.

use crate::measure::Figures;
use crate::prices::Dollars;
use crate::suite::{Results, Row};
use crate::targets::Kind;

/// One target.
pub struct Goal {
    /// The figure.
    pub what: String,
    /// Its target.
    pub target: String,
    /// Its value in this run.
    pub measured: String,
    /// Whether the run met the target.
    pub met: bool,
}

/// The most that a batch of 100 may take beyond the floor, in milliseconds.
const ABOVE_FLOOR_100: f64 = 1.0;
/// The round trip of the completion write, in milliseconds.
const ROUND_TRIP: f64 = 4.0;

/// All targets for which this run has figures.
pub fn all(results: &Results) -> Vec<Goal> {
    let mut goals = Vec::new();
    latency(results, &mut goals);
    cpu(results, &mut goals);
    start_and_size(results, &mut goals);
    calls(results, &mut goals);
    money(results, &mut goals);
    if let Some(full) = &results.full {
        growth(full, &mut goals);
    }
    goals
}

/// The row of event-ingest for a shape.
pub fn ours<'a>(results: &'a Results, shape: &str) -> Option<&'a Row> {
    results.rows.iter().find(|row| row.kind == Kind::Ours && row.shape == shape)
}

fn floor<'a>(results: &'a Results, shape: &str) -> Option<&'a Row> {
    results.rows.iter().find(|row| row.kind == Kind::Floor && row.shape == shape)
}

/// The lowest value of a figure among the peers that pack events into messages, or among those that do not.
pub fn best_peer(results: &Results, shape: &str, packed: bool, figure: impl Fn(&Row) -> f64) -> Option<f64> {
    let peers = results.rows.iter().filter(|row| row.kind == Kind::Peer && row.shape == shape && row.packed == packed);
    peers.map(figure).min_by(f64::total_cmp)
}

fn at_most(goals: &mut Vec<Goal>, what: &str, limit: f64, unit: &str, measured: f64) {
    goals.push(Goal {
        what: what.to_owned(),
        target: format!("≤ {limit} {unit}"),
        measured: format!("{measured:.2} {unit}"),
        met: measured <= limit,
    });
}

fn at_least(goals: &mut Vec<Goal>, what: &str, factor: f64, measured: f64) {
    goals.push(Goal {
        what: what.to_owned(),
        target: format!("≥ {factor} ×"),
        measured: format!("{measured:.1} ×"),
        met: measured >= factor,
    });
}

fn latency(results: &Results, goals: &mut Vec<Goal>) {
    for (shape, limit) in [("100 events", ABOVE_FLOOR_100), ("500 events", 2.0)] {
        if let (Some(ours), Some(floor)) = (ours(results, shape), floor(results, shape)) {
            let above = ours.figures.p50 - floor.figures.p50;
            at_most(goals, &format!("p50 above the floor, {shape}"), limit, "ms", above);
        }
    }
    if let (Some(ours), Some(floor)) = (ours(results, "100 events"), floor(results, "100 events")) {
        let above = ours.figures.p50 - floor.figures.p50 + ROUND_TRIP;
        let what = "p50 above the floor without its completion write (4 ms), 100 events";
        at_most(goals, what, ABOVE_FLOOR_100, "ms", above);
    }
}

fn cpu(results: &Results, goals: &mut Vec<Goal>) {
    for (shape, limit, factor) in [("100 events", 0.8, 12.0), ("500 events", 1.6, 17.0), ("5 MB", 10.0, 14.0)] {
        let Some(ours) = ours(results, shape) else { continue };
        at_most(goals, &format!("CPU, {shape}"), limit, "ms", ours.figures.cpu);
        if let Some(peer) = best_peer(results, shape, false, |row| row.figures.cpu) {
            at_least(
                goals,
                &format!("CPU of the better peer relative to event-ingest, {shape}"),
                factor,
                peer / ours.figures.cpu,
            );
        }
    }
    for (shape, limit) in [("replay", 0.25), ("invalid batch", 0.15)] {
        if let Some(row) = ours(results, shape) {
            at_most(goals, &format!("CPU, {shape}"), limit, "ms", row.figures.cpu);
        }
    }
}

fn start_and_size(results: &Results, goals: &mut Vec<Goal>) {
    if let Some(row) = ours(results, "100 events") {
        at_most(goals, "init to the first poll, no TLS", 8.0, "ms", row.figures.init);
        at_most(goals, "init CPU, no TLS", 5.0, "ms", row.figures.init_cpu);
        at_most(goals, "RSS warm", 12.0, "MB", row.figures.rss);
    }
    let Figures { init_cpu, first, p50, .. } = results.tls;
    at_most(goals, "init CPU, TLS", 40.0, "ms", init_cpu);
    at_most(goals, "first request above a warm one, TLS", 3.0, "ms", first - p50);
    if let Some(row) = ours(results, "5 MB") {
        at_most(goals, "peak RSS, 5 MB", 45.0, "MB", row.figures.rss_peak);
    }
    at_most(goals, "zip", 4.5, "MB", results.zip_bytes as f64 / 1e6);
}

fn calls(results: &Results, goals: &mut Vec<Goal>) {
    for shape in ["1 event", "100 events", "500 events", "5 MB"] {
        let Some(row) = ours(results, shape) else { continue };
        let usage = &row.figures.usage;
        let sends = (row.body_bytes as f64 / 1_048_576.0).ceil().max(1.0);
        goals.push(Goal {
            what: format!("AWS calls, {shape}"),
            target: format!("2 writes + {sends} sends"),
            measured: format!("{} writes + {} sends + {} reads", usage.writes, usage.sends, usage.reads),
            met: usage.writes <= 2.0 && usage.sends <= sends && usage.reads == 0.0,
        });
    }
    if let Some(row) = ours(results, "replay") {
        let usage = &row.figures.usage;
        let calls = usage.writes + usage.sends + usage.reads;
        goals.push(Goal {
            what: "AWS calls, replay".to_owned(),
            target: "1".to_owned(),
            measured: calls.to_string(),
            met: calls <= 1.0,
        });
    }
}

fn money(results: &Results, goals: &mut Vec<Goal>) {
    let Some(row) = ours(results, "100 events") else { return };
    let total = row.dollars.total();
    goals.push(Goal {
        what: "dollars per million events, 100 per batch: Lambda, DynamoDB, SQS".to_owned(),
        target: "≤ $0.020".to_owned(),
        measured: format!(
            "${total:.4} (with the SQS surcharge for message groups ${:.4})",
            total + row.dollars.fair_queue
        ),
        met: total <= 0.020,
    });
    let peer = |packed| best_peer(results, "100 events", packed, |row| Dollars::total(&row.dollars));
    if let Some(peer) = peer(false) {
        at_least(goals, "dollars of the better idiomatic peer relative to event-ingest", 3.0, peer / total);
    }
    if let Some(peer) = peer(true) {
        at_least(goals, "dollars of the better packed peer relative to event-ingest", 1.0, peer / total);
    }
}

fn growth(full: &crate::suite::Full, goals: &mut Vec<Goal>) {
    let line = |sizes: &[crate::suite::Growth], figure: fn(&crate::suite::Growth) -> f64| {
        linearity(&sizes.iter().map(|size| (size.body_bytes as f64, figure(size))).collect::<Vec<_>>())
    };
    for (what, fit) in [
        ("CPU linear in events of 200 bytes (r²)", line(&full.by_events, |size| size.cpu)),
        ("CPU linear in bytes up to 5 MB (r²)", line(&full.by_bytes, |size| size.cpu)),
        ("memory linear in bytes up to 5 MB (r²)", line(&full.by_bytes, |size| size.rss_peak)),
    ] {
        goals.push(Goal {
            what: what.to_owned(),
            target: "≥ 0.98".to_owned(),
            measured: format!("{fit:.4}"),
            met: fit >= 0.98,
        });
    }
    // An early and a late tenth. The first tenth is left out because the sandbox warms up.
    let tenth = full.endurance.len() / 10;
    let early = &full.endurance[tenth..2 * tenth];
    let late = &full.endurance[full.endurance.len() - tenth..];
    let median = |stretches: &[crate::suite::Endurance], figure: fn(&crate::suite::Endurance) -> f64| {
        crate::measure::median(stretches.iter().map(figure))
    };
    let count = full.endurance.last().map_or(0, |last| last.requests);
    for (name, figure) in [("CPU", (|e| e.cpu) as fn(&crate::suite::Endurance) -> f64), ("memory", |e| e.rss)] {
        let ratio = median(late, figure) / median(early, figure);
        goals.push(Goal {
            what: format!("{name} of the last tenth of {count} requests relative to the second tenth"),
            target: "≤ 1.1 ×".to_owned(),
            measured: format!("{ratio:.3} ×"),
            met: ratio <= 1.1,
        });
    }
}

/// The coefficient of determination (r²) of the straight line that fits best.
pub fn linearity(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / count;
    let covariance: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let spread_x: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    let spread_y: f64 = points.iter().map(|(_, y)| (y - mean_y).powi(2)).sum();
    covariance * covariance / (spread_x * spread_y)
}

#[cfg(test)]
mod tests {
    use super::linearity;

    #[test]
    fn a_line_is_linear_and_a_parabola_less_so() {
        let line: Vec<_> = (0..10).map(|x| (f64::from(x), 3.0 * f64::from(x) + 1.0)).collect();
        let parabola: Vec<_> = (0..10).map(|x| (f64::from(x), f64::from(x * x))).collect();
        assert!(linearity(&line) > 0.999_999);
        assert!(linearity(&parabola) < 0.95);
    }
}
