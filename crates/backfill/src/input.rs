//! Inputs: files, standard input and objects in Amazon S3, read once from front to back.
//!
//! They are decompressed, and a Parquet file is turned into lines of JSON. Every byte after that is counted and hashed.

use crate::error::{Error, Unreadable};
use crate::format::Format;
use crate::location::Location;
use crate::object_reader::ObjectReader;
use crate::parquet_rows::{self, ParquetRows};
use crate::position::{Position, ResumePoint};
use crate::sized_file::SizedFile;
use crate::sniff::{self, Compression, MAX_HEAD_BYTES, MAX_SIGNATURE_BYTES};
use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The size of the read buffer, in bytes.
const BUFFER_BYTES: usize = 256 * 1024;

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// The bytes of an input, after decompression.
pub type Stream = Box<dyn Read + Send>;

/// An input to read.
#[derive(Clone)]
pub struct Source {
    /// Where it is.
    pub location: Location,
    /// The input's format.
    pub format: Format,
    /// The names of the columns of a Parquet file, and the number of its rows.
    pub parquet: Option<(Vec<String>, u64)>,
    /// What the checkpoint records about the input.
    pub identity: InputIdentity,
    /// Whether a position in the input is one in the file.
    is_plain: bool,
    /// The bytes of the file that were read so far.
    bytes_read: Arc<AtomicU64>,
    /// A stream, which can be read only once and is open already.
    stream: Arc<Mutex<Option<Stream>>>,
}

/// What the checkpoint records about an input, to recognize it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputIdentity {
    /// The file's name without its directory, or the object's URL; `-` for standard input.
    pub name: String,
    /// The file's size; `None` if it is not a regular file.
    pub bytes: Option<u64>,
    /// The format in which it is read.
    pub format: Format,
    /// The entity tag of an object in Amazon S3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

impl Source {
    /// Opens an input. The first bytes determine the format, unless `format` is given.
    ///
    /// # Errors
    /// If there is no such file, or it cannot be read.
    pub fn new(location: Location, format: Option<Format>) -> Result<Self, Error> {
        let usage = |reason: String| Error::Usage(format!("{location}: {reason}"));
        let unreadable = |error: io::Error| usage(error.to_string());
        let (mut bytes, mut is_stream) = (None, false);
        match &location {
            Location::Stdin => is_stream = true,
            Location::Object(object) => bytes = Some(object.size()),
            Location::File(path) => {
                let metadata = std::fs::metadata(path).map_err(unreadable)?;
                if metadata.is_dir() {
                    return Err(usage("is a directory".to_owned()));
                }
                bytes = metadata.is_file().then_some(metadata.len());
                // `/dev/stdin` or a process substitution, `/dev/fd/63`. If it leads to a regular file, it is that file.
                // Otherwise it is a stream like standard input, whose name means nothing.
                if path.starts_with("/dev") || path.starts_with("/proc") {
                    let file = path.canonicalize().ok().filter(|file| bytes.is_some() && !file.starts_with("/proc"));
                    if let Some(file) = file.filter(|file| file != path) {
                        return Self::new(Location::File(file), format);
                    }
                    (bytes, is_stream) = (None, true);
                }
            }
        }
        let (name, extension) = match &location {
            Location::Object(object) => (object.url().to_owned(), Path::new(object.key()).extension()),
            Location::File(path) if !is_stream => {
                (path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(), path.extension())
            }
            _ => ("-".to_owned(), location.path().and_then(Path::extension)),
        };
        let bytes_read = Arc::default();
        let raw = Opened::new(raw(&location, bytes, &bytes_read).map_err(unreadable)?).map_err(unreadable)?;
        let compression = raw.compression;
        let (head, stream) = raw.decompressed().and_then(first_line).map_err(unreadable)?;
        let format = sniff::format(&head, format, extension.and_then(OsStr::to_str)).map_err(usage)?;
        let is_plain = compression == Compression::None && format != Format::Parquet;
        if format == Format::Parquet && (bytes.is_none() || compression != Compression::None) {
            return Err(usage(
                "a Parquet file can be read neither from a stream nor from within gzip or Zstandard; save it as a file"
                    .to_owned(),
            ));
        }
        let parquet = (format == Format::Parquet).then(|| parquet_rows::describe(&location)).transpose();
        let parquet = parquet.map_err(|error| read_error(&location, &error))?;
        let stream: Option<Stream> = bytes.is_none().then(|| Box::new(io::Cursor::new(head).chain(stream)) as _);
        let etag = if let Location::Object(object) = &location { Some(object.etag().to_owned()) } else { None };
        let identity = InputIdentity { name, bytes, format, etag };
        let stream = Arc::new(Mutex::new(stream));
        Ok(Self { location, format, parquet, identity, is_plain, bytes_read, stream })
    }

