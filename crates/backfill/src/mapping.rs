//! `--map`, `--set`, `--where`, and related options: how the columns of a record become an event.
//!
//! A column is a cell of a CSV row, or a member of a JSON object or Parquet row.

use crate::column_types::{ColumnType, ColumnTypes, PROPERTIES, PROPERTIES_PREFIX, REQUIRED_MEMBERS, TIMESTAMP};
use crate::rejects::Problem;
use crate::times::{Times, TimestampFormat};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The members with a single value. `properties` is the only other member.
const MEMBERS: [&str; 3] = [REQUIRED_MEMBERS[0], REQUIRED_MEMBERS[1], TIMESTAMP];

/// What happens to columns that are not mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Remaining {
    /// In CSV and Parquet files, they are an error. Members of JSON events are passed on unchanged.
    #[default]
    Keep,
    /// They become properties.
    Properties,
    /// They are left out.
    Drop,
}

/// The options that determine the event that a record becomes. Its default leaves JSON events unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// The columns of each member. The first one with a value is used.
    pub columns: BTreeMap<String, Vec<String>>,
    /// The constant value of a member.
    pub constants: BTreeMap<String, String>,
    /// The conditions that a record must satisfy.
    pub conditions: Vec<Condition>,
    /// What happens to all other columns.
    pub remaining: Remaining,
    /// The types of properties.
    pub types: ColumnTypes,
    /// How the input writes times.
    pub timestamp_format: Option<TimestampFormat>,
    /// The time zone of times without one.
    pub time_zone: Option<String>,
}

/// One `--where`: a record is skipped unless the column has the value, or with `is_not`, does not have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    column: String,
    is_not: bool,
    value: String,
}

impl Condition {
    /// Parses `COLUMN=VALUE` or `COLUMN!=VALUE`.
    ///
    /// # Errors
    /// If there is no `=` or no column.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (column, value) = text.split_once('=').ok_or("must be COLUMN=VALUE or COLUMN!=VALUE")?;
        let is_not = column.ends_with('!');
        let column = column.strip_suffix('!').unwrap_or(column).trim();
        if column.is_empty() {
            return Err("must be COLUMN=VALUE or COLUMN!=VALUE".to_owned());
        }
        Ok(Self { column: column.to_owned(), is_not, value: value.to_owned() })
    }
}

/// Parses `MEMBER=VALUE`, the form of `--map` and `--set`.
///
/// # Errors
/// If events have no such member.
pub fn assignment(text: &str) -> Result<(String, String), String> {
    let (member, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not MEMBER=…"))?;
    let member = member.trim();
    let is_property = member.strip_prefix(PROPERTIES_PREFIX).is_some_and(|name| !name.is_empty());
    if !MEMBERS.contains(&member) && member != PROPERTIES && !is_property {
        return Err(format!("`{member}` is not one of external_user_id, name, timestamp, properties, properties.KEY"));
    }
    if value.is_empty() {
        return Err(format!("`{text}` has nothing after `=`"));
    }
    Ok((member.to_owned(), value.to_owned()))
}

impl Mapping {
    /// Whether JSON events are sent as they are.
    pub fn is_identity(&self) -> bool {
        *self == Self::default()
    }
}

/// A value of a record.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    /// The text of a cell.
    Text(&'a str),
    /// JSON text.
    Json(&'a str),
}

impl<'a> Value<'a> {
    /// A JSON value; `None` if it is null.
    pub fn json(raw: &'a RawValue) -> Option<Self> {
        (raw.get() != "null").then(|| Self::Json(raw.get()))
    }

    /// The content of a string, or the JSON text of anything else.
    fn text(self) -> Cow<'a, str> {
        match self {
            Self::Text(text) => text.into(),
            Self::Json(raw) => string(raw).unwrap_or_else(|| raw.into()),
        }
    }

    fn is_empty(self) -> bool {
        matches!(self, Self::Text("") | Self::Json("\"\""))
    }
}

/// The content of a JSON string; `None` if `raw` is not a string.
fn string(raw: &str) -> Option<Cow<'_, str>> {
    let text = raw.strip_prefix('"')?.strip_suffix('"')?;
    if !text.contains('\\') {
        return Some(text.into());
    }
    serde_json::from_str::<String>(raw).ok().map(Cow::Owned)
}

