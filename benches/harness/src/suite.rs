//! The measurements, their order, and their results.

use crate::measure::{Figures, Limit, Series, Session, median, millis, round, start_round};
use crate::prices::{Dollars, lambda_per_million_requests};
use crate::report;
use crate::sandbox::Setup;
use crate::share::{CpuGroup, SIZES};
use crate::stub::{Latency, tls};
use crate::targets::{Kind, Target};
use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use serde::Serialize;
use shapes::{Batch, Outcome, Shape};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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

/// A target and a shape at the CPU share of one memory size.
#[derive(Serialize)]
pub struct AtMemory {
    /// The name of the target.
    pub target: &'static str,
    /// The name of the shape.
    pub shape: &'static str,
    /// The memory size in MB.
    pub memory_mb: u32,
    /// The number of requests, over all rounds.
    pub requests: usize,
    /// The median latency of these requests in milliseconds.
    pub p50: f64,
    /// The 90th percentile; absent with fewer than 10 requests.
    pub p90: Option<f64>,
    /// The 99th percentile; absent with fewer than 100 requests.
    pub p99: Option<f64>,
    /// The average milliseconds that Lambda bills.
    pub billed: f64,
    /// CPU milliseconds per request.
    pub cpu: f64,
    /// Lambda's price of a million requests in dollars.
    pub lambda_dollars: f64,
    /// Whether the process has used more memory than this size. The benchmark does not limit memory.
    pub exceeds_memory: bool,
}

/// The first request of a new sandbox at the CPU share of one memory size.
#[derive(Serialize)]
pub struct FirstRequest {
    /// The name of the target.
    pub target: &'static str,
    /// The memory size in MB.
    pub memory_mb: u32,
    /// The number of sandboxes.
    pub sandboxes: usize,
    /// The median latency in milliseconds.
    pub p50: f64,
}

/// The figures by memory size.
#[derive(Default, Serialize)]
pub struct ByMemory {
    /// Warm requests.
    pub requests: Vec<AtMemory>,
    /// First requests, with 100 events.
    pub first: Vec<FirstRequest>,
    /// The reason why only the whole core was measured, if so.
    pub missing: Option<String>,
}

/// The results of one run.
#[derive(Serialize)]
pub struct Results {
    /// The machine and its load.
    pub machine: String,
    /// By the CPU share of Lambda's memory sizes.
    pub by_memory: ByMemory,
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
    pub against: Option<PathBuf>,
}

/// Runs a plan.
pub async fn run(root: &Path, plan: &Plan) -> Result<Results> {
    let ours = Target::ours(root);
    let mut targets = vec![Target::ours(root), Target::floor(root)];
    targets.extend(plan.against.as_deref().map(|binary| Target::other_build(root, binary)));
    if plan.peers {
        targets.extend(Target::peers(root));
    }
    let load = report::load_average();
    let group = CpuGroup::create();
    if let Err(error) = &group {
        eprintln!("{}", without_group(error));
    }
    let (rows, mut by_memory) = matrix(&targets, Latency::USUAL, plan, group.as_ref().ok()).await?;
    match &group {
        Ok(group) => by_memory.first = first_requests(&targets, plan, group).await?,
        Err(error) => by_memory.missing = Some(without_group(error)),
    }
    let tls = over_tls(&ours, plan).await?;
    let zip_bytes = zip_bytes(Path::new(&ours.command[0]))?;
    let full = if plan.full { Some(full(&ours, plan).await?) } else { None };
    let machine =
        format!("{}, load average {load} at the start, {} at the end", report::machine(), report::load_average());
    Ok(Results { machine, by_memory, rows, tls, zip_bytes, rounds: plan.rounds, full })
}

fn without_group(error: &anyhow::Error) -> String {
    format!(
        "Only the whole core was measured, because there is no cpu cgroup that this user may write to ({error:#}). \
         Run as root to measure the CPU shares of Lambda's memory sizes."
    )
}