    /// Whether its earlier content need not be read to verify it, because the checkpoint has its entity tag.
    pub fn is_pinned(&self) -> bool {
        self.identity.etag.is_some()
    }

    /// The bytes of the file before `offset`, if the reader is there now. Of compressed and Parquet files, only the
    /// reader knows this, and only approximately.
    pub fn bytes_before(&self, offset: u64) -> u64 {
        if self.is_plain { offset } else { self.bytes_read.load(Ordering::Relaxed) }
    }

    /// The path after which the checkpoint is named; `None` for standard input and other streams. For an object, it is
    /// in the current directory.
    pub fn state_path(&self) -> Option<PathBuf> {
        match &self.location {
            Location::Object(object) => Some(format!("{}/{}", object.bucket(), object.key()).replace('/', "_").into()),
            location => location.path().filter(|_| self.identity.name != "-").map(Path::to_owned),
        }
    }

    /// If the file has grown since the beginning of the run: what was sent, and how to send the rest.
    pub fn growth(&self) -> Option<String> {
        let (path, size) = (self.location.path().filter(|_| self.is_plain)?, self.identity.bytes?);
        let now = std::fs::metadata(path).ok().filter(|metadata| metadata.len() > size)?.len();
        let path = path.display();
        Some(format!(
            "{path} has grown by {} bytes since the beginning of the run. Only its first {size} bytes were read. To send \
             the rest, write it to a file of its own: tail -c +{} {path}",
            now - size,
            size + 1
        ))
    }

    /// The input's name for messages, as on the command line.
    pub fn display_name(&self) -> String {
        self.location.to_string()
    }

    fn open(&self) -> io::Result<Stream> {
        if let Some(stream) = self.stream.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Ok(stream);
        }
        if self.format == Format::Parquet {
            return Ok(Box::new(ParquetRows::open(&self.location, Arc::clone(&self.bytes_read))?));
        }
        Opened::new(raw(&self.location, self.identity.bytes, &self.bytes_read)?)?.decompressed()
    }
}

/// Opens an input as it is. A regular file is read up to the size that it had when the command started.
fn raw(location: &Location, size: Option<u64>, bytes_read: &Arc<AtomicU64>) -> io::Result<Stream> {
    let path = match location {
        Location::Stdin => return Ok(Box::new(io::stdin())),
        Location::Object(object) => {
            return Ok(Box::new(ObjectReader::new(object.clone(), 0, Arc::clone(bytes_read))));
        }
        Location::File(path) => path,
    };
    let file = File::open(path)?;
    Ok(match size {
        None => Box::new(file),
        Some(size) => Box::new(SizedFile::new(file, size, Arc::clone(bytes_read))),
    })
}

/// An input whose compression is known.
struct Opened {
    compression: Compression,
    raw: Stream,
}

impl Opened {
    fn new(mut raw: Stream) -> io::Result<Self> {
        // One read of a pipe can return fewer bytes than a signature has.
        let mut head = Vec::new();
        raw.by_ref().take(MAX_SIGNATURE_BYTES as u64).read_to_end(&mut head)?;
        Ok(Self { compression: Compression::of(&head), raw: Box::new(io::Cursor::new(head).chain(raw)) })
    }

