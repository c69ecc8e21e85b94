//! The measurements, their order, and their results.

use crate::measure::{Figures, Session, median, millis, round};
use crate::prices::Dollars;
use crate::sandbox::Setup;
use crate::stub::{Latency, tls};
use crate::targets::{Kind, Target};
use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use serde::Serialize;
use shapes::{Batch, Shape};
use std::time::Instant;

/// One line of the results: a target, a shape, and the medians over rounds.
#[derive(Serialize)]
pub struct Row {
    /// The name of the target.
    pub target: &'static str,
    /// The kind of the target.
    #[serde(skip)]
    pub kind: Kind,
    /// Whether the target packs events into messages.
    pub packed: bool,
    /// The name of the shape.
    pub shape: &'static str,
    /// Events in a batch.
    pub events: usize,
    /// Bytes of the decoded body.
    pub body_bytes: usize,
    /// Medians over rounds.
    pub figures: Figures,
    /// The cost at list prices.
    pub dollars: Dollars,
}

/// The results of one run.
#[derive(Serialize)]
pub struct Results {
    /// At usual latency: every shape; for the peers and the floor only the compared shapes.
    pub rows: Vec<Row>,
    /// event-ingest over TLS, 100 events at usual latency.
    pub tls: Figures,
    /// The size of the zipped binary in bytes.
    pub zip_bytes: usize,
    /// The number of rounds.
    pub rounds: usize,
    /// The results that only a full run has.
    pub full: Option<Full>,
}

/// The results that `make bench-full` adds.
#[derive(Serialize)]
pub struct Full {
    /// Every shape without latency.
    pub no_latency: Vec<Row>,
    /// By the number of concurrent sandboxes.
    pub concurrency: Vec<Concurrency>,
    /// By the number of small events.
    pub by_events: Vec<Growth>,
    /// By the size of an event, in batches of 500.
    pub by_bytes: Vec<Growth>,
    /// One sandbox over many requests.
    pub endurance: Vec<Endurance>,
}

/// The results of concurrent sandboxes.
#[derive(Serialize)]
pub struct Concurrency {
    /// The number of sandboxes.
    pub sandboxes: usize,
    /// The shape.
    pub shape: &'static str,
    /// Requests per second of all sandboxes together.
    pub throughput: f64,
    /// The median latency in milliseconds.
    pub p50: f64,
    /// CPU milliseconds per request.
    pub cpu: f64,
}

/// The cost of a batch of one size.
#[derive(Serialize)]
pub struct Growth {
    /// Events.
    pub events: usize,
    /// Bytes of the body.
    pub body_bytes: usize,
    /// CPU milliseconds per request.
    pub cpu: f64,
    /// The most resident MB.
    pub rss_peak: f64,
}

/// A stretch of requests in one sandbox.
#[derive(Serialize)]
pub struct Endurance {
    /// Requests so far.
    pub requests: usize,
    /// CPU milliseconds per request in this stretch.
    pub cpu: f64,
    /// Resident MB at the end of the stretch.
    pub rss: f64,
}

/// The measurements to run.
pub struct Plan {
    /// The number of rounds.
    pub rounds: usize,
    /// The divisor of the number of requests, for a quick run.
    pub divide: usize,
    /// Whether to measure the peers.
    pub peers: bool,
    /// Whether to run the measurements that `make bench-full` adds.
    pub full: bool,
    /// The name of the only shape to run; `None` runs all.
    pub shape: Option<String>,
    /// Another build of the function to measure as well.
    pub against: Option<std::path::PathBuf>,
}

/// Runs a plan.
pub async fn run(root: &std::path::Path, plan: &Plan) -> Result<Results> {
    let ours = Target::ours(root);
    let mut targets = vec![Target::ours(root), Target::floor(root)];
    targets.extend(plan.against.as_deref().map(|binary| Target::other_build(root, binary)));
    if plan.peers {
        targets.extend(Target::peers(root));
    }
    let rows = matrix(&targets, Latency::USUAL, plan).await?;
    let tls = over_tls(&ours, plan).await?;
    let zip_bytes = zip_bytes(std::path::Path::new(&ours.command[0]))?;
    let full = if plan.full { Some(full(&ours, plan).await?) } else { None };
    Ok(Results { rows, tls, zip_bytes, rounds: plan.rounds, full })
}

