//! Command-line arguments, validated while parsing.

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser};
use clap::{ArgGroup, Parser, Subcommand};
use contract::api_key::WRITE_SCOPE;
use contract::rate_limit::RateLimit;
use contract::tenant::{Mode, ProjectId};

/// The maximum number of characters in a key's name.
const MAX_NAME_CHARS: usize = 64;

const EXIT_CODES: &str = "\
Account, region and endpoint come from the usual AWS settings, such as AWS_PROFILE, AWS_REGION and AWS_ENDPOINT_URL.

Exit codes:
  0  success; also if the key was already revoked or already had the limit
  1  an AWS call failed, or the result could not be written
  2  the command line or the environment is invalid
  3  not exactly one key matches, the name is in use, or the key is revoked or cannot be copied; nothing was changed
  4  not confirmed; nothing was changed";

/// Creates, lists, limits, rotates and revokes the API keys of event-ingest.
#[derive(Debug, Parser)]
#[command(name = "event-ingest-keys", version, after_help = EXIT_CODES)]
pub struct Args {
    /// DynamoDB table of the API keys
    #[arg(long, global = true, env = "API_KEYS_TABLE", value_parser = NonEmptyStringValueParser::new())]
    pub table: Option<String>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a key and print it to standard output. It is never shown again
    Create(Create),
    /// List the keys by their hints; the keys themselves are not stored
    List(List),
    /// Change the rate limit of a key. It takes effect within 60 seconds
    Limit(Limit),
    /// Revoke a key. Requests with it get 401 within 60 seconds
    Revoke(Revoke),
    /// Create a key with the settings of an existing key. The existing key works until you revoke it
    Rotate(Rotate),
}

/// Arguments of `create`.
#[derive(Debug, clap::Args)]
pub struct Create {
    /// Project that the key belongs to: 1 to 64 characters of a-z 0-9 _ -
    #[arg(long, value_parser = project)]
    pub project: ProjectId,
    /// Name of the key. Two active keys of a project cannot have the same name
    #[arg(long, value_parser = name)]
    pub name: String,
    /// Scope of the key; can be repeated. Default: all scopes
    #[arg(long = "scope", value_parser = PossibleValuesParser::new([WRITE_SCOPE]))]
    pub scopes: Vec<String>,
    /// Events per second: 0 (no limit) or at least 100. Default: the function's default limit
    #[arg(long, value_name = "N", value_parser = rate_limit)]
    pub rate_limit: Option<u32>,
    /// Mode of the key and of the events sent with it
    #[arg(long, default_value = "live", value_parser = PossibleValuesParser::new(["live", "test"]))]
    pub mode: String,
}

impl Create {
    pub fn mode(&self) -> Mode {
        if self.mode == Mode::Test.as_str() { Mode::Test } else { Mode::Live }
    }
}

/// Arguments of `list`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// List only the keys of this project
    #[arg(long, value_parser = project)]
    pub project: Option<ProjectId>,
    /// Print a JSON array instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `limit`.
#[derive(Debug, clap::Args)]
pub struct Limit {
    #[command(flatten)]
    pub selector: KeySelector,
    /// Events per second: 0 (no limit) or at least 100; or `default`, the function's default limit
    #[arg(long = "rate-limit", value_name = "N|default", value_parser = key_limit)]
    pub new: KeyLimit,
    /// Do not ask for confirmation
    #[arg(long, short)]
    pub yes: bool,
}

/// The rate limit of a key in events per second. 0 means no limit; `None` means the function's
/// default limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyLimit(pub Option<u32>);

/// Arguments of `revoke`.
#[derive(Debug, clap::Args)]
pub struct Revoke {
    #[command(flatten)]
    pub selector: KeySelector,
    /// Do not ask for confirmation
    #[arg(long, short)]
    pub yes: bool,
}

/// Arguments of `rotate`.
#[derive(Debug, clap::Args)]
pub struct Rotate {
    #[command(flatten)]
    pub selector: KeySelector,
}