    fn decompressed(self) -> io::Result<Stream> {
        let Self { compression, raw } = self;
        Ok(match compression {
            Compression::None => raw,
            Compression::Gzip => {
                let reader = MultiGzDecoder::new(BufReader::with_capacity(BUFFER_BYTES, raw));
                Box::new(Decompressing { reader, name: "gzip" })
            }
            Compression::Zstd => Box::new(Decompressing { reader: zstd::Decoder::new(raw)?, name: "Zstandard" }),
        })
    }
}

/// Reads the first line, or as much as is needed to know the format.
fn first_line(mut stream: Stream) -> io::Result<(Vec<u8>, Stream)> {
    let mut head = vec![0; MAX_HEAD_BYTES];
    let mut filled = 0;
    while filled < head.len() {
        match stream.read(&mut head[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        let text = head[..filled].strip_prefix(BYTE_ORDER_MARK).unwrap_or(&head[..filled]);
        if text.trim_ascii_start().contains(&b'\n') {
            break;
        }
    }
    head.truncate(filled);
    Ok((head, stream))
}

/// Says in an error which compression failed.
struct Decompressing<R> {
    reader: R,
    name: &'static str,
}

impl<R: Read> Read for Decompressing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer).map_err(|error| {
            if error.kind() == io::ErrorKind::Interrupted || Unreadable::is(&error) {
                return error;
            }
            let reason = format!("its {} data is damaged or cut off: {error}", self.name);
            io::Error::new(io::ErrorKind::InvalidData, reason)
        })
    }
}

/// A position, with the unfinished hash of the bytes before it.
pub struct Snapshot {
    /// The position.
    pub position: Position,
    hash: Sha256,
}

impl Snapshot {
    /// Finishes the hash.
    pub fn resume_point(self) -> ResumePoint {
        ResumePoint { position: self.position, sha256: hex::encode(self.hash.finalize()) }
    }
}

/// Reads one input, and counts and hashes the bytes consumed. For a pinned input, only the entity tag is hashed.
pub struct InputReader {
    reader: BufReader<Stream>,
    hash: Sha256,
    is_pinned: bool,
    position: Position,
}

impl InputReader {
    /// Opens the input with index `file`, and skips a byte order mark. `hash` covers the inputs before it.
    ///
    /// # Errors
    /// If the input cannot be read.
    pub fn open(source: &Source, file: usize, hash: Sha256) -> Result<Self, Error> {
        let hash = hash_of_pinned(source, hash);
        let opened = source.open().and_then(|stream| Self::new(stream, file, hash, source.is_pinned()));
        opened.map_err(|error| read_error(&source.location, &error))
    }

    /// Reads a stream.
    ///
    /// # Errors
    /// If the stream cannot be read.
    pub fn of_stream(input: Stream) -> io::Result<Self> {
        Self::new(input, 0, Sha256::new(), false)
    }

    fn new(input: Stream, file: usize, hash: Sha256, is_pinned: bool) -> io::Result<Self> {
        // The first peek returns the first line, if that is not too long, also where a pipe has it in pieces.
        let (start, input) = first_line(input)?;
        let has_byte_order_mark = start.starts_with(BYTE_ORDER_MARK);
        let input: Stream = Box::new(io::Cursor::new(start).chain(input));
        let position = Position { file, offset: 0, line: 1 };
        let mut reader = Self { reader: BufReader::with_capacity(BUFFER_BYTES, input), hash, is_pinned, position };
        if has_byte_order_mark {
            reader.skip_to(BYTE_ORDER_MARK.len() as u64)?;
        }
        Ok(reader)
    }