/// Whether a target is measured with a shape.
fn is_measured(target: &Target, shape: &Shape) -> bool {
    match target.kind {
        Kind::Ours => true,
        Kind::Floor => shape.is_compared(),
        // One event is not packed, and a replay sends none.
        Kind::Peer => shape.is_compared() || !target.is_packed() && matches!(shape.name, "1 event" | "replay"),
    }
}

/// Whether a shape is measured at every memory size.
fn is_measured_by_memory(shape: &Shape) -> bool {
    shape.is_compared()
        || shape.ordered
        || shape.outcome == Outcome::PartlyAccepted
        || matches!(shape.name, "1 event" | "replay")
}

/// The requests of a round at each memory size. The time ends the series of the peers, which take up to
/// seconds for one request.
const LIMIT_AT_MEMORY: Limit = Limit { requests: 60, time: Duration::from_millis(1200) };

/// Runs the rounds. Each round visits every target and shape, and starts at another one, so that other load
/// on the machine affects all of them alike.
async fn matrix(
    targets: &[Target],
    latency: Latency,
    plan: &Plan,
    group: Option<&CpuGroup>,
) -> Result<(Vec<Row>, ByMemory)> {
    let mut shapes = Shape::all();
    shapes.retain(|shape| plan.shape.as_ref().is_none_or(|only| only == shape.name));
    ensure!(!shapes.is_empty(), "unknown shape");
    let batches: Vec<Batch> = shapes.iter().map(Shape::batch).collect::<Result<_>>()?;
    let mut cells = Vec::new();
    for target in targets {
        for (shape, batch) in shapes.iter().zip(&batches) {
            if is_measured(target, shape) {
                cells.push(Cell { target, shape, batch, rounds: Vec::new(), at_memory: BTreeMap::new() });
            }
        }
    }
    let count = cells.len();
    for number in 0..plan.rounds {
        for step in 0..count {
            // Each round starts at another cell.
            let cell = &mut cells[(step + number * count / plan.rounds) % count];
            progress(&format!("round {}/{}: {}, {}", number + 1, plan.rounds, cell.target.name, cell.shape.name));
            cell.round(latency, plan, group).await?;
        }
    }
    let by_memory = ByMemory { requests: cells.iter().flat_map(Cell::at_memory).collect(), ..ByMemory::default() };
    Ok((cells.into_iter().map(Cell::row).collect(), by_memory))
}

/// A target and a shape, with the rounds measured so far.
struct Cell<'a> {
    target: &'a Target,
    shape: &'a Shape,
    batch: &'a Batch,
    rounds: Vec<Figures>,
    at_memory: BTreeMap<u32, Series>,
}

impl Cell<'_> {
    async fn round(&mut self, latency: Latency, plan: &Plan, group: Option<&CpuGroup>) -> Result<()> {
        let setup = Setup { latency, ..Setup::default() };
        let requests = (self.shape.requests / plan.divide).max(3);
        let (mut session, figures) = start_round(self.target, self.shape, self.batch, requests, setup).await?;
        if let Some(group) = group
            && is_measured_by_memory(self.shape)
        {
            session.sandbox().join(group)?;
            for memory_mb in SIZES {
                let limit = Limit { requests: LIMIT_AT_MEMORY.requests / plan.divide, ..LIMIT_AT_MEMORY };
                let series = session.series_at(group, memory_mb, limit).await?;
                self.at_memory.entry(memory_mb).or_default().add(series);
            }
        }
        self.rounds.push(figures);
        session.stop().await
    }

    fn row(self) -> Row {
        let figures = Figures::median(&self.rounds);
        Row {
            target: self.target.name,
            kind: self.target.kind,
            packed: self.target.is_packed(),
            shape: self.shape.name,
            events: self.shape.events,
            body_bytes: self.batch.body_bytes,
            dollars: Dollars::per_million_events(&figures, self.shape, self.batch.body_bytes),
            figures,
        }
    }

    fn at_memory(&self) -> impl Iterator<Item = AtMemory> {
        let rss_peak = median(self.rounds.iter().map(|round| round.rss_peak));
        self.at_memory.iter().map(move |(&memory_mb, series)| {
            let requests = series.latencies.len();
            let billed = series.mean_billed();
            AtMemory {
                target: self.target.name,
                shape: self.shape.name,
                memory_mb,
                requests,
                p50: series.quantile(0.5),
                p90: (requests >= 10).then(|| series.quantile(0.9)),
                p99: (requests >= 100).then(|| series.quantile(0.99)),
                billed,
                cpu: series.cpu / series.count(),
                lambda_dollars: lambda_per_million_requests(billed, memory_mb),
                exceeds_memory: rss_peak > f64::from(memory_mb),
            }
        })
    }
}

