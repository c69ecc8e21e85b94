//! What one may say on the command line. A value that is taken is good.

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser};
use clap::{ArgGroup, Parser, Subcommand};
use event_ingest::auth::{Mode, ProjectId, WRITE_SCOPE};
use event_ingest::config::RateLimit;

/// The longest name of a key, in characters.
const LONGEST_NAME: usize = 64;

const HELP: &str = "\
AWS is found as every AWS tool finds it: AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL and the rest.

Exit codes:
  0  done, or it was so already
  1  AWS did not do it, or the result could not be written
  2  the command line or the environment is wrong
  3  no key, more than one, or the wrong one is meant; nothing was changed
  4  not confirmed; nothing was changed";

/// Creates, lists, rotates and revokes the API keys of event-ingest.
#[derive(Debug, Parser)]
#[command(name = "event-ingest-keys", version, after_help = HELP)]
pub struct Args {
    /// The DynamoDB table of API keys
    #[arg(long, global = true, env = "API_KEYS_TABLE", value_parser = NonEmptyStringValueParser::new())]
    pub table: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a key and print it, the only time it is ever shown, as the one line on standard output
    Create(Create),
    /// Print every key as a table: never the key itself, but its hint
    List(List),
    /// End a key: requests with it get 401 within 60 seconds
    Revoke(Revoke),
    /// Make a key like another one, and tell how to end that one once nobody uses it any more
    Rotate(Rotate),
}

/// Arguments of `create`.
#[derive(Debug, clap::Args)]
pub struct Create {
    /// Whose events the key sends: 1 to 64 of a-z 0-9 _ -
    #[arg(long, value_parser = project)]
    pub project: ProjectId,
    /// What you will know the key by: no two active keys of a project may share it
    #[arg(long, value_parser = name)]
    pub name: String,
    /// What the key may do; may be repeated. Without it: everything
    #[arg(long = "scope", value_parser = PossibleValuesParser::new([WRITE_SCOPE]))]
    pub scopes: Vec<String>,
    /// Events per second: 0 is no limit, else at least 50. Without it: what the function's
    /// configuration says
    #[arg(long, value_name = "N", value_parser = rate_limit)]
    pub rate_limit: Option<u32>,
    /// What the key starts with, and so which of the project's two worlds it writes to
    #[arg(long, default_value = "live", value_parser = PossibleValuesParser::new(["live", "test"]))]
    pub mode: String,
}

impl Create {
    /// The mode named.
    pub fn mode(&self) -> Mode {
        if self.mode == Mode::Test.as_str() { Mode::Test } else { Mode::Live }
    }
}

/// Arguments of `list`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// Only keys of this project
    #[arg(long, value_parser = project)]
    pub project: Option<ProjectId>,
    /// Print a JSON array instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `revoke`.
#[derive(Debug, clap::Args)]
pub struct Revoke {
    #[command(flatten)]
    pub which: Which,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}

/// Arguments of `rotate`.
#[derive(Debug, clap::Args)]
pub struct Rotate {
    #[command(flatten)]
    pub which: Which,
}

/// Which key is meant: the one that all of these fit.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
#[command(group = ArgGroup::new("which").args(["hint", "name"]).multiple(true).required(true))]
pub struct Which {
    /// The key's first 8 and last 4 characters, as `list` shows them
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub hint: Option<String>,
    /// The key's name; needs --project, or --hint
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub name: Option<String>,
    /// The key's project
    #[arg(long, value_parser = project, required_unless_present = "hint")]
    pub project: Option<ProjectId>,
}

fn project(text: &str) -> Result<ProjectId, String> {
    ProjectId::parse(text).ok_or_else(|| "must be 1 to 64 of a-z 0-9 _ -".to_owned())
}

fn name(text: &str) -> Result<String, String> {
    let fits = (1..=LONGEST_NAME).contains(&text.chars().count());
    if fits && text.trim() == text && !text.contains(char::is_control) {
        return Ok(text.to_owned());
    }
    Err(format!("must be 1 to {LONGEST_NAME} characters, none of them a control character, no space at either end"))
}

fn rate_limit(text: &str) -> Result<u32, String> {
    let number = text.parse().map_err(|_| "must be a whole number of events per second".to_owned())?;
    RateLimit::parse(number).map(|_| number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(["event-ingest-keys", "--table", "t"].into_iter().chain(line.split(' ')))
    }

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn bounds_are_exact() {
        let create = |rest: &str| parse(&format!("create --project p {rest}"));
        for good in ["--name n", "--name n --rate-limit 0", "--name n --rate-limit 50", "--name n --scope events:write"]
        {
            create(good).unwrap();
        }
        create(&format!("--name {}", "é".repeat(64))).unwrap();
        let too_long = format!("--name {}", "é".repeat(65));
        let bad =
            ["", "--name ", &too_long, "--name \u{1b}[31m", "--name n --rate-limit 49", "--name n --rate-limit x"];
        for bad in bad.into_iter().chain(["--name n --scope events:read", "--name n --mode prod"]) {
            assert!(create(bad).is_err(), "{bad:?}");
        }
        assert_eq!(name(" n").unwrap_err(), name("").unwrap_err());
    }

    #[test]
    fn a_key_is_named_by_hint_or_by_name_and_project() {
        for good in ["--hint h", "--name n --project p", "--hint h --project p", "--hint h --name n"] {
            parse(&format!("revoke {good}")).unwrap();
            parse(&format!("rotate {good}")).unwrap();
        }
        for bad in ["--yes", "--project p", "--name n", "--name n --project P", "--hint "] {
            assert!(parse(&format!("revoke {bad}")).is_err(), "{bad:?}");
        }
    }
}