/// A record, whose columns have values.
pub trait Columns {
    /// The value of a column; `None` if it is absent or null.
    fn get(&self, column: &Column) -> Option<Value<'_>>;
    /// The columns whose names are only known from the record itself.
    fn unknown(&self) -> impl Iterator<Item = (&str, &str)>;
}

/// A column, or a value inside the JSON of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// The column's name.
    pub name: String,
    /// The column's index in the header, if there is one.
    pub index: usize,
    /// The keys that lead to the value inside the column; usually none.
    pub path: Vec<String>,
}

/// Where the value of a member comes from.
#[derive(Clone, Debug)]
enum Origin {
    Columns(Vec<Column>),
    Constant(String),
}

struct Property {
    name: String,
    /// The name as a JSON string.
    key: String,
    kind: Option<ColumnType>,
    origin: Origin,
}

enum Operand {
    Member(usize),
    Columns(Vec<Column>),
}

/// A mapping, compiled for the columns of one input.
pub struct Plan {
    members: [Origin; MEMBERS.len()],
    base: Origin,
    properties: Vec<Property>,
    conditions: Vec<(Operand, bool, String)>,
    /// The columns that are not remaining ones.
    used: BTreeSet<String>,
    remaining: Remaining,
    types: ColumnTypes,
    times: Times,
}

/// The result of mapping a record.
pub enum Mapped {
    /// The event is in the buffer. It has these problems, besides those that the service's rules find.
    Event(Vec<Problem>),
    /// The record does not satisfy the conditions.
    Skipped,
}

impl Plan {
    /// Compiles a mapping. `header` has the names of the columns, if they are the same for all records.
    ///
    /// # Errors
    /// The message says which option or column is wrong, and what to do.
    pub fn new(mapping: &Mapping, header: Option<&[&str]>) -> Result<Self, String> {
        let times = Times::new(mapping.timestamp_format, mapping.time_zone.as_deref())?;
        let mut builder = Builder { header, used: BTreeSet::new() };
        let mut mapped = |member: &str| -> Result<Option<Origin>, String> {
            if let Some(constant) = mapping.constants.get(member) {
                return Ok(Some(Origin::Constant(constant.clone())));
            }
            let Some(columns) = mapping.columns.get(member) else { return Ok(None) };
            let columns: Vec<_> = columns.iter().map(|column| builder.column(column)).collect::<Result<_, _>>()?;
            Ok(Some(Origin::Columns(columns.concat())))
        };
        let named: Vec<_> =
            MEMBERS.iter().chain(&[PROPERTIES]).map(|member| mapped(member)).collect::<Result<_, _>>()?;
        let mut properties = Vec::new();
        let all = mapping.columns.keys().chain(mapping.constants.keys()).collect::<BTreeSet<_>>();
        for member in all {
            if let Some(name) = member.strip_prefix(PROPERTIES_PREFIX) {
                properties.extend(mapped(member)?.map(|origin| property(&mapping.types, name, origin)));
            }
        }
        // A member that is not mapped comes from the column with its name.
        let mut own = |member: &str, origin: Option<Origin>| origin.unwrap_or_else(|| builder.own_column(member));
        let [external_user_id, name, timestamp, base] =
            <[_; 4]>::try_from(named).map_err(|_| "internal error".to_owned())?;
        let members = [own(MEMBERS[0], external_user_id), own(MEMBERS[1], name), own(MEMBERS[2], timestamp)];
        let base = own(PROPERTIES, base);
        builder.check_required(&members)?;
        let has_base = !matches!(&base, Origin::Columns(columns) if columns.is_empty());
        builder.add_header(mapping, &mut properties, has_base)?;
        let condition = |condition: &Condition| {
            let member = MEMBERS.iter().position(|member| *member == condition.column);
            let operand = match member {
                Some(member) => Operand::Member(member),
                None => Operand::Columns(builder.find(&condition.column)?),
            };
            Ok((operand, condition.is_not, condition.value.clone()))
        };
        let conditions = mapping.conditions.iter().map(condition).collect::<Result<_, String>>()?;
        let (used, remaining, types) = (builder.used, mapping.remaining, mapping.types.clone());
        Ok(Self { members, base, properties, conditions, used, remaining, types, times })
    }

