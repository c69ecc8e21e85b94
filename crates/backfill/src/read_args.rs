//! The command-line arguments that determine how the inputs become events.

use crate::column_types::ColumnTypes;
use crate::csv_parser::Dialect;
use crate::error::Error;
use crate::format::Format;
use crate::mapping::{Condition, Mapping, Remaining, assignment};
use crate::records::ReadOptions;
use crate::times::{self, Times, TimestampFormat};

/// Arguments about the inputs.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Input")]
pub struct ReadArgs {
    /// The format of the files, if it cannot be detected from their first bytes
    #[arg(long, value_enum, hide_possible_values = true, value_name = "ndjson|json|csv|tsv|parquet")]
    pub format: Option<Format>,
    /// Take members of the event from columns, or from inside a column (a.b). With `|`, the first that has a value
    #[arg(long, value_name = "MEMBER=COLUMN,…", value_delimiter = ',', value_parser = assignment)]
    pub map: Vec<(String, String)>,
    /// Set a member in all events, as in `name=page_view` or `properties.source=import`
    #[arg(long, value_name = "MEMBER=TEXT", value_parser = assignment)]
    pub set: Vec<(String, String)>,
    /// Read only records in which a column has this value, or with != does not have it. Can be repeated
    #[arg(long = "where", value_name = "COLUMN=TEXT", value_parser = Condition::parse)]
    pub conditions: Vec<Condition>,
    /// Turn all other columns into properties
    #[arg(long, conflicts_with = "drop_remaining")]
    pub remaining_as_properties: bool,
    /// Omit all other columns
    #[arg(long)]
    pub drop_remaining: bool,
    /// The types of properties: string, number, boolean or json, as in age=number,vip=boolean
    #[arg(long, value_name = "PROPERTY=TYPE,…", default_value = "", hide_default_value = true, value_parser = ColumnTypes::parse)]
    pub types: ColumnTypes,
    /// The format of times, if it is not RFC 3339. sql is 2025-03-01 08:00:00[.ffffff][±hh[:mm]| UTC]
    #[arg(
        long,
        value_enum,
        hide_possible_values = true,
        value_name = "sql|epoch-seconds|epoch-milliseconds|epoch-microseconds|rfc3339"
    )]
    pub timestamp_format: Option<TimestampFormat>,
    /// The time zone of times that do not include one: UTC, an offset such as +01:00, or a name such as Europe/Berlin
    #[arg(long, value_name = "ZONE", value_parser = zone)]
    pub tz: Option<String>,
    /// The delimiter of CSV files, such as `;` or tab. Default: the most frequent of , tab ; | in the header
    #[arg(long, value_name = "CHARACTER", value_parser = character)]
    pub delimiter: Option<Character>,
    /// The quote of CSV files, or none. Default: "
    #[arg(long, value_name = "CHARACTER", value_parser = character)]
    pub quote: Option<Character>,
    /// The character that escapes the next one in CSV files, usually \. Default: none; quotes are doubled
    #[arg(long, value_name = "CHARACTER", value_parser = character)]
    pub escape: Option<Character>,
    /// The texts that mean NULL in an unquoted CSV cell, besides an empty cell. Default: NULL,\N
    #[arg(long, value_name = "TEXT,…", value_delimiter = ',')]
    pub null: Option<Vec<String>>,
}

/// An ASCII character, or `none`.
#[derive(Clone, Copy, Debug)]
pub struct Character(Option<u8>);

fn character(text: &str) -> Result<Character, String> {
    match (text, text.as_bytes()) {
        ("none", _) => Ok(Character(None)),
        ("tab" | "\\t", _) => Ok(Character(Some(b'\t'))),
        (_, [byte]) if byte.is_ascii() && !matches!(byte, b'\n' | b'\r') => Ok(Character(Some(*byte))),
        _ => Err("must be one ASCII character, tab, or none".to_owned()),
    }
}

fn zone(text: &str) -> Result<String, String> {
    times::time_zone(text).map(|_| text.to_owned())
}

impl ReadArgs {
    /// The options that these arguments mean.
    ///
    /// # Errors
    /// If two arguments contradict each other.
    pub fn options(&self) -> Result<ReadOptions, Error> {
        let mut mapping = Mapping {
            conditions: self.conditions.clone(),
            types: self.types.clone(),
            timestamp_format: self.timestamp_format,
            time_zone: self.tz.clone(),
            ..Mapping::default()
        };
        if self.remaining_as_properties {
            mapping.remaining = Remaining::Properties;
        } else if self.drop_remaining {
            mapping.remaining = Remaining::Drop;
        }
        for (member, columns) in &self.map {
            let columns = columns.split('|').map(|column| column.trim().to_owned()).collect();
            if mapping.columns.insert(member.clone(), columns).is_some() {
                return Err(Error::Usage(format!("--map gives `{member}` twice")));
            }
        }
        for (member, text) in &self.set {
            if mapping.columns.contains_key(member) || mapping.constants.insert(member.clone(), text.clone()).is_some()
            {
                return Err(Error::Usage(format!("--map and --set give `{member}` twice")));
            }
        }
        Times::new(self.timestamp_format, self.tz.as_deref()).map_err(Error::Usage)?;
        Ok(ReadOptions { mapping, dialect: self.dialect()? })
    }

    fn dialect(&self) -> Result<Dialect, Error> {
        let mut dialect = Dialect::default();
        if let Some(delimiter) = self.delimiter {
            let none = || Error::Usage("--delimiter cannot be none".to_owned());
            dialect.delimiter = Some(delimiter.0.ok_or_else(none)?);
        }
        if let Some(quote) = self.quote {
            dialect.quote = quote.0;
        }
        dialect.escape = self.escape.and_then(|escape| escape.0);
        if let Some(nulls) = &self.null {
            dialect.nulls = nulls.iter().filter(|null| !null.is_empty()).cloned().collect();
        }
        let same =
            dialect.delimiter.is_some_and(|delimiter| [dialect.quote, dialect.escape].contains(&Some(delimiter)));
        if same {
            return Err(Error::Usage("--delimiter must differ from --quote and --escape".to_owned()));
        }
        Ok(dialect)
    }
}
