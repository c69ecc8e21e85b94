//! Parquet: each row becomes a line of JSON.
//!
//! Columns that are NULL are left out. Memory is bounded by the pages of a row group that are open, one for each column.

use crate::error::Unreadable;
use crate::location::Location;
use crate::object_chunks::ObjectChunks;
use crate::times;
use parquet::basic::{ConvertedType, LogicalType, TimeUnit, Type as PhysicalType};
use parquet::data_type::Decimal;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many bytes of lines are made at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// The names of the columns of a Parquet file, and the number of its rows.
///
/// # Errors
/// If the file cannot be read.
pub fn describe(location: &Location) -> io::Result<(Vec<String>, u64)> {
    let (reader, _) = open(location)?;
    let metadata = reader.metadata().file_metadata();
    let names = metadata.schema().get_fields().iter().map(|field| field.name().to_owned()).collect();
    Ok((names, u64::try_from(metadata.num_rows()).unwrap_or_default()))
}

/// Reads the footer. The second result is the size in bytes.
fn open(location: &Location) -> io::Result<(Box<dyn FileReader>, u64)> {
    match location {
        Location::Stdin => Err(io::ErrorKind::NotSeekable.into()),
        Location::File(path) => {
            let file = File::open(path)?;
            let size = file.metadata()?.len();
            Ok((Box::new(SerializedFileReader::new(file).map_err(unreadable)?), size))
        }
        Location::Object(object) => {
            let chunks = ObjectChunks::new(object.clone());
            let reader = SerializedFileReader::new(chunks.clone()).map_err(unreadable)?;
            chunks.expect_columns(reader.metadata().file_metadata().schema_descr().num_columns());
            Ok((Box::new(reader), object.size()))
        }
    }
}

/// The rows of a Parquet file as lines of JSON.
pub struct ParquetRows {
    rows: RowIter<'static>,
    schema: Arc<Type>,
    lines: Vec<u8>,
    /// The number of bytes of `lines` that were read.
    taken: usize,
    row: u64,
    total_rows: u64,
    size: u64,
    bytes_read: Arc<AtomicU64>,
}

impl ParquetRows {
    /// Opens a file. `bytes_read` will follow the progress, in bytes of the file.
    ///
    /// # Errors
    /// If the file cannot be read, or has a column of a type that is not supported.
    pub fn open(location: &Location, bytes_read: Arc<AtomicU64>) -> io::Result<Self> {
        let (reader, size) = open(location)?;
        let metadata = reader.metadata().file_metadata();
        let schema = metadata.schema_descr().root_schema_ptr();
        let total_rows = u64::try_from(metadata.num_rows()).unwrap_or_default();
        schema.get_fields().iter().try_for_each(|field| check(field))?;
        let rows = RowIter::from_file_into(reader);
        Ok(Self { rows, schema, lines: Vec::new(), taken: 0, row: 0, total_rows, size, bytes_read })
    }

    fn fill(&mut self) -> io::Result<()> {
        self.lines.clear();
        self.taken = 0;
        while self.lines.len() < CHUNK_BYTES {
            let Some(row) = self.rows.next() else { return self.check_end() };
            let row = row.map_err(unreadable)?;
            write_row(&mut self.lines, &row, &self.schema)?;
            self.lines.push(b'\n');
            self.row += 1;
        }
        let read = u128::from(self.size) * u128::from(self.row) / u128::from(self.total_rows.max(1));
        self.bytes_read.store(u64::try_from(read).unwrap_or(self.size), Ordering::Relaxed);
        Ok(())
    }

    fn check_end(&self) -> io::Result<()> {
        if self.row == self.total_rows {
            return Ok(());
        }
        Err(damaged(format!("it has {} rows, but its footer says {}", self.row, self.total_rows)))
    }
}

impl Read for ParquetRows {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.lines.len() {
            self.fill()?;
        }
        let read = (&self.lines[self.taken..]).read(buffer)?;
        self.taken += read;
        Ok(read)
    }
}