/// Runs the rounds. Each round visits every target and shape, and starts at another one, so that other load
/// on the machine affects all of them alike.
async fn matrix(targets: &[Target], latency: Latency, plan: &Plan) -> Result<Vec<Row>> {
    let mut shapes = Shape::all();
    shapes.retain(|shape| plan.shape.as_ref().is_none_or(|only| only == shape.name));
    ensure!(!shapes.is_empty(), "unknown shape");
    let batches: Vec<Batch> = shapes.iter().map(Shape::batch).collect::<Result<_>>()?;
    let mut cells = Vec::new();
    for target in targets {
        for (shape, batch) in shapes.iter().zip(&batches) {
            if target.kind == Kind::Ours || shape.is_compared() {
                cells.push((target, shape, batch, Vec::new()));
            }
        }
    }
    let count = cells.len();
    for number in 0..plan.rounds {
        for step in 0..count {
            // Each round starts at another cell.
            let (target, shape, batch, rounds) = &mut cells[(step + number * count / plan.rounds) % count];
            progress(&format!("round {}/{}: {}, {}", number + 1, plan.rounds, target.name, shape.name));
            let setup = Setup { latency, events_per_message: None, tls: None };
            let requests = (shape.requests / plan.divide).max(3);
            rounds.push(round(target, shape, batch, requests, setup).await?);
        }
    }
    let row = |(target, shape, batch, rounds): (&Target, &Shape, &Batch, Vec<Figures>)| {
        let figures = Figures::median(&rounds);
        Row {
            target: target.name,
            kind: target.kind,
            packed: target.is_packed(),
            shape: shape.name,
            events: shape.events,
            body_bytes: batch.body_bytes,
            dollars: Dollars::per_million_events(&figures, shape.events, batch.body_bytes),
            figures,
        }
    };
    Ok(cells.into_iter().map(row).collect())
}

async fn over_tls(ours: &Target, plan: &Plan) -> Result<Figures> {
    let directory = tempfile::tempdir()?;
    let ca_file = directory.path().join("ca.pem");
    let acceptor = tls::acceptor(&ca_file)?;
    let shape = Shape::small("100 events, TLS", 100, 50);
    let batch = shape.batch()?;
    let mut rounds = Vec::new();
    for number in 0..plan.rounds {
        progress(&format!("TLS: round {}/{}", number + 1, plan.rounds));
        let setup = Setup { latency: Latency::USUAL, events_per_message: None, tls: Some((&acceptor, &ca_file)) };
        rounds.push(round(ours, &shape, &batch, (shape.requests / plan.divide).max(3), setup).await?);
    }
    Ok(Figures::median(&rounds))
}

/// The size of the deployed archive, except for the few bytes of its directory.
fn zip_bytes(binary: &std::path::Path) -> Result<usize> {
    let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut deflate, &std::fs::read(binary)?)?;
    Ok(deflate.finish()?.len())
}

async fn full(ours: &Target, plan: &Plan) -> Result<Full> {
    let no_latency = matrix(std::slice::from_ref(ours), Latency::NONE, plan).await?;
    Ok(Full {
        no_latency,
        concurrency: concurrency(ours, plan).await?,
        by_events: growth(ours, plan, [1, 5, 10, 25, 50, 100, 150, 200, 300, 400, 500].map(|n| (n, shapes::SMALL)))
            .await?,
        by_bytes: growth(ours, plan, [200, 500, 1000, 2000, 4000, 6000, 8000, 10_400].map(|bytes| (500, bytes)))
            .await?,
        endurance: endurance(ours, plan).await?,
    })
}

