//! The results as Markdown.

use crate::goals::{self, best_peer};
use crate::prices::{CPU_SHARE, billed_in_lambda};
use crate::share::{PERIOD_MS, SIZES, slice_ms};
use crate::suite::{AtMemory, Concurrency, Full, Results, Row};
use crate::targets::Kind;
use std::fmt::Write;

/// The machine: processor and cores.
pub fn machine() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    format!("{}, {cores} cores", model.trim_matches([' ', '\t', ':']))
}

/// The load average of the last minute. A run by itself loads the machine with about one process.
pub fn load_average() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or_default().to_owned()
}

/// The whole report.
pub fn markdown(results: &Results) -> String {
    let machine = &results.machine;
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "# Benchmark\n\n\
         Written by `make bench{}`; do not edit. Medians over interleaved rounds ({} in this run), each in a new process. {machine}.\n\n\
         Unless noted, DynamoDB responds after 4 ms and SQS after 8 ms. Every response was checked, and every \
         event arrived exactly once. Times are in milliseconds, memory in MB of 2^20 bytes.\n\n",
        if results.full.is_some() { "-full" } else { "" },
        results.rounds,
    );
    by_memory(&mut out, results);
    section(&mut out, "Targets", &targets(results));
    section(&mut out, "Latency, CPU and memory", &times(&results.rows));
    section(&mut out, "The better peer, as a multiple of event-ingest", &ratios(results));
    section(&mut out, "Calls and units per request", &calls(&results.rows));
    section(&mut out, "Dollars per million events", &money(&results.rows));
    let _ = write!(
        out,
        "us-east-1 list prices, without free tier. The CPU time of a request is divided by the share of a CPU that \
         256 MB get in Lambda ({CPU_SHARE:.3}); its waiting time is not. The total is Lambda, DynamoDB and SQS.\n\n"
    );
    section(&mut out, "Start over TLS", &tls(results));
    if let Some(full) = &results.full {
        section(&mut out, "Without latency", &times(&full.no_latency));
        section(&mut out, "Concurrent sandboxes", &concurrency(&full.concurrency));
        section(&mut out, "Growth", &growth(full));
    }
    out
}

fn by_memory(out: &mut String, results: &Results) {
    let by_memory = &results.by_memory;
    if let Some(reason) = &by_memory.missing {
        let _ = write!(out, "## By memory size\n\n{reason}\n\n");
        return;
    }
    let slices = SIZES.map(|size| format!("{:.2} ms for {size} MB", slice_ms(size))).join(", ");
    let _ = write!(
        out,
        "## By memory size\n\nLambda's share of a CPU, enforced with a cpu cgroup: in each period of {PERIOD_MS} ms, {slices}. Init has a whole \
         core. Requests come one at a time and begin at a random point in a period. Each cell has p50 / p90 / p99 over all \
         rounds; p90 needs 10 requests and p99 needs 100. † The process has used more memory than this size; the benchmark \
         does not limit memory. More than 4,000 ms exceed the function's timeout.\n\n",
    );
    let sizes = SIZES.map(|size| format!("{size} MB"));
    let head: Vec<&str> = std::iter::once("").chain(sizes.iter().map(String::as_str)).collect();
    let rows = grouped(results);
    out.push_str(&table(&head, rows.iter().map(|row| cells(row, latencies))));
    section(out, "First request by memory size", &first_requests(results, &head));
    let _ = write!(
        out,
        "The median of new sandboxes that receive 100 events after init. The first request also reads the API key.\n\n"
    );
    let lambda = rows.iter().map(|row| {
        let mut cells = cells(row, |at| format!("{:.2}", at.lambda_dollars));
        let cpu = row.last().map_or(0.0, |at| at.cpu);
        let fits =
            SIZES.into_iter().find(|size| cpu <= slice_ms(*size)).map_or("–".to_owned(), |size| size.to_string());
        cells.splice(1..1, [format!("{cpu:.2}"), fits]);
        cells
    });
    let head = [&head[..1], &["CPU, ms", "fits a slice of, MB"], &head[1..]].concat();
    let lambda = table(&head, lambda);
    section(out, "Dollars for Lambda per million requests, by memory size", &lambda);
}

/// The figures by memory size, as one list per shape and target.
fn grouped(results: &Results) -> Vec<Vec<&AtMemory>> {
    let rows = by_shape(&results.rows).into_iter().map(|row| {
        let requests = results.by_memory.requests.iter();
        requests.filter(|at| (at.shape, at.target) == (row.shape, row.target)).collect::<Vec<_>>()
    });
    rows.filter(|row| !row.is_empty()).collect()
}

fn cells(row: &[&AtMemory], cell: impl Fn(&AtMemory) -> String) -> Vec<String> {
    let label = row.first().map(|at| format!("{}: {}", at.shape, at.target));
    label.into_iter().chain(row.iter().map(|at| cell(at))).collect()
}

fn latencies(at: &AtMemory) -> String {
    let or_none = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.1}"));
    let mark = if at.exceeds_memory { " †" } else { "" };
    format!("{:.1} / {} / {}{mark}", at.p50, or_none(at.p90), or_none(at.p99))
}

fn first_requests(results: &Results, head: &[&str]) -> String {
    let first = &results.by_memory.first;
    let rows = first.chunk_by(|one, other| one.target == other.target).map(|sizes| {
        let values = sizes.iter().map(|first| format!("{:.1}", first.p50));
        std::iter::once(sizes[0].target.to_owned()).chain(values).collect()
    });
    table(head, rows)
}

fn section(out: &mut String, title: &str, table: &str) {
    let _ = write!(out, "## {title}\n\n{table}\n");
}