    /// Writes the event that `record` becomes to `event`.
    pub fn write(&self, record: &impl Columns, event: &mut Vec<u8>) -> Mapped {
        if !self.conditions.iter().all(|(operand, is_not, value)| self.has(record, operand, value) != *is_not) {
            return Mapped::Skipped;
        }
        let mut problems = Vec::new();
        event.push(b'{');
        for (member, origin) in MEMBERS.iter().zip(&self.members) {
            let Some(value) = value(record, origin) else { continue };
            separate(event);
            event.extend_from_slice(format!("\"{member}\":").as_bytes());
            if *member == TIMESTAMP {
                let text = value.text();
                let time = self.times.convert(&text).unwrap_or_else(|reason| {
                    problems.push(invalid((*member).to_owned(), reason));
                    Cow::Borrowed(&*text)
                });
                write_string(event, &time);
            } else {
                match value {
                    Value::Json(raw) if raw.starts_with(['"', '{', '[']) => event.extend_from_slice(raw.as_bytes()),
                    // Numbers and booleans keep their digits as strings.
                    Value::Json(text) | Value::Text(text) => write_string(event, text),
                }
            }
        }
        self.write_properties(record, event, &mut problems);
        if self.remaining == Remaining::Keep {
            for (name, raw) in record.unknown().filter(|(name, _)| !self.used.contains(*name)) {
                separate(event);
                write_string(event, name);
                event.push(b':');
                event.extend_from_slice(raw.as_bytes());
            }
        }
        event.push(b'}');
        Mapped::Event(problems)
    }

    fn has(&self, record: &impl Columns, operand: &Operand, wanted: &str) -> bool {
        let value = match operand {
            Operand::Member(member) => value(record, &self.members[*member]),
            Operand::Columns(columns) => columns.iter().find_map(|column| record.get(column)),
        };
        value.map_or(wanted.is_empty(), |value| value.text() == wanted)
    }