async fn concurrency(ours: &Target, plan: &Plan) -> Result<Vec<Concurrency>> {
    let mut all = Vec::new();
    let shapes: Vec<Shape> = Shape::all().into_iter().filter(Shape::is_compared).collect();
    for shape in &shapes {
        let batch = shape.batch()?;
        for sandboxes in [1, 2, 4] {
            progress(&format!("{sandboxes} sandboxes: {}", shape.name));
            let setup = Setup { latency: Latency::USUAL, events_per_message: None, tls: None };
            let starts = (0..sandboxes).map(|_| Session::start(ours, shape, &batch, setup));
            let mut sessions = try_join_all(starts).await?;
            for session in &mut sessions {
                for _ in 0..5 {
                    session.request().await?;
                }
            }
            let requests = (shape.requests * 4 / plan.divide).max(3);
            let cpu: Vec<_> = sessions.iter().map(|session| session.sandbox().cpu()).collect::<Result<_>>()?;
            let start = Instant::now();
            let runs = sessions.iter_mut().map(async |session| {
                let mut latencies = Vec::with_capacity(requests);
                for _ in 0..requests {
                    latencies.push(session.request().await?.latency);
                }
                Ok::<_, anyhow::Error>(latencies)
            });
            let latencies = try_join_all(runs).await?;
            let elapsed = start.elapsed().as_secs_f64();
            let mut used = 0.0;
            for (session, before) in sessions.into_iter().zip(cpu) {
                used += millis(session.sandbox().cpu()?.saturating_sub(before));
                session.stop().await?;
            }
            let total = (requests * sandboxes) as f64;
            all.push(Concurrency {
                sandboxes,
                shape: shape.name,
                throughput: total / elapsed,
                p50: median(latencies.into_iter().flatten()),
                cpu: used / total,
            });
        }
    }
    Ok(all)
}

async fn growth<const N: usize>(ours: &Target, plan: &Plan, sizes: [(usize, usize); N]) -> Result<Vec<Growth>> {
    let mut all = Vec::new();
    for (events, event_bytes) in sizes {
        progress(&format!("{events} events of {event_bytes} bytes"));
        let shape = Shape { event_bytes, warm_up: 10, ..Shape::small("growth", events, 60) };
        let batch = shape.batch()?;
        let mut rounds = Vec::new();
        for _ in 0..plan.rounds {
            let setup = Setup { latency: Latency::NONE, events_per_message: None, tls: None };
            rounds.push(round(ours, &shape, &batch, (shape.requests / plan.divide).max(3), setup).await?);
        }
        let Figures { cpu, rss_peak, .. } = Figures::median(&rounds);
        all.push(Growth { events, body_bytes: batch.body_bytes, cpu, rss_peak });
    }
    Ok(all)
}

async fn endurance(ours: &Target, plan: &Plan) -> Result<Vec<Endurance>> {
    const STRETCHES: usize = 100;
    let stretch = 1000 / plan.divide;
    let shape = Shape::small("10 events", 10, stretch);
    let batch = shape.batch()?;
    let setup = Setup { latency: Latency::NONE, events_per_message: None, tls: None };
    let mut session = Session::start(ours, &shape, &batch, setup).await?;
    let mut all = Vec::new();
    for number in 1..=STRETCHES {
        progress(&format!("one sandbox: {} of {} requests", number * stretch, STRETCHES * stretch));
        let before = session.sandbox().cpu()?;
        for _ in 0..stretch {
            session.request().await?;
        }
        let cpu = millis(session.sandbox().cpu()?.saturating_sub(before)) / stretch as f64;
        let (rss, _) = session.sandbox().memory()?;
        all.push(Endurance { requests: number * stretch, cpu, rss: crate::measure::megabytes(rss) });
    }
    session.stop().await?;
    Ok(all)
}

/// Shows the current step on one line.
fn progress(what: &str) {
    eprint!("\r\x1b[2K{what}");
}