    /// The next bytes, which stay unread; empty at the end of the input.
    ///
    /// # Errors
    /// If the input cannot be read.
    pub fn peek(&mut self) -> io::Result<&[u8]> {
        loop {
            match self.reader.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                // The borrow checker does not allow these bytes to be returned from within the loop.
                Ok(_) => return Ok(self.reader.buffer()),
            }
        }
    }

    /// Consumes the first `bytes` of the bytes that [`Self::peek`] returned.
    pub fn consume(&mut self, bytes: usize) {
        let consumed = &self.reader.buffer()[..bytes];
        if !self.is_pinned {
            self.hash.update(consumed);
        }
        self.position.offset += bytes as u64;
        self.position.line += memchr::memchr_iter(b'\n', consumed).count() as u64;
        self.reader.consume(bytes);
    }

    /// Consumes everything up to `offset`, which must not be before the current position.
    ///
    /// # Errors
    /// If the input cannot be read or ends before `offset`.
    pub fn skip_to(&mut self, offset: u64) -> io::Result<()> {
        while self.position.offset < offset {
            let left = usize::try_from(offset - self.position.offset).unwrap_or(usize::MAX);
            let available = self.peek()?.len().min(left);
            if available == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.consume(available);
        }
        Ok(())
    }

    /// Moves forward to `position`, which an earlier run has reached. In an uncompressed text object, the content
    /// before it is not read.
    ///
    /// # Errors
    /// As for [`Self::skip_to`].
    pub fn resume_at(&mut self, source: &Source, position: &Position) -> io::Result<()> {
        let Location::Object(object) = &source.location else { return self.skip_to(position.offset) };
        if !source.is_plain || position.offset < self.position.offset {
            return self.skip_to(position.offset);
        }
        let rest = ObjectReader::new(object.clone(), position.offset, Arc::clone(&source.bytes_read));
        self.reader = BufReader::with_capacity(BUFFER_BYTES, Box::new(rest));
        self.position = position.clone();
        Ok(())
    }

    /// The current position.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The current position as one from which a run can resume.
    pub fn resume_point(&self) -> ResumePoint {
        self.snapshot().resume_point()
    }

    /// The current position with its unfinished hash. This is cheap enough to call before every record.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { position: self.position.clone(), hash: self.hash.clone() }
    }

    /// The hash of everything read so far, for the next input to continue.
    pub fn into_hash(self) -> Sha256 {
        self.hash
    }
}

/// Continues `hash` after a pinned input, regardless of how much of it was read.
pub fn hash_of_pinned(source: &Source, hash: Sha256) -> Sha256 {
    source.identity.etag.as_ref().map_or(hash.clone(), |etag| hash.chain_update(etag))
}

/// The error for an input that cannot be read.
pub fn read_error(location: &Location, error: &io::Error) -> Error {
    Error::Input(format!("cannot read {location}: {error}"))
}

#[cfg(test)]
impl InputReader {
    /// Reads a text.
    pub(crate) fn of_text(text: &[u8]) -> Self {
        Self::of_stream(Box::new(io::Cursor::new(text.to_vec()))).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consumed_bytes_are_counted_and_hashed() {
        let mut input = InputReader::of_text(b"one\ntwo\nthree");
        input.skip_to(9).unwrap();
        assert_eq!(input.position(), &Position { file: 0, offset: 9, line: 3 });
        assert_eq!(input.resume_point().sha256, hex::encode(Sha256::digest(b"one\ntwo\nt")));
        assert_eq!(input.peek().unwrap(), b"hree");
        assert_eq!(input.skip_to(14).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    /// At the end of a stream, each call reads again.
    #[test]
    fn an_interrupted_read_is_repeated() {
        struct Interrupted(Vec<&'static [u8]>, bool);
        impl Read for Interrupted {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.1 = !self.1;
                if self.1 {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                self.0.pop().unwrap_or_default().read(buffer)
            }
        }
        let stream = Interrupted(vec![b"two", b"one\n"], false);
        let mut input = InputReader::of_stream(Box::new(stream)).unwrap();
        for expected in [&b"one\n"[..], b"two", b"", b""] {
            assert_eq!(input.peek().unwrap(), expected);
            input.consume(expected.len());
        }
    }

    #[test]
    fn a_byte_order_mark_is_not_part_of_the_first_line() {
        let mut input = InputReader::of_text("\u{feff}x".as_bytes());
        assert_eq!(input.peek().unwrap(), b"x");
        assert_eq!(input.position().offset, 3);
        assert_eq!(InputReader::of_text(b"\xef\xbb").peek().unwrap(), b"\xef\xbb");
        assert_eq!(InputReader::of_text(b"").peek().unwrap(), b"");
    }
}