    fn write_properties(&self, record: &impl Columns, event: &mut Vec<u8>, problems: &mut Vec<Problem>) {
        let base = value(record, &self.base).map(|value| match value {
            Value::Json(raw) if !raw.starts_with('"') => Cow::Borrowed(raw),
            // An object in a string.
            Value::Json(_) | Value::Text(_) => {
                let text = value.text();
                typed(ColumnType::Json, text.trim()).unwrap_or_else(|_| json_string(&text)).into()
            }
        });
        let base = base.as_deref();
        let inner = base.map(|base| base.strip_prefix('{').and_then(|base| base.strip_suffix('}')).ok_or(base));
        let start = event.len();
        separate(event);
        event.extend_from_slice(b"\"properties\":");
        let mut is_empty = true;
        match inner {
            // The service's rules reject anything but an object.
            Some(Err(other)) => return event.extend_from_slice(other.as_bytes()),
            Some(Ok(inner)) => {
                event.push(b'{');
                if !self.write_typed(base, event, problems) {
                    event.extend_from_slice(inner.as_bytes());
                }
                is_empty = inner.trim_ascii().is_empty();
            }
            None => event.push(b'{'),
        }
        let mut taken: Option<BTreeSet<Cow<'_, str>>> = None;
        let mut add = |event: &mut Vec<u8>, name: &str, key: Option<&str>, kind, value: Value<'_>| {
            if base.is_some() {
                let taken = taken.get_or_insert_with(|| base.map(keys).unwrap_or_default());
                if !taken.insert(Cow::Owned(name.to_owned())) {
                    let field = format!("{PROPERTIES_PREFIX}{name}");
                    let reason = "is in `properties` and is also a column; use --map to give the column another name";
                    problems.push(invalid(field, reason));
                    return;
                }
            }
            if !std::mem::replace(&mut is_empty, false) {
                event.push(b',');
            }
            match key {
                Some(key) => event.extend_from_slice(key.as_bytes()),
                None => write_string(event, name),
            }
            event.push(b':');
            if let Err(reason) = write_value(event, kind, value) {
                problems.push(invalid(format!("{PROPERTIES_PREFIX}{name}"), reason));
            }
        };
        for property in &self.properties {
            if let Some(value) = value(record, &property.origin) {
                add(event, &property.name, Some(&property.key), property.kind, value);
            }
        }
        for (name, raw) in record.unknown().filter(|(name, _)| !self.used.contains(*name)) {
            if self.remaining == Remaining::Properties && raw != "null" {
                let property = name.strip_prefix(PROPERTIES_PREFIX).unwrap_or(name);
                add(event, property, None, self.types.of(property), Value::Json(raw));
            }
        }
        if is_empty && base.is_none() {
            event.truncate(start);
        } else {
            event.push(b'}');
        }
    }
}

impl Plan {
    /// Writes the members of the object `base` if `--types` names one of them. Otherwise their text stays as it is.
    fn write_typed(&self, base: Option<&str>, event: &mut Vec<u8>, problems: &mut Vec<Problem>) -> bool {
        if self.types.names().next().is_none() {
            return false;
        }
        let members = base.and_then(Members::parse).unwrap_or_default();
        if !members.0.iter().any(|(name, _)| self.types.of(name).is_some()) {
            return false;
        }
        for (name, raw) in &members.0 {
            separate(event);
            write_string(event, name);
            event.push(b':');
            // A null stays null, whatever its type would be.
            let kind = self.types.of(name).filter(|_| raw.get() != "null");
            if let Err(reason) = write_value(event, kind, Value::Json(raw.get())) {
                problems.push(invalid(format!("{PROPERTIES_PREFIX}{name}"), reason));
            }
        }
        true
    }
}

/// Compiles columns against a header.
struct Builder<'a> {
    header: Option<&'a [&'a str]>,
    used: BTreeSet<String>,
}

