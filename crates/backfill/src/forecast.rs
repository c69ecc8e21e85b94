//! What is known about the inputs before the first event is sent.

use crate::format::Format;
use crate::reader::ReadPlan;
use indicatif::{HumanBytes, HumanCount, HumanDuration};
use std::time::Duration;

/// The formats, sizes and numbers of events, and the time that sending takes at a given rate.
pub fn forecast(plan: &ReadPlan) -> String {
    let files = plan.sources.iter().map(|source| {
        let size = source.identity.bytes.map(|bytes| format!(", {}", HumanBytes(bytes))).unwrap_or_default();
        format!("{}: {}{size}", source.display_name(), name(source.format))
    });
    let mut lines: Vec<_> = files.take(10).collect();
    if plan.sources.len() > lines.len() {
        lines.push(format!("and {} more files", plan.sources.len() - lines.len()));
    }
    // Only Parquet files know how many rows they have.
    let rows = plan.sources.iter().map(|source| source.parquet.as_ref().map(|(_, rows)| *rows));
    let rows = rows.sum::<Option<u64>>().filter(|_| plan.options.mapping.conditions.is_empty());
    let events = rows.or(plan.limit).map(|rows| rows.min(plan.limit.unwrap_or(u64::MAX)));
    if let Some(events) = events {
        let at_most = if rows.is_none() { "at most " } else { "" };
        let batches = events.div_ceil(plan.max_events as u64);
        lines.push(format!("{at_most}{} events in {} batches or more", HumanCount(events), HumanCount(batches)));
    }
    if let (Some(events), Some(rate)) = (events, plan.events_per_second) {
        let time = HumanDuration(Duration::from_secs(events / rate));
        lines.push(format!("at {} events/s, this takes {time} or more", HumanCount(rate)));
    }
    lines.join("\n")
}

fn name(format: Format) -> &'static str {
    match format {
        Format::Ndjson => "NDJSON",
        Format::Json => "JSON",
        Format::Csv => "CSV",
        Format::Tsv => "TSV",
        Format::Parquet => "Parquet",
    }
}
