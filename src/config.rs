//! The function's environment variables, parsed once at init (docs/contract.md, "Configuration").

use crate::packing::Packing;
use contract::rate_limit::RateLimit;
use std::fmt;
use std::num::NonZeroU16;
use std::time::Duration;
use tracing_subscriber::filter::{LevelFilter, Targets};

/// The function's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The URL of the SQS queue for accepted events.
    pub queue_url: String,
    /// The `DynamoDB` table of idempotency records and rate windows.
    pub state_table: String,
    /// The `DynamoDB` table of API keys.
    pub api_keys_table: String,
    /// How events are divided into messages. It has lanes if the queue's URL ends in `.fifo`.
    pub packing: Packing,
    /// How long an idempotency key is remembered, at least 60 s.
    pub dedup_window: Duration,
    /// The rate limit of keys without a limit of their own.
    pub rate_limit: Option<RateLimit>,
    /// The log lines to write.
    pub log_filter: Targets,
    /// The name of the function, which Lambda sets; empty elsewhere.
    pub function_name: String,
    /// Whether a call to AWS uses TLS. Only a local AWS has an endpoint without it.
    pub uses_tls: bool,
    /// The version and commit of the deployed code, which each log line of a request contains.
    pub version: String,
}

/// Every problem with the environment variables, so that one log line names them all.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError(Vec<String>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad configuration: {}", self.0.join("; "))
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads the process environment.
    ///
    /// # Errors
    /// Names every missing or invalid variable at once.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_lookup(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    /// Reads variables through `lookup`.
    ///
    /// # Errors
    /// Names every missing or invalid variable at once.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let mut read = Reader { lookup, problems: &mut problems };
        let queue_url = read.variable("EVENTS_QUEUE_URL", None, queue_url);
        let state_table = read.variable("STATE_TABLE", None, non_empty);
        let api_keys_table = read.variable("API_KEYS_TABLE", None, non_empty);
        let is_ordered = queue_url.as_deref().is_some_and(is_fifo);
        // The messages of a lane are sent one after another, so fewer and longer messages are faster.
        let usual_events = if is_ordered { "1000" } else { "50" };
        let max_events_per_message = read.variable("MAX_EVENTS_PER_MESSAGE", Some(usual_events), up_to_1000);
        let lanes = read.variable("ORDERED_LANES", Some("10"), up_to_1000);
        let packing = max_events_per_message
            .zip(lanes)
            .map(|(max, lanes)| Packing { max_events_per_message: max, lanes: is_ordered.then_some(lanes) });
        let dedup_window = read.variable("DEDUP_WINDOW_SECONDS", Some("86400"), dedup_window);
        let rate_limit = read.variable("RATE_LIMIT_EVENTS_PER_SECOND", Some("0"), rate_limit);
        // RUST_LOG takes precedence, because people set it by hand to investigate.
        let log_level = if (read.lookup)("RUST_LOG").is_some() { "RUST_LOG" } else { "AWS_LAMBDA_LOG_LEVEL" };
        let log_filter = read.variable(log_level, Some("info"), log_filter);
        let function_name = (read.lookup)("AWS_LAMBDA_FUNCTION_NAME").unwrap_or_default();
        let version = read.variable("VERSION", Some(env!("CARGO_PKG_VERSION")), non_empty);
        // The SDK reads these variables itself. An empty value would make each of its calls panic.
        let [all, dynamodb, sqs] =
            ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_DYNAMODB", "AWS_ENDPOINT_URL_SQS"].map(|name| read.optional(name));
        let uses_tls = [dynamodb, sqs].into_iter().any(|of_service| {
            let endpoint = of_service.or_else(|| all.clone());
            endpoint.is_none_or(|url| url.starts_with("https:"))
        });

        let fields = (queue_url, state_table, api_keys_table, packing, dedup_window, rate_limit, log_filter, version);
        match fields {
            (
                Some(queue_url),
                Some(state_table),
                Some(api_keys_table),
                Some(packing),
                Some(dedup_window),
                Some(rate_limit),
                Some(log_filter),
                Some(version),
            ) if problems.is_empty() => Ok(Self {
                queue_url,
                state_table,
                api_keys_table,
                packing,
                dedup_window,
                rate_limit,
                log_filter,
                function_name,
                uses_tls,
                version,
            }),
            _ => Err(ConfigError(problems)),
        }
    }
}