fn unreadable(error: ParquetError) -> io::Error {
    let ParquetError::External(cause) = error else { return damaged(error) };
    match cause.downcast::<io::Error>() {
        Ok(error) if Unreadable::is(&error) => *error,
        Ok(error) => damaged(error),
        Err(error) => damaged(error),
    }
}

fn damaged(error: impl Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("its Parquet data cannot be read: {error}"))
}

/// Refuses the types at which the parquet crate would panic.
fn check(field: &Type) -> io::Result<()> {
    if field.is_group() {
        return field.get_fields().iter().try_for_each(|field| check(field));
    }
    if field.get_basic_info().converted_type() == ConvertedType::INTERVAL {
        let name = field.name();
        return Err(damaged(format!("the column `{name}` has the type INTERVAL; export it as text")));
    }
    Ok(())
}

/// Writes a struct as an object. Members that are NULL are left out.
fn write_row(json: &mut Vec<u8>, row: &Row, schema: &Type) -> io::Result<()> {
    json.push(b'{');
    let start = json.len();
    for ((name, field), kind) in row.get_column_iter().zip(schema.get_fields()) {
        if *field == Field::Null {
            continue;
        }
        if json.len() > start {
            json.push(b',');
        }
        serde_json::to_writer(&mut *json, name)?;
        json.push(b':');
        write_field(json, field, kind)?;
    }
    json.push(b'}');
    Ok(())
}

fn write_field(json: &mut Vec<u8>, field: &Field, kind: &Type) -> io::Result<()> {
    match field {
        Field::Null => json.extend(b"null"),
        Field::Bool(value) => write!(json, "{value}")?,
        Field::Byte(value) => write!(json, "{value}")?,
        Field::Short(value) => write!(json, "{value}")?,
        Field::Int(value) => write!(json, "{value}")?,
        Field::Long(value) => return write_long(json, *value, kind),
        Field::UByte(value) => write!(json, "{value}")?,
        Field::UShort(value) => write!(json, "{value}")?,
        Field::UInt(value) => write!(json, "{value}")?,
        Field::ULong(value) => write!(json, "{value}")?,
        // JSON has no NaN and no infinity.
        Field::Float16(value) => serde_json::to_writer(json, &value.to_f32())?,
        Field::Float(value) => serde_json::to_writer(json, value)?,
        Field::Double(value) => serde_json::to_writer(json, value)?,
        Field::Decimal(value) => json.extend(decimal(value).into_bytes()),
        Field::Str(text) if kind.get_basic_info().converted_type() == ConvertedType::JSON && is_json(text) => {
            json.extend(text.replace(['\n', '\r'], " ").into_bytes());
        }
        Field::Str(text) => serde_json::to_writer(json, text)?,
        Field::Bytes(bytes) => write_bytes(json, bytes.data(), kind)?,
        Field::Date(days) => {
            let time = time(i64::from(*days) * 86_400, "", true)?;
            serde_json::to_writer(json, &time[..time.len().min(10)])?;
        }
        Field::TimeMillis(value) => write_clock(json, i64::from(*value), 3)?,
        Field::TimeMicros(value) => write_clock(json, *value, 6)?,
        Field::TimestampMillis(value) => write_timestamp(json, *value, 3, is_utc(kind))?,
        Field::TimestampMicros(value) => write_timestamp(json, *value, 6, is_utc(kind))?,
        Field::Group(row) => write_row(json, row, kind)?,
        Field::ListInternal(list) => {
            json.push(b'[');
            for (index, element) in list.elements().iter().enumerate() {
                if index > 0 {
                    json.push(b',');
                }
                write_field(json, element, element_type(kind))?;
            }
            json.push(b']');
        }
        Field::MapInternal(map) => {
            let pair = kind.get_fields().first().map_or(&[][..], |pair| pair.get_fields());
            let [key_type, value_type] = pair else { return Err(damaged("a map lacks keys or values")) };
            json.push(b'{');
            for (index, (key, value)) in map.entries().iter().enumerate() {
                if index > 0 {
                    json.push(b',');
                }
                let mut text = Vec::new();
                write_field(&mut text, key, key_type)?;
                if text.starts_with(b"\"") {
                    json.extend(text);
                } else {
                    serde_json::to_writer(&mut *json, &String::from_utf8_lossy(&text))?;
                }
                json.push(b':');
                write_field(json, value, value_type)?;
            }
            json.push(b'}');
        }
    }
    Ok(())
}

