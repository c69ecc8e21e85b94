//! Inputs: files and standard input, read once from front to back.
//!
//! They are decompressed, and a Parquet file is turned into lines of JSON. Every byte after that is counted and hashed.

use crate::error::Error;
use crate::format::Format;
use crate::parquet_rows::ParquetRows;
use crate::position::{Position, ResumePoint};
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
type Stream = Box<dyn Read + Send>;

/// An input to read.
#[derive(Clone)]
pub struct Source {
    /// The file's path; `None` means standard input.
    pub path: Option<PathBuf>,
    /// The input's format.
    pub format: Format,
    /// What the checkpoint records about the input.
    pub identity: InputIdentity,
    /// The bytes read so far, before decompression. Compare it with the size in `identity`.
    pub bytes_read: Arc<AtomicU64>,
    /// A pipe, which can be read only once and is open already.
    pipe: Arc<Mutex<Option<Stream>>>,
}

/// What the checkpoint records about an input, to recognize it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputIdentity {
    /// The file's name without its directory; `-` for standard input.
    pub name: String,
    /// The file's size; `None` if it is not a regular file.
    pub bytes: Option<u64>,
    /// The format in which it is read.
    pub format: Format,
}

impl Source {
    /// Resolves a FILE argument. The first bytes determine the format, unless `format` is given.
    ///
    /// # Errors
    /// If there is no such file, or it cannot be read.
    pub fn new(path: &Path, format: Option<Format>) -> Result<Self, Error> {
        let is_stdin = path == Path::new("-");
        let display_name = if is_stdin { "standard input".to_owned() } else { path.display().to_string() };
        let usage = |reason: String| Error::Usage(format!("{display_name}: {reason}"));
        let mut bytes = None;
        if !is_stdin {
            let metadata = std::fs::metadata(path).map_err(|error| usage(error.to_string()))?;
            if metadata.is_dir() {
                return Err(usage("is a directory".to_owned()));
            }
            bytes = metadata.is_file().then_some(metadata.len());
        }
        let name = path.file_name().map_or_else(|| path.to_string_lossy(), OsStr::to_string_lossy).into_owned();
        let path = (!is_stdin).then(|| path.to_owned());
        let bytes_read = Arc::default();
        let raw = raw(path.as_deref(), bytes, &bytes_read).map_err(|error| usage(error.to_string()))?;
        let (head, mut stream) = decompressed(raw).and_then(first_line).map_err(|error| usage(error.to_string()))?;
        let extension = path.as_deref().and_then(Path::extension).and_then(OsStr::to_str);
        let format = sniff::format(&head, format, extension).map_err(&usage)?;
        if format == Format::Parquet && (bytes.is_none() || Compression::of(&head_of(path.as_deref())) != Compression::None) {
            return Err(usage("Parquet can be read only from a file that is not compressed as a whole".to_owned()));
        }
        let pipe = if bytes.is_none() {
            stream = Box::new(io::Cursor::new(head).chain(stream));
            Some(stream)
        } else {
            None
        };
        bytes_read.store(0, Ordering::Relaxed);
        let identity = InputIdentity { name, bytes, format };
        Ok(Self { path, format, identity, bytes_read, pipe: Arc::new(Mutex::new(pipe)) })
    }

    /// The input's name for messages, as on the command line.
    pub fn display_name(&self) -> String {
        self.path.as_ref().map_or_else(|| "standard input".to_owned(), |path| path.display().to_string())
    }

    fn open(&self) -> io::Result<Stream> {
        if let Some(pipe) = self.pipe.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Ok(pipe);
        }
        if let (Format::Parquet, Some(path)) = (self.format, &self.path) {
            return Ok(Box::new(ParquetRows::open(path, Arc::clone(&self.bytes_read))?));
        }
        decompressed(raw(self.path.as_deref(), self.identity.bytes, &self.bytes_read)?)
    }
}

/// Opens an input as it is. A regular file is read up to the size that it had when the command started.
fn raw(path: Option<&Path>, size: Option<u64>, bytes_read: &Arc<AtomicU64>) -> io::Result<Stream> {
    let Some(path) = path else { return Ok(Box::new(io::stdin())) };
    let file = File::open(path)?;
    let bytes_read = Arc::clone(bytes_read);
    Ok(match size {
        None => Box::new(file),
        Some(size) => Box::new(SizedFile { file, size, left: size, bytes_read }),
    })
}