struct Reader<'a, L> {
    lookup: L,
    problems: &'a mut Vec<String>,
}

impl<L: Fn(&str) -> Option<String>> Reader<'_, L> {
    /// Reads a variable that may be absent. A problem is recorded if it is empty.
    fn optional(&mut self, name: &str) -> Option<String> {
        (self.lookup)(name)?;
        self.variable(name, None, non_empty)
    }

    /// Parses one variable, or its default. A problem is recorded under the variable's name.
    fn variable<T>(
        &mut self,
        name: &str,
        default: Option<&str>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = (self.lookup)(name);
        let parsed = match value.as_deref().or(default) {
            None => Err("is required".to_owned()),
            Some("") => Err("must not be empty".to_owned()),
            Some(text) => parse(text),
        };
        parsed.map_err(|problem| self.problems.push(format!("{name} {problem}"))).ok()
    }
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "every parser of a variable has this signature; empty values are refused earlier"
)]
fn non_empty(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// Whether SQS treats the queue with this URL as a FIFO queue. The suffix is case-sensitive.
fn is_fifo(queue_url: &str) -> bool {
    std::path::Path::new(queue_url).extension().is_some_and(|extension| extension == "fifo")
}

fn queue_url(text: &str) -> Result<String, String> {
    if !text.starts_with("https://") && !text.starts_with("http://") {
        return Err("must be the URL of an SQS queue".to_owned());
    }
    Ok(text.to_owned())
}

fn up_to_1000(text: &str) -> Result<NonZeroU16, String> {
    let parsed = text.parse().ok().filter(|number: &NonZeroU16| number.get() <= 1000);
    parsed.ok_or_else(|| "must be a whole number from 1 to 1000".to_owned())
}

fn dedup_window(text: &str) -> Result<Duration, String> {
    // The upper bound, a hundred years, keeps every later sum within the range of DynamoDB's TTL.
    let parsed = text.parse().ok().filter(|seconds| (60..=3_155_760_000).contains(seconds));
    parsed.map(Duration::from_secs).ok_or_else(|| "must be a whole number of seconds, at least 60".to_owned())
}

fn rate_limit(text: &str) -> Result<Option<RateLimit>, String> {
    let number = text.parse().map_err(|_| "must be a whole number of events per second".to_owned())?;
    RateLimit::parse(number)
}

fn log_filter(text: &str) -> Result<Targets, String> {
    // Lambda has a level `FATAL` above `ERROR`; tracing does not.
    let text = if text.eq_ignore_ascii_case("fatal") { "error".to_owned() } else { text.to_lowercase() };
    // `Targets` treats a word that is not a level as a target, and would log nothing else.
    let is_directive = |part: &str| part.contains('=') || part.trim().parse::<LevelFilter>().is_ok();
    let parsed = if text.split(',').all(is_directive) { text.parse().ok() } else { None };
    parsed.ok_or_else(|| "must be a log level such as info, or a list of target=level".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn parse(overrides: &[(&str, Option<&str>)]) -> Result<Config, String> {
        let mut variables: HashMap<&str, &str> = HashMap::from([
            ("EVENTS_QUEUE_URL", "https://sqs.eu-west-1.amazonaws.com/123456789012/events"),
            ("STATE_TABLE", "state"),
            ("API_KEYS_TABLE", "api-keys"),
        ]);
        for (name, value) in overrides {
            match value {
                Some(value) => variables.insert(name, value),
                None => variables.remove(name),
            };
        }
        Config::from_lookup(|name| variables.get(name).map(ToString::to_string)).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let config = parse(&[]).unwrap();
        assert_eq!((config.packing.max_events_per_message.get(), config.packing.lanes), (50, None));
        assert_eq!(config.dedup_window, Duration::from_hours(24));
        assert_eq!(config.rate_limit, None);
        assert_eq!(config.log_filter.to_string(), "info");
        assert_eq!(config.version, env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let message = parse(&[
            ("EVENTS_QUEUE_URL", None),
            ("STATE_TABLE", Some("")),
            ("API_KEYS_TABLE", None),
            ("MAX_EVENTS_PER_MESSAGE", Some("0")),
            ("ORDERED_LANES", Some("1001")),
            ("DEDUP_WINDOW_SECONDS", Some("59")),
            ("RATE_LIMIT_EVENTS_PER_SECOND", Some("99")),
            ("RUST_LOG", Some("event_ingest=loud")),
            ("VERSION", Some("")),
            ("AWS_ENDPOINT_URL", Some("")),
            ("AWS_ENDPOINT_URL_SQS", Some("")),
        ])
        .unwrap_err();
        for expected in [
            "EVENTS_QUEUE_URL is required",
            "STATE_TABLE must not be empty",
            "API_KEYS_TABLE is required",
            "MAX_EVENTS_PER_MESSAGE must be a whole number from 1 to 1000",
            "ORDERED_LANES must be a whole number from 1 to 1000",
            "DEDUP_WINDOW_SECONDS must be a whole number of seconds, at least 60",
            "RATE_LIMIT_EVENTS_PER_SECOND must be 0 (no limit) or at least 100",
            "RUST_LOG must be a log level",
            "VERSION must not be empty",
            "AWS_ENDPOINT_URL must not be empty",
            "AWS_ENDPOINT_URL_SQS must not be empty",
        ] {
            assert!(message.contains(expected), "{expected:?} is missing from {message:?}");
        }
    }

    #[test]
    fn limits_are_exact() {
        let cases = [
            ("MAX_EVENTS_PER_MESSAGE", ["1", "1000"], ["0", "1001"]),
            ("ORDERED_LANES", ["1", "1000"], ["0", "1001"]),
            ("DEDUP_WINDOW_SECONDS", ["60", "86401"], ["59", "-60"]),
            ("RATE_LIMIT_EVENTS_PER_SECOND", ["0", "100"], ["99", "1"]),
        ];
        for (name, good, bad) in cases {
            for value in good {
                parse(&[(name, Some(value))]).unwrap();
            }
            for value in bad {
                assert!(parse(&[(name, Some(value))]).unwrap_err().contains(name), "{name}={value}");
            }
        }
    }

    #[test]
    fn only_endpoints_without_tls_need_no_tls() {
        let uses_tls = |overrides: &[_]| parse(overrides).unwrap().uses_tls;
        let local = Some("http://127.0.0.1:4566");
        assert!(uses_tls(&[]));
        assert!(!uses_tls(&[("AWS_ENDPOINT_URL", local)]));
        assert!(uses_tls(&[("AWS_ENDPOINT_URL_SQS", local)]), "DynamoDB is on AWS");
        assert!(!uses_tls(&[("AWS_ENDPOINT_URL_SQS", local), ("AWS_ENDPOINT_URL_DYNAMODB", local)]));
        assert!(uses_tls(&[("AWS_ENDPOINT_URL", local), ("AWS_ENDPOINT_URL_SQS", Some("https://sqs.test"))]));
    }

    #[test]
    fn an_ordered_queue_has_lanes_and_longer_messages() {
        let fifo = ("EVENTS_QUEUE_URL", Some("https://sqs.eu-west-1.amazonaws.com/123456789012/events.fifo"));
        let packing = |overrides: &[_]| {
            let Packing { max_events_per_message, lanes } = parse(overrides).unwrap().packing;
            (max_events_per_message.get(), lanes.map(NonZeroU16::get))
        };
        assert_eq!(packing(&[fifo]), (1000, Some(10)));
        assert_eq!(packing(&[fifo, ("MAX_EVENTS_PER_MESSAGE", Some("7"))]), (7, Some(10)));
        assert_eq!(packing(&[fifo, ("ORDERED_LANES", Some("3"))]), (1000, Some(3)));
        assert_eq!(packing(&[("ORDERED_LANES", Some("3"))]), (50, None));
    }

    #[test]
    fn log_levels_come_in_any_case_and_rust_log_wins() {
        let level = |overrides: &[_]| parse(overrides).unwrap().log_filter.to_string();
        assert_eq!(level(&[("AWS_LAMBDA_LOG_LEVEL", Some("DEBUG"))]), "debug");
        assert_eq!(level(&[("AWS_LAMBDA_LOG_LEVEL", Some("DEBUG")), ("RUST_LOG", Some("warn"))]), "warn");
        assert_eq!(level(&[("AWS_LAMBDA_LOG_LEVEL", Some("FATAL"))]), "error");
        assert_eq!(level(&[("RUST_LOG", Some("warn,event_ingest=debug"))]), "event_ingest=debug,warn");
        for invalid in ["inof", "verbose", "warn,event_ingest"] {
            assert!(
                parse(&[("RUST_LOG", Some(invalid))]).is_err_and(|problem| problem.contains("RUST_LOG")),
                "{invalid}"
            );
        }
    }
}
