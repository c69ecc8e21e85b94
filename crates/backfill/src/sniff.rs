//! What an input is, by its first bytes: its compression, its format, or why it cannot be read.

use crate::format::Format;
use serde_json::Deserializer;
use serde_json::de::StrRead;
use serde_json::error::Category;

/// The number of first bytes that [`format`] needs at most. If the first line is shorter, it needs only that line.
pub const MAX_HEAD_BYTES: usize = 64 * 1024;

/// The first bytes of a Parquet file, and its last.
const PARQUET: &[u8] = b"PAR1";
/// The longest signature that [`Compression::of`] needs.
pub const MAX_SIGNATURE_BYTES: usize = 4;

/// The delimiters that are recognized without `--delimiter`, the most usual one first.
const DELIMITERS: [u8; 4] = [b',', b'\t', b';', b'|'];

/// How an input is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not compressed, or in a way that [`format`] refuses.
    None,
    /// One or more gzip members.
    Gzip,
    /// One or more Zstandard frames.
    Zstd,
}

impl Compression {
    /// The compression of an input that begins with `head`.
    pub fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // The second is a skippable frame, with which parallel compressors begin.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// Files that cannot be read: their first bytes, what they are, and what to do.
const REFUSED: [(&[u8], &str, &str); 17] = [
    (b"PK\x03\x04", "a zip archive", "pipe its content: unzip -p FILE | event-ingest-backfill …"),
    (b"PK\x05\x06", "an empty zip archive", "export the data again"),
    (b"BZh", "compressed with bzip2", "pipe its content: bzip2 -dc FILE | event-ingest-backfill …"),
    (b"\xfd7zXZ\0", "compressed with xz", "pipe its content: xz -dc FILE | event-ingest-backfill …"),
    (b"\x04\x22\x4d\x18", "compressed with lz4", "pipe its content: lz4 -dc FILE | event-ingest-backfill …"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "extract it first"),
    (b"Obj\x01", "an Avro file", "export the data as Parquet, NDJSON or CSV"),
    (b"ORC", "an ORC file", "export the data as Parquet, NDJSON or CSV"),
    (b"SQLite format 3\0", "a SQLite database", "export a query: sqlite3 -csv -header FILE 'SELECT …'"),
    (b"PGDMP", "an archive of PostgreSQL's pg_dump", "export a query with \\copy … CSV HEADER"),
    (b"\xd0\xcf\x11\xe0", "an old Microsoft Office file", "export the data as CSV"),
    (b"\xff\xfe\0\0", "UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8 FILE"),
    (b"\0\0\xfe\xff", "UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8 FILE"),
    (b"\xff\xfe", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8 FILE"),
    (b"\xfe\xff", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8 FILE"),
    (b"<", "HTML or XML", "look at its first bytes; export the data as NDJSON, CSV or Parquet"),
    (b"%PDF", "a PDF document", "export the data as NDJSON, CSV or Parquet"),
];

/// The format of an input that begins with `head` after decompression. `wanted` is the format that the user
/// named, and `extension` the extension of the file's name, which is used only if the first bytes are ambiguous.
///
/// # Errors
/// The message says what the input is instead, and what to do.
pub fn format(head: &[u8], wanted: Option<Format>, extension: Option<&str>) -> Result<Format, String> {
    if head.starts_with(PARQUET) {
        return match wanted {
            None | Some(Format::Parquet) => Ok(Format::Parquet),
            Some(_) => Err("is a Parquet file; leave out --format".to_owned()),
        };
    }
    let text = head.strip_prefix("\u{feff}".as_bytes()).unwrap_or(head).trim_ascii_start();
    refuse(text)?;
    if let Some(wanted) = wanted {
        return if wanted == Format::Parquet { Err("is not a Parquet file".to_owned()) } else { Ok(wanted) };
    }
    let line = memchr::memchr(b'\n', text).map(|end| &text[..end]);
    match text.first() {
        Some(b'[') => return Ok(Format::Json),
        Some(b'{') => return Ok(if spans_lines(text, line) { Format::Json } else { Format::Ndjson }),
        _ => {}
    }
    let extension = extension.map(str::to_ascii_lowercase);
    match extension.as_deref() {
        Some("csv") => Ok(Format::Csv),
        Some("tsv" | "tab") => Ok(Format::Tsv),
        _ if delimiter(text).is_some() => Ok(Format::Csv),
        Some("ndjson" | "jsonl" | "json") => Ok(Format::Ndjson),
        _ if text.is_empty() => Ok(Format::Ndjson),
        _ => Err("its first bytes are neither JSON nor CSV nor Parquet; if they are right, pass --format".to_owned()),
    }
}

fn refuse(text: &[u8]) -> Result<(), String> {
    if Compression::of(text) != Compression::None {
        return Err("is compressed twice; decompress it once".to_owned());
    }
    if let Some((_, what, advice)) = REFUSED.iter().find(|(signature, ..)| text.starts_with(signature)) {
        return Err(format!("is {what}; {advice}"));
    }
    // Text has no zero bytes, except in the encodings with units of two bytes.
    match text {
        [first, 0, second, 0, ..] if *first != 0 && *second != 0 => {
            Err("is UTF-16 text; convert it: iconv -f UTF-16LE -t UTF-8 FILE".to_owned())
        }
        [0, first, 0, second, ..] if *first != 0 && *second != 0 => {
            Err("is UTF-16 text; convert it: iconv -f UTF-16BE -t UTF-8 FILE".to_owned())
        }
        _ if text.iter().take(1024).any(|byte| *byte == 0) => Err(
            "is a binary file of a kind that cannot be read, by its first bytes; export the data as NDJSON, CSV or \
             Parquet"
                .to_owned(),
        ),
        _ => Ok(()),
    }
}

/// Whether JSON objects are not one per line: the first one continues on the next line, or is followed by another.
fn spans_lines(text: &[u8], line: Option<&[u8]>) -> bool {
    let Ok(first) = std::str::from_utf8(line.unwrap_or(text)) else { return false };
    let mut values = Deserializer::new(StrRead::new(first)).into_iter::<serde::de::IgnoredAny>();
    match values.next() {
        Some(Ok(_)) => first[values.byte_offset()..].trim_start().starts_with('{'),
        // A line that was cut off seldom ends like this.
        Some(Err(error)) if error.classify() == Category::Eof => {
            line.is_some() && first.trim_end().ends_with(['{', '[', ','])
        }
        _ => false,
    }
}

/// The delimiter of a CSV file that begins with `text`: of the usual ones, the most frequent in its first line
/// outside quotes.
pub fn delimiter(text: &[u8]) -> Option<u8> {
    let line = text.split(|byte| matches!(byte, b'\n' | b'\r')).next().unwrap_or_default();
    let unquoted = line.split(|byte| *byte == b'"').step_by(2);
    let counts =
        |delimiter: u8| unquoted.clone().map(|part| memchr::memchr_iter(delimiter, part).count()).sum::<usize>();
    let counted = DELIMITERS.map(|delimiter| (delimiter, counts(delimiter)));
    // Of equal counts, the first one.
    let most = counted.into_iter().rev().max_by_key(|(_, count)| *count)?;
    (most.1 > 0).then_some(most.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_the_format_whatever_the_name() {
        for (head, expected) in [
            ("{\"a\":1}\n{\"a\":2}\n", Format::Ndjson),
            ("\u{feff} \n{\"a\":1}", Format::Ndjson),
            ("{\"a\":1}{\"a\":2}", Format::Json),
            ("{\n  \"a\": 1\n}\n", Format::Json),
            ("{\"a\": 1,\n  \"b\": 1\n}\n", Format::Json),
            ("{\"a\": 1,\"b", Format::Ndjson),
            ("{\"a\": bad}\n", Format::Ndjson),
            ("{broken\n", Format::Ndjson),
            ("[{\"a\":1}]", Format::Json),
            ("a,b\n1,2\n", Format::Csv),
            ("a\tb\n", Format::Csv),
            ("PAR1...", Format::Parquet),
        ] {
            for extension in [None, Some("ndjson"), Some("json"), Some("txt")] {
                assert_eq!(format(head.as_bytes(), None, extension), Ok(expected), "{head} {extension:?}");
            }
        }
        assert_eq!(format(b"a\n", None, Some("CSV")), Ok(Format::Csv));
        assert_eq!(format(b"a\n", None, Some("tsv")), Ok(Format::Tsv));
        assert_eq!(format(b"x\n", None, Some("jsonl")), Ok(Format::Ndjson));
        assert_eq!(format(b"", None, None), Ok(Format::Ndjson));
        assert!(format(b"x\n", None, None).unwrap_err().contains("--format"));
        assert_eq!(format(b"[1]\n", Some(Format::Ndjson), None), Ok(Format::Ndjson));
        assert!(format(b"PAR1", Some(Format::Csv), None).is_err());
        assert!(format(b"a,b", Some(Format::Parquet), None).is_err());
        assert!(format(b"PK\x03\x04", Some(Format::Csv), None).is_err());
        assert!(format(b"\x1f\x8b", None, None).unwrap_err().contains("twice"));
    }

    #[test]
    fn the_delimiter_is_the_most_frequent_one_outside_quotes() {
        let found =
            ["a,b;c,d\n;;;;", "a;b\r\n,,", "a\tb", "\"a,b,c\"|d", "a", ""].map(|text| delimiter(text.as_bytes()));
        assert_eq!(found, [Some(b','), Some(b';'), Some(b'\t'), Some(b'|'), None, None]);
    }
}