/// A Markdown table. The first column is text; the others are numbers.
fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let rule = std::iter::once("---").chain(std::iter::repeat("--:")).take(head.len());
    let mut out = format!("| {} |\n| {} |\n", head.join(" | "), rule.collect::<Vec<_>>().join(" | "));
    for row in rows {
        let _ = writeln!(out, "| {} |", row.join(" | "));
    }
    out
}

fn targets(results: &Results) -> String {
    let rows = goals::all(results).into_iter().map(|goal| {
        vec![goal.what, goal.target, goal.measured, if goal.met { "met" } else { "**missed**" }.to_owned()]
    });
    table(&["", "target", "measured", ""], rows)
}

fn label(row: &Row) -> String {
    format!("{}: {}", row.shape, row.target)
}

/// Groups the rows by shape, in their order.
fn by_shape(rows: &[Row]) -> Vec<&Row> {
    let mut sorted: Vec<&Row> = rows.iter().collect();
    let first = |shape| rows.iter().position(|row| row.shape == shape);
    sorted.sort_by_key(|row| first(row.shape));
    sorted
}

fn times(rows: &[Row]) -> String {
    let head = ["", "p50", "p90", "p99", "CPU", "init", "init CPU", "first", "RSS", "RSS peak"];
    let row = |row: &Row| {
        let f = &row.figures;
        let mut cells = vec![label(row)];
        cells.extend([f.p50, f.p90, f.p99].map(|value| format!("{value:.2}")));
        cells.push(format!("{:.3}", f.cpu));
        cells.extend([f.init, f.init_cpu, f.first, f.rss, f.rss_peak].map(|value| format!("{value:.1}")));
        cells
    };
    table(&head, by_shape(rows).into_iter().map(row))
}

fn ratios(results: &Results) -> String {
    let mut rows = Vec::new();
    for shape in ["100 events", "500 events", "5 MB"] {
        let Some(ours) = goals::ours(results, shape) else { continue };
        for packed in [false, true] {
            let ratio = |figure: fn(&Row) -> f64| {
                let peer = best_peer(results, shape, packed, figure);
                peer.map_or("–".to_owned(), |peer| format!("{:.1}", peer / figure(ours)))
            };
            rows.push(vec![
                format!("{shape}: {}", if packed { "packed" } else { "idiomatic" }),
                ratio(|row| row.figures.p50),
                ratio(|row| row.figures.p99),
                ratio(|row| row.figures.cpu),
                ratio(|row| row.figures.init),
                ratio(|row| row.figures.rss_peak),
                ratio(|row| row.dollars.total()),
            ]);
        }
    }
    table(&["", "p50", "p99", "CPU", "init", "RSS peak", "dollars"], rows)
}

fn calls(rows: &[Row]) -> String {
    let head = [
        "",
        "DynamoDB writes",
        "write units",
        "reads",
        "read units",
        "SQS calls",
        "messages",
        "64 KB chunks",
        "KB sent",
        "log bytes",
    ];
    let row = |row: &Row| {
        let usage = &row.figures.usage;
        let mut cells = vec![label(row)];
        let counts =
            [usage.writes, usage.write_units, usage.reads, usage.read_units, usage.sends, usage.messages, usage.chunks];
        cells.extend(counts.map(|count| format!("{}", (count * 100.0).round() / 100.0)));
        cells.push(format!("{:.1}", usage.bytes / 1024.0));
        cells.push(format!("{:.0}", row.figures.log_bytes));
        cells
    };
    table(&head, by_shape(rows).into_iter().map(row))
}

fn money(rows: &[Row]) -> String {
    let head = [
        "",
        "total",
        "Lambda",
        "DynamoDB",
        "SQS",
        "billed ms here",
        "in Lambda",
        "SQS group surcharge",
        "API Gateway",
        "function's log",
    ];
    let accepted = |row: &&Row| row.kind != Kind::Floor && !matches!(row.shape, "replay" | "invalid batch");
    let row = |row: &Row| {
        let d = &row.dollars;
        let mut cells = vec![label(row)];
        cells.extend([d.total(), d.lambda, d.dynamodb, d.sqs].map(|dollars| format!("{dollars:.4}")));
        cells.extend([row.figures.billed, billed_in_lambda(&row.figures)].map(|ms| format!("{ms:.0}")));
        cells.extend([d.fair_queue, d.gateway, d.logs].map(|dollars| format!("{dollars:.4}")));
        cells
    };
    table(&head, by_shape(rows).into_iter().filter(accepted).map(row))
}

fn tls(results: &Results) -> String {
    let f = &results.tls;
    let cells = [f.init, f.init_cpu, f.first, f.p50, f.cpu].map(|value| format!("{value:.2}"));
    let cells = std::iter::once("100 events".to_owned()).chain(cells).collect();
    table(&["", "init", "init CPU", "first request", "warm p50", "warm CPU"], [cells])
}

fn concurrency(rows: &[Concurrency]) -> String {
    let row = |row: &Concurrency| {
        vec![
            format!("{}: {} sandboxes", row.shape, row.sandboxes),
            format!("{:.0}", row.throughput),
            format!("{:.2}", row.p50),
            format!("{:.3}", row.cpu),
        ]
    };
    table(&["", "requests/s", "p50", "CPU"], rows.iter().map(row))
}

fn growth(full: &Full) -> String {
    let row = |size: &crate::suite::Growth| {
        vec![
            size.events.to_string(),
            format!("{:.1}", size.body_bytes as f64 / 1024.0),
            format!("{:.3}", size.cpu),
            format!("{:.1}", size.rss_peak),
        ]
    };
    let sizes = full.by_events.iter().chain(&full.by_bytes);
    table(&["events", "KB of the body", "CPU", "RSS peak"], sizes.map(row))
}