impl Builder<'_> {
    /// The columns that a name in `--map` refers to.
    fn column(&mut self, name: &str) -> Result<Vec<Column>, String> {
        let columns = self.find(name)?;
        // A value inside a column does not use the column up.
        self.used.extend(columns.iter().filter(|column| column.path.is_empty()).map(|column| column.name.clone()));
        Ok(columns)
    }

    /// A name such as `context.ip` is that of a column, or else of a value inside the column `context`. Without a
    /// header, each record decides.
    fn find(&self, name: &str) -> Result<Vec<Column>, String> {
        let whole = Column { name: name.to_owned(), index: 0, path: Vec::new() };
        let mut keys = name.split('.').map(str::to_owned);
        let outer = keys.next().unwrap_or_default();
        let inner = Column { name: outer, index: 0, path: keys.collect() };
        let Some(header) = self.header else {
            return Ok(if inner.path.is_empty() { vec![whole] } else { vec![whole, inner] });
        };
        let index = |column: &Column| header.iter().position(|name| *name == column.name);
        let found = [whole, inner].into_iter().find_map(|column| Some(Column { index: index(&column)?, ..column }));
        found
            .map(|column| vec![column])
            .ok_or_else(|| format!("there is no column `{name}`; the columns are {}", list(header)))
    }

    fn own_column(&mut self, member: &str) -> Origin {
        self.used.insert(member.to_owned());
        match self.header {
            None => Origin::Columns(vec![Column { name: member.to_owned(), index: 0, path: Vec::new() }]),
            Some(header) => {
                let index = header.iter().position(|column| *column == member);
                let column = index.map(|index| Column { name: member.to_owned(), index, path: Vec::new() });
                Origin::Columns(column.into_iter().collect())
            }
        }
    }

    fn check_required(&self, members: &[Origin]) -> Result<(), String> {
        let Some(header) = self.header else { return Ok(()) };
        let is_missing = |origin: &Origin| matches!(origin, Origin::Columns(columns) if columns.is_empty());
        let missing = REQUIRED_MEMBERS.iter().zip(members).find(|(_, origin)| is_missing(origin));
        missing.map_or(Ok(()), |(member, _)| {
            Err(format!(
                "there is no column `{member}`; name the column that has it: --map {member}=COLUMN. The columns are {}",
                list(header)
            ))
        })
    }

    /// Adds the columns of the header that are properties.
    fn add_header(&mut self, mapping: &Mapping, properties: &mut Vec<Property>, has_base: bool) -> Result<(), String> {
        let Some(header) = self.header else { return Ok(()) };
        let mut unmapped = Vec::new();
        for (index, name) in header.iter().enumerate() {
            if header[..index].contains(name) {
                return Err(format!("the column `{name}` occurs twice"));
            }
            if self.used.contains(*name) {
                continue;
            }
            let property = name.strip_prefix(PROPERTIES_PREFIX).filter(|property| !property.is_empty());
            let property = match (property, mapping.remaining) {
                (Some(property), _) => property,
                (None, Remaining::Properties) => name,
                (None, Remaining::Drop) => continue,
                (None, Remaining::Keep) => {
                    unmapped.push(*name);
                    continue;
                }
            };
            let column = Column { name: (*name).to_owned(), index, path: Vec::new() };
            properties.push(self::property(&mapping.types, property, Origin::Columns(vec![column])));
        }
        // All columns are known from the header, so none of them is left.
        self.used.extend(header.iter().map(|name| (*name).to_owned()));
        if !unmapped.is_empty() {
            return Err(format!(
                "no member of an event is named {}. Make these columns properties with --remaining-as-properties, leave \
                 them out with --drop-remaining, or map them, as in --map properties.{}={}",
                list(&unmapped),
                unmapped[0],
                unmapped[0],
            ));
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = properties.iter().find(|property| !names.insert(property.name.as_str())) {
            return Err(format!(
                "two columns become the property `{}`; use --map to give one another name",
                twice.name
            ));
        }
        // Only the records show what is in `properties`.
        let unknown = mapping.types.names().find(|name| !has_base && !names.contains(name));
        unknown.map_or(Ok(()), |name| {
            Err(format!("--types names `properties.{name}`, which is not a property of the events"))
        })
    }
}

fn property(types: &ColumnTypes, name: &str, origin: Origin) -> Property {
    Property { name: name.to_owned(), key: json_string(name), kind: types.of(name), origin }
}