/// Selects the key that matches every argument given.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
#[command(group = ArgGroup::new("selector").args(["hint", "name"]).multiple(true).required(true))]
pub struct KeySelector {
    /// Hint of the key: its first 8 and last 4 characters, as `list` shows them
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub hint: Option<String>,
    /// Name of the key; requires --project or --hint
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub name: Option<String>,
    /// Project of the key
    #[arg(long, value_parser = project, required_unless_present = "hint")]
    pub project: Option<ProjectId>,
}

fn project(text: &str) -> Result<ProjectId, String> {
    ProjectId::parse(text).ok_or_else(|| "must be 1 to 64 characters of a-z 0-9 _ -".to_owned())
}

fn name(text: &str) -> Result<String, String> {
    let fits = (1..=MAX_NAME_CHARS).contains(&text.chars().count());
    if fits && text.trim() == text && !text.contains(char::is_control) {
        return Ok(text.to_owned());
    }
    Err(format!("must be 1 to {MAX_NAME_CHARS} characters, without control characters and without spaces at the ends"))
}

fn rate_limit(text: &str) -> Result<u32, String> {
    let number = text.parse().map_err(|_| "must be a whole number of events per second".to_owned())?;
    RateLimit::parse(number).map(|_| number)
}

fn key_limit(text: &str) -> Result<KeyLimit, String> {
    if text == "default" {
        return Ok(KeyLimit(None));
    }
    rate_limit(text).map(|limit| KeyLimit(Some(limit))).map_err(|error| format!("{error}, or `default`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(["event-ingest-keys", "--table", "t"].into_iter().chain(line.split(' ')))
    }

    #[test]
    fn clap_accepts_the_definition() {
        Args::command().debug_assert();
    }

    #[test]
    fn values_are_accepted_up_to_their_limits_and_not_beyond() {
        let create = |rest: &str| parse(&format!("create --project p {rest}"));
        let longest = format!("--name {}", "é".repeat(64));
        for valid in ["--name n --rate-limit 0", "--name n --rate-limit 100", "--name n --scope events:write", &longest]
        {
            create(valid).unwrap();
        }
        let too_long = format!("--name {}", "é".repeat(65));
        for invalid in [
            "",
            "--name ",
            &too_long,
            "--name \u{1b}[31m",
            "--name n --rate-limit 99",
            "--name n --rate-limit x",
            "--name n --scope events:read",
            "--name n --mode prod",
        ] {
            assert!(create(invalid).is_err(), "{invalid:?}");
        }
        assert!(name(" n").is_err());
    }

    #[test]
    fn a_limit_is_zero_or_at_least_100_or_the_default() {
        let limit = |limit: &str| match parse(&format!("limit --hint h --rate-limit {limit}"))?.command {
            Command::Limit(limit) => Ok::<_, clap::Error>(limit.new.0),
            command => panic!("{command:?}"),
        };
        for (text, expected) in [("default", None), ("0", Some(0)), ("100", Some(100)), ("4294967295", Some(u32::MAX))]
        {
            assert_eq!(limit(text).unwrap(), expected);
        }
        for invalid in ["1", "99", "-1", "4294967296", "none", "Default", "1e3", ""] {
            assert!(limit(invalid).is_err(), "{invalid:?}");
        }
        parse("limit --hint h").unwrap_err();
    }

    #[test]
    fn a_key_is_selected_by_hint_or_by_name_and_project() {
        for valid in ["--hint h", "--name n --project p", "--hint h --project p", "--hint h --name n"] {
            parse(&format!("revoke {valid}")).unwrap();
            parse(&format!("rotate {valid}")).unwrap();
            parse(&format!("limit {valid} --rate-limit 100")).unwrap();
        }
        for invalid in ["--yes", "--project p", "--name n", "--name n --project P", "--hint "] {
            assert!(parse(&format!("revoke {invalid}")).is_err(), "{invalid:?}");
            assert!(parse(&format!("limit {invalid} --rate-limit 100")).is_err(), "{invalid:?}");
        }
    }
}