/// A list is a group with a repeated member, which is the element or contains it.
fn element_type(list: &Type) -> &Type {
    let Some(repeated) = list.is_group().then(|| list.get_fields().first()).flatten() else { return list };
    let is_wrapper = repeated.is_group()
        && repeated.get_fields().len() == 1
        && repeated.name() != "array"
        && repeated.name() != format!("{}_tuple", list.name());
    if is_wrapper { &repeated.get_fields()[0] } else { repeated }
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// Integers, and the times for which the parquet crate has no type.
fn write_long(json: &mut Vec<u8>, value: i64, kind: &Type) -> io::Result<()> {
    let decimals = |unit: &TimeUnit| match unit {
        TimeUnit::MILLIS => 3,
        TimeUnit::MICROS => 6,
        TimeUnit::NANOS => 9,
    };
    match kind.get_basic_info().logical_type_ref() {
        Some(LogicalType::Timestamp(kind)) => {
            write_timestamp(json, value, decimals(&kind.unit), kind.is_adjusted_to_u_t_c)
        }
        Some(LogicalType::Time(kind)) => write_clock(json, value, decimals(&kind.unit)),
        _ => write!(json, "{value}"),
    }
}

/// Whether a timestamp is an instant. Without a logical type, as in files of older writers, it is one.
fn is_utc(kind: &Type) -> bool {
    match kind.get_basic_info().logical_type_ref() {
        Some(LogicalType::Timestamp(kind)) => kind.is_adjusted_to_u_t_c,
        _ => true,
    }
}

fn write_timestamp(json: &mut Vec<u8>, units: i64, decimals: usize, is_utc: bool) -> io::Result<()> {
    let per_second = 10_i64.pow(u32::try_from(decimals).unwrap_or_default());
    let fraction = format!("{:0decimals$}", units.rem_euclid(per_second));
    let text = time(units.div_euclid(per_second), fraction.trim_end_matches('0'), is_utc)?;
    Ok(serde_json::to_writer(json, &text)?)
}

fn time(seconds: i64, fraction: &str, is_utc: bool) -> io::Result<String> {
    let mut text = times::utc(seconds, fraction).ok_or_else(|| damaged("a time is not in the years 0 to 9999"))?;
    if !is_utc {
        text.pop();
    }
    Ok(text)
}

fn write_clock(json: &mut Vec<u8>, units: i64, decimals: usize) -> io::Result<()> {
    let mut text = Vec::new();
    write_timestamp(&mut text, units, decimals, false)?;
    // Keeps only the time of day, without the quote and the date.
    json.push(b'"');
    json.extend(&text[12..]);
    Ok(())
}

fn decimal(value: &Decimal) -> String {
    let digits = num_bigint::BigInt::from_signed_bytes_be(value.data()).to_string();
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |digits| ("-", digits));
    let scale = usize::try_from(value.scale()).unwrap_or_default();
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let point = if scale > 0 { "." } else { "" };
    format!("{sign}{whole}{point}{fraction}")
}

/// Text without a type, a UUID, or hexadecimal digits.
fn write_bytes(json: &mut Vec<u8>, bytes: &[u8], kind: &Type) -> io::Result<()> {
    let is_uuid = matches!(kind.get_basic_info().logical_type_ref(), Some(LogicalType::Uuid)) && bytes.len() == 16;
    let text = match std::str::from_utf8(bytes) {
        _ if is_uuid => {
            let hex = hex::encode(bytes);
            [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
        }
        // Older writers omitted the type of text.
        Ok(text) if kind.get_physical_type() == PhysicalType::BYTE_ARRAY => text.to_owned(),
        _ => hex::encode(bytes),
    };
    Ok(serde_json::to_writer(json, &text)?)
}