fn head_of(path: Option<&Path>) -> Vec<u8> {
    let mut head = Vec::new();
    if let Some(Ok(file)) = path.map(File::open) {
        // A file that cannot be read is reported when its content is.
        let _ = file.take(MAX_SIGNATURE_BYTES as u64).read_to_end(&mut head);
    }
    head
}

/// A regular file, which must keep its size while it is read. What is appended meanwhile is not read.
struct SizedFile {
    file: File,
    size: u64,
    left: u64,
    bytes_read: Arc<AtomicU64>,
}

impl Read for SizedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read(&mut buffer[..wanted])?;
        if read == 0 && wanted > 0 {
            let (size, present) = (self.size, self.size - self.left);
            let reason = format!("it had {size} bytes when the run started, and now has {present}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        self.left -= read as u64;
        self.bytes_read.store(self.size - self.left, Ordering::Relaxed);
        Ok(read)
    }
}

fn decompressed(mut raw: Stream) -> io::Result<Stream> {
    // One read of a pipe can return fewer bytes than a signature has.
    let mut head = Vec::new();
    raw.by_ref().take(MAX_SIGNATURE_BYTES as u64).read_to_end(&mut head)?;
    let compression = Compression::of(&head);
    let raw = io::Cursor::new(head).chain(raw);
    Ok(match compression {
        Compression::None => Box::new(raw),
        Compression::Gzip => {
            Box::new(MultiGzDecoder::new(BufReader::with_capacity(BUFFER_BYTES, raw)).map_error("gzip"))
        }
        Compression::Zstd => Box::new(zstd::Decoder::new(raw)?.map_error("Zstandard")),
    })
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

trait MapError: Sized {
    fn map_error(self, name: &'static str) -> Decompressing<Self> {
        Decompressing { reader: self, name }
    }
}

impl<R: Read> MapError for R {}

impl<R: Read> Read for Decompressing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            _ => {
                let reason = format!("its {} data is damaged or cut off: {error}", self.name);
                io::Error::new(io::ErrorKind::InvalidData, reason)
            }
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

/// Reads one input, and counts and hashes the bytes consumed.
pub struct InputReader {
    reader: BufReader<Stream>,
    hash: Sha256,
    position: Position,
}

impl InputReader {
    /// Opens the input with index `file`, and skips a byte order mark. `hash` covers the inputs before it.
    ///
    /// # Errors
    /// If the input cannot be read.
    pub fn open(source: &Source, file: usize, hash: Sha256) -> Result<Self, Error> {
        source.open().and_then(|stream| Self::new(stream, file, hash)).map_err(|error| read_error(source, &error))
    }

    fn new(mut input: Stream, file: usize, hash: Sha256) -> io::Result<Self> {
        // One read of a pipe can return fewer bytes than a byte order mark has.
        let mut start = Vec::new();
        input.by_ref().take(BYTE_ORDER_MARK.len() as u64).read_to_end(&mut start)?;
        let has_byte_order_mark = start == BYTE_ORDER_MARK;
        let input: Stream = Box::new(io::Cursor::new(start).chain(input));
        let position = Position { file, offset: 0, line: 1 };
        let mut reader = Self { reader: BufReader::with_capacity(BUFFER_BYTES, input), hash, position };
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
                // The borrow checker does not allow the buffer to be returned from within the loop.
                Ok(_) => break,
            }
        }
        self.reader.fill_buf()
    }

    /// Consumes the first `bytes` of the bytes that [`Self::peek`] returned.
    pub fn consume(&mut self, bytes: usize) {
        let consumed = &self.reader.buffer()[..bytes];
        self.hash.update(consumed);
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

/// The error for an input that cannot be read.
pub fn read_error(source: &Source, error: &io::Error) -> Error {
    Error::Aborted(format!("cannot read {}: {error}", source.display_name()))
}

#[cfg(test)]
impl InputReader {
    pub fn of_text(text: &[u8]) -> Self {
        Self::new(Box::new(io::Cursor::new(text.to_vec())), 0, Sha256::new()).unwrap()
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

    #[test]
    fn a_byte_order_mark_is_not_part_of_the_first_line() {
        let mut input = InputReader::of_text("\u{feff}x".as_bytes());
        assert_eq!(input.peek().unwrap(), b"x");
        assert_eq!(input.position().offset, 3);
        assert_eq!(InputReader::of_text(b"\xef\xbb").peek().unwrap(), b"\xef\xbb");
        assert_eq!(InputReader::of_text(b"").peek().unwrap(), b"");
    }
}