/// At most ten names, quoted.
fn list(names: &[&str]) -> String {
    let quoted: Vec<_> = names.iter().take(10).map(|name| format!("`{name}`")).collect();
    let more = names.len() - quoted.len();
    quoted.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

fn value<'a>(record: &'a impl Columns, origin: &'a Origin) -> Option<Value<'a>> {
    match origin {
        Origin::Constant(text) => Some(Value::Text(text)),
        Origin::Columns(columns) => {
            let mut values = columns.iter().filter_map(|column| record.get(column));
            let first = values.next()?;
            // Of several columns, the first one that has text.
            if first.is_empty() { values.find(|value| !value.is_empty()).or(Some(first)) } else { Some(first) }
        }
    }
}

fn invalid(field: String, reason: &str) -> Problem {
    Problem { field: Some(field), code: "invalid_cell".into(), reason: reason.to_owned() }
}

/// Adds a comma, unless the next member is the first one.
fn separate(event: &mut Vec<u8>) {
    if event.last() != Some(&b'{') {
        event.push(b',');
    }
}

/// Writes a property's value. A value that does not have the type is written as it is.
fn write_value(event: &mut Vec<u8>, kind: Option<ColumnType>, value: Value<'_>) -> Result<(), &'static str> {
    let written = match kind {
        None => None,
        Some(ColumnType::String) => match value {
            Value::Json(raw) if !raw.starts_with('"') => Some(json_string(raw)),
            _ => None,
        },
        Some(kind) => match typed(kind, value.text().trim()) {
            Ok(text) => Some(text),
            Err(reason) => {
                write_value(event, None, value)?;
                return Err(reason);
            }
        },
    };
    match (written, value) {
        (Some(text), _) => event.extend_from_slice(text.as_bytes()),
        (None, Value::Json(raw)) => event.extend_from_slice(raw.as_bytes()),
        (None, Value::Text(text)) => write_string(event, text),
    }
    Ok(())
}

fn typed(kind: ColumnType, text: &str) -> Result<String, &'static str> {
    match kind {
        ColumnType::String => Ok(json_string(text)),
        ColumnType::Number => {
            let starts_as_number = text.starts_with(|first: char| first == '-' || first.is_ascii_digit());
            let is_number = starts_as_number && serde_json::from_str::<&RawValue>(text).is_ok();
            if is_number { Ok(text.to_owned()) } else { Err("must be a number such as 42, -1.5 or 6e23") }
        }
        // The spellings in which databases export booleans.
        ColumnType::Boolean => match text.to_ascii_lowercase().as_str() {
            "true" | "t" | "1" => Ok("true".to_owned()),
            "false" | "f" | "0" => Ok("false".to_owned()),
            _ => Err("must be a boolean: true, t, 1, false, f or 0"),
        },
        ColumnType::Json => {
            let raw: &RawValue = serde_json::from_str(text).map_err(|_| "must be JSON")?;
            // Outside strings, a line break is only a space. Inside, JSON does not allow it.
            Ok(raw.get().replace(['\n', '\r'], " "))
        }
    }
}

fn json_string(text: &str) -> String {
    // Serializing a string cannot fail.
    serde_json::to_string(text).unwrap_or_default()
}

fn write_string(event: &mut Vec<u8>, text: &str) {
    // Writing a string to memory cannot fail.
    let _ = serde_json::to_writer(event, text);
}

/// The members of a JSON object.
#[derive(Default)]
pub struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// Parses an object; `None` if `text` is not one.
    pub fn parse(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    fn member(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| *value)
    }

    /// The name of a member that occurs twice.
    pub fn duplicate(&self) -> Option<&str> {
        let mut names = BTreeSet::new();
        self.0.iter().map(|(name, _)| &**name).find(|name| !names.insert(*name))
    }
}

impl Columns for Members<'_> {
    fn get(&self, column: &Column) -> Option<Value<'_>> {
        inner(self.member(&column.name)?, &column.path).and_then(Value::json)
    }

    fn unknown(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, value.get()))
    }
}

/// Follows a path into nested objects.
pub fn inner<'a>(value: &'a RawValue, path: &[String]) -> Option<&'a RawValue> {
    path.iter().try_fold(value, |value, key| Members::parse(value.get())?.member(key))
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;

        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((Key(key), value)) = map.next_entry()? {
                    members.push((key, value));
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(MembersVisitor)
    }
}

#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

fn keys(object: &str) -> BTreeSet<Cow<'_, str>> {
    Members::parse(object).map(|members| members.0.into_iter().map(|(name, _)| name).collect()).unwrap_or_default()
}
