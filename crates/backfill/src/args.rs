//! Command-line arguments, validated while parsing.

use crate::read_args::ReadArgs;
use crate::target::Target;
use clap::builder::NonEmptyStringValueParser;
use clap::{Parser, Subcommand, value_parser};
use contract::limits::MAX_BULK_EVENTS;
use std::path::PathBuf;
use std::time::Duration;

/// The default of `--max-events`.
const DEFAULT_EVENTS: usize = 500;
/// The maximum number of characters of `--run-name`, which becomes a part of file names.
const MAX_NAME_LENGTH: usize = 64;
/// The highest `--concurrency`. The service's limits are reached far earlier.
const MAX_CONCURRENCY: usize = 64;

const HELP: &str = "\
The API key is read from the environment variable VIBEFOLLOW_API_KEY, or from the one that --key-env names.

To resume a run, run the same command again. FILE.checkpoint.json records how far the run got.
FILE.rejects.ndjson has the rejected events, each with its line, field and reason.
`event-ingest-backfill rejects FILE.rejects.ndjson` prints these events, one per line, to be corrected and sent.

Proxies are taken from HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY. SSL_CERT_FILE names a PEM file with the
certificate authorities to trust in place of the system's.

Exit codes:
  0  all events were accepted (with --dry-run: are valid)
  1  the run is complete, but some events were rejected
  2  the command line, the environment, the input or the checkpoint is wrong; this run sent nothing
  3  the run was aborted (a refusal by the service, no success for too long, Ctrl-C, a full disk, …);
     run the same command again to resume";

/// Not a doc comment, which would need the URL in angle brackets.
const URL_HELP: &str = "The base URL of the service, such as https://api.example.com, without /api/v1/events/bulk";

/// Sends events from files or standard input to event-ingest, each exactly once.
#[derive(Debug, Parser)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent flag")]
#[command(name = "event-ingest-backfill", version, after_help = HELP)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, disable_help_subcommand = true)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// NDJSON, JSON, CSV, TSV or Parquet files, also with gzip or Zstandard; a directory or a quoted pattern such as
    /// 'part-*' stands for its files; `s3://BUCKET/KEY` is an object in Amazon S3, if this command was built with the
    /// feature `s3`; without FILE, or with `-`, standard input
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    #[arg(long, help = URL_HELP, env = "VIBEFOLLOW_BASE_URL", value_parser = Target::parse, required_unless_present_any = ["dry_run", "preview"])]
    pub url: Option<Target>,
    /// The environment variable with the API key
    #[arg(long, value_name = "NAME", default_value = "VIBEFOLLOW_API_KEY", value_parser = NonEmptyStringValueParser::new())]
    pub key_env: String,
    /// The Host header to send, by which a local AWS selects the API
    #[arg(long, env = "VIBEFOLLOW_HOST", value_parser = NonEmptyStringValueParser::new())]
    pub host: Option<String>,
    /// Allow http:// to another machine, although it exposes the API key to the network
    #[arg(long)]
    pub insecure_http: bool,
    /// Only validate the events. Send nothing, and write no files except --rejects
    #[arg(long)]
    pub dry_run: bool,
    /// The maximum number of events in a request
    #[arg(long, value_name = "N", default_value_t = DEFAULT_EVENTS, value_parser = max_events)]
    pub max_events: usize,
    /// The maximum number of requests in flight. After a 429, a 503 or a timeout, fewer are sent for a while
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = concurrency)]
    pub concurrency: usize,
    /// How long to wait for an answer, such as 30s. After a timeout, batches are smaller or may take longer
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
    /// Abort when all requests have failed for this long, such as 90s, 15m or 2h
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = duration)]
    pub give_up_after: Duration,
    /// The checkpoint file. Default: FILE.checkpoint.json, for the first FILE
    #[arg(long, value_name = "PATH")]
    pub checkpoint: Option<PathBuf>,
    /// The file for rejected events. Default: FILE.rejects.ndjson, for the first FILE
    #[arg(long, value_name = "PATH")]
    pub rejects: Option<PathBuf>,
    /// Abort when more events than this are rejected. Default: abort if the first 1,000 are all rejected
    #[arg(long, value_name = "N")]
    pub max_rejects: Option<u64>,
    /// Print the first N events as they would be sent, and send nothing
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    pub preview: Option<u64>,
    /// Send at most N events in this run. The next run continues after them
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Send at most N events per second, on average
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    pub events_per_second: Option<u64>,
    /// Start over: ignore the checkpoint, and rename the rejects file if there is one. Events of files that the service
    /// accepted within the last 24 hours are not queued again, unless --run-name is new
    #[arg(long)]
    pub restart: bool,
    /// A name that makes the events of this run different from those of every other run of the same files. It becomes a
    /// part of the names of the checkpoint and the rejects file
    #[arg(long, value_name = "NAME", value_parser = run_name)]
    pub run_name: Option<String>,
    /// Resume with another API key of the same project and mode, such as after a rotation
    #[arg(long)]
    pub same_project: bool,
    /// Accept an input without any event
    #[arg(long)]
    pub allow_empty: bool,
    /// Print the summary as a JSON object on standard output
    #[arg(long)]
    pub json: bool,
    // Last, because the heading of these options would cover those after them.
    #[command(flatten)]
    pub reading: ReadArgs,
}