/// What services over TLS need.
struct TlsServices {
    acceptor: tls::Acceptor,
    ca_file: PathBuf,
    /// Contains `ca_file`, and is removed with this value.
    _directory: tempfile::TempDir,
}

impl TlsServices {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let ca_file = directory.path().join("ca.pem");
        Ok(Self { acceptor: tls::acceptor(&ca_file)?, ca_file, _directory: directory })
    }

    /// A sandbox whose services have TLS and the usual latency.
    fn setup(&self) -> Setup<'_> {
        Setup { latency: Latency::USUAL, tls: Some((&self.acceptor, &self.ca_file)), ..Setup::default() }
    }
}

/// Sends every shape to an instrumented build of the function. It connects with TLS, as on AWS.
pub async fn train(root: &Path, binary: &Path, profiles: &Path) -> Result<()> {
    let target = Target::instrumented(root, binary, profiles);
    let services = TlsServices::new()?;
    for shape in Shape::all() {
        progress(shape.name);
        let batch = shape.batch()?;
        let mut session = Session::start(&target, &shape, &batch, services.setup()).await?;
        for _ in 0..shape.requests {
            session.request().await?;
        }
        session.finish().await?;
    }
    Ok(())
}

/// Measures the first request of new sandboxes, with 100 events. Init is on a whole core.
async fn first_requests(targets: &[Target], plan: &Plan, group: &CpuGroup) -> Result<Vec<FirstRequest>> {
    let shape = Shape::small("100 events", 100, 1);
    let batch = shape.batch()?;
    let mut all = Vec::new();
    for target in targets.iter().filter(|target| !target.is_packed()) {
        // Starting a peer takes much longer.
        let sandboxes = plan.rounds * if target.kind == Kind::Peer { 1 } else { 5 };
        for memory_mb in SIZES {
            progress(&format!("first requests: {}, {memory_mb} MB", target.name));
            let mut latencies = Vec::new();
            for _ in 0..sandboxes {
                let setup = Setup { latency: Latency::USUAL, ..Setup::default() };
                let mut session = Session::start(target, &shape, &batch, setup).await?;
                session.sandbox().join(group)?;
                let one = Limit { requests: 1, time: Duration::MAX };
                latencies.extend(session.series_at(group, memory_mb, one).await?.latencies);
                session.stop().await?;
            }
            all.push(FirstRequest { target: target.name, memory_mb, sandboxes, p50: median(latencies.into_iter()) });
        }
    }
    Ok(all)
}

async fn over_tls(ours: &Target, plan: &Plan) -> Result<Figures> {
    let services = TlsServices::new()?;
    let shape = Shape::small("100 events, TLS", 100, 50);
    let batch = shape.batch()?;
    let mut rounds = Vec::new();
    for number in 0..plan.rounds {
        progress(&format!("TLS: round {}/{}", number + 1, plan.rounds));
        rounds.push(round(ours, &shape, &batch, (shape.requests / plan.divide).max(3), services.setup()).await?);
    }
    Ok(Figures::median(&rounds))
}

/// The size of the deployed archive, except for the few bytes of its directory.
fn zip_bytes(binary: &Path) -> Result<usize> {
    let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut deflate, &std::fs::read(binary)?)?;
    Ok(deflate.finish()?.len())
}

async fn full(ours: &Target, plan: &Plan) -> Result<Full> {
    let (no_latency, _) = matrix(std::slice::from_ref(ours), Latency::NONE, plan, None).await?;
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
            let setup = Setup { latency: Latency::USUAL, ..Setup::default() };
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
            let setup = Setup::default();
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
    let setup = Setup::default();
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
