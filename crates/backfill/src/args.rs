//! What one may say on the command line. A value that is taken is good.

use crate::client::Target;
use crate::table::ColumnTypes;
use clap::builder::NonEmptyStringValueParser;
use clap::{Parser, ValueEnum};
use contract::limits::MAX_EVENTS;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// The most requests in flight that one may ask for; the service's limits come far earlier.
pub const MAX_CONCURRENCY: usize = 64;

const HELP: &str = "\
The API key is read from the environment, never from the command line: set VIBEFOLLOW_API_KEY, or name
another variable with --key-env.

Started again with the same files, it goes on where it was. FILE.checkpoint.json says where that is,
FILE.rejects.ndjson holds the events that were refused, with line, field and reason.

Exit codes:
  0  every event was accepted (with --dry-run: is valid)
  1  done, but some events were rejected
  2  the command line or the environment is wrong; nothing was sent
  3  aborted (a refusal of the service, no success for too long, Ctrl-C, a full disk …); start it again to go on";

/// Sends events from files or standard input to event-ingest, each exactly once.
#[derive(Debug, Parser)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
#[command(name = "event-ingest-backfill", version, after_help = HELP)]
pub struct Args {
    /// NDJSON (one event a line) or CSV with a header; `-` or nothing is standard input
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Where the service is, as in <https://api.example.com>; `/api/v1/events/batch` is added
    #[arg(long, env = "VIBEFOLLOW_BASE_URL", value_parser = Target::parse, required_unless_present = "dry_run")]
    pub url: Option<Target>,
    /// The environment variable that holds the API key
    #[arg(long, value_name = "NAME", default_value = "VIBEFOLLOW_API_KEY", value_parser = NonEmptyStringValueParser::new())]
    pub key_env: String,
    /// The Host header to send: how a local AWS knows which API is meant
    #[arg(long, env = "VIBEFOLLOW_HOST", value_parser = NonEmptyStringValueParser::new())]
    pub host: Option<String>,
    /// Allow plain http:// to another machine, which shows it the API key and whoever listens on the way
    #[arg(long)]
    pub insecure_http: bool,
    /// What the files hold. Without it: CSV where the name ends in .csv, else NDJSON
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Columns of a CSV that are no strings, as in properties.age=number,properties.vip=boolean
    #[arg(long, value_name = "COLUMN=TYPE,…", default_value = "", value_parser = ColumnTypes::parse)]
    pub types: ColumnTypes,
    /// Only validate: send nothing and leave no files, but for an explicit --rejects
    #[arg(long)]
    pub dry_run: bool,
    /// The most events of one request
    #[arg(long, value_name = "N", default_value_t = MAX_EVENTS, value_parser = max_events)]
    pub max_events: usize,
    /// The most requests in flight; fewer while the service asks for it
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = concurrency)]
    pub concurrency: usize,
    /// How long to wait for one answer, as in 30s
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
    /// Abort when nothing but failures came for this long, as in 90s, 15m or 2h
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = duration)]
    pub give_up_after: Duration,
    /// Where to keep how far it got. Without it: beside the first file
    #[arg(long, value_name = "PATH")]
    pub checkpoint: Option<PathBuf>,
    /// Where to put rejected events. Without it: beside the first file
    #[arg(long, value_name = "PATH")]
    pub rejects: Option<PathBuf>,
    /// Begin anew: forget the checkpoint and empty the rejects file
    #[arg(long)]
    pub restart: bool,
    /// Print the summary as a JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One event in JSON a line.
    Ndjson,
    /// Comma-separated values with a header.
    Csv,
}

fn max_events(text: &str) -> Result<usize, String> {
    within(text, MAX_EVENTS)
}

fn concurrency(text: &str) -> Result<usize, String> {
    within(text, MAX_CONCURRENCY)
}

fn within(text: &str, most: usize) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| format!("must be a whole number from 1 to {most}"))
}

/// A whole number of seconds (`s`, or nothing), minutes (`m`) or hours (`h`).
fn duration(text: &str) -> Result<Duration, String> {
    let (number, seconds) = match text.char_indices().next_back() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3600),
        _ => (text, 1),
    };
    let number: Option<u32> = number.parse().ok().filter(|number| *number > 0);
    let number = number.ok_or("must be a time such as 30s, 15m or 2h")?;
    Ok(Duration::from_secs(u64::from(number) * seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(["event-ingest-backfill"].into_iter().chain(line.split(' ')))
    }

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn bounds_are_exact() {
        let with = |rest: &str| parse(&format!("--url http://localhost f {rest}"));
        for good in ["--max-events 1", "--max-events 500", "--concurrency 1", "--concurrency 64", "--types a=number"] {
            with(good).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        for bad in ["--max-events 0", "--max-events 501", "--concurrency 0", "--concurrency 65", "--types a=date"] {
            assert!(with(bad).is_err(), "{bad:?}");
        }
        assert!(parse("f").is_err());
        parse("--dry-run f").unwrap();
    }

    #[test]
    fn times_have_units() {
        let seconds = |text: &str| duration(text).map(|time| time.as_secs()).ok();
        assert_eq!(["7", "7s", "2m", "3h"].map(seconds), [Some(7), Some(7), Some(120), Some(10_800)]);
        assert_eq!(["", "s", "0s", "-1s", "1d", "1.5h", "1µ"].map(seconds), [None; 7]);
    }
}