/// What else the command can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the events of a rejects file, byte for byte, one per line
    Rejects {
        /// The rejects file, or `-` for standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// Parses a name that is safe in file names.
fn run_name(text: &str) -> Result<String, String> {
    let is_allowed = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
    let is_valid = !text.is_empty() && text.len() <= MAX_NAME_LENGTH && text.chars().all(is_allowed);
    is_valid.then(|| text.to_owned()).ok_or_else(|| format!("must be 1 to {MAX_NAME_LENGTH} of A-Z a-z 0-9 . _ -"))
}

fn max_events(text: &str) -> Result<usize, String> {
    number_up_to(MAX_BULK_EVENTS, text)
}

fn concurrency(text: &str) -> Result<usize, String> {
    number_up_to(MAX_CONCURRENCY, text)
}

fn number_up_to(max: usize, text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=max).contains(number));
    number.ok_or_else(|| format!("must be a whole number from 1 to {max}"))
}

/// Parses a duration such as `30s`, `15m` or `2h`. A number without a unit is in seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().map(Duration::from_secs);
    // To humantime, `M` is a month.
    let duration = seconds.or_else(|| humantime::parse_duration(text).ok().filter(|_| !text.contains('M')));
    duration.filter(|duration| !duration.is_zero()).ok_or_else(|| "must be a time such as 30s, 15m or 2h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(["event-ingest-backfill"].into_iter().chain(line.split(' ')))
    }

    #[test]
    fn the_arguments_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn bounds_are_exact() {
        let with = |rest: &str| parse(&format!("--url http://localhost f {rest}"));
        for good in ["--max-events 1", "--max-events 1000", "--concurrency 1", "--concurrency 64", "--types a=number"] {
            with(good).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        for bad in ["--max-events 0", "--max-events 1001", "--concurrency 0", "--concurrency 65", "--types a=date"] {
            assert!(with(bad).is_err(), "{bad:?}");
        }
        assert!(parse("f").is_err());
        parse("--dry-run f").unwrap();
    }

    #[test]
    fn a_duration_has_a_unit_or_is_in_seconds() {
        let seconds = |text: &str| duration(text).map(|time| time.as_secs()).ok();
        assert_eq!(["7", "7s", "2m", "3h", "1h 30m"].map(seconds), [7, 7, 120, 10_800, 5400].map(Some));
        assert_eq!(["", "s", "0", "0s", "-1s", "1x", "1 day later"].map(seconds), [None; 7]);
    }
}
