//! Inputs: files and standard input, read once from front to back. Every byte is counted and hashed.

use crate::error::Error;
use crate::format::Format;
use crate::position::{Position, ResumePoint};
use crate::sized_file::SizedFile;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// The size of the read buffer, in bytes.
const BUFFER_BYTES: usize = 256 * 1024;

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// An input to read.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file's path; `None` means standard input.
    pub path: Option<PathBuf>,
    /// The input's format.
    pub format: Format,
    /// What the checkpoint records about the input.
    pub identity: InputIdentity,
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
    /// Resolves a FILE argument. Without `format`, the file's name determines the format.
    ///
    /// # Errors
    /// If there is no such file, or it is a directory.
    pub fn new(path: &Path, format: Option<Format>) -> Result<Self, Error> {
        if path == Path::new("-") {
            let format = format.unwrap_or(Format::Ndjson);
            let identity = InputIdentity { name: "-".to_owned(), bytes: None, format };
            return Ok(Self { path: None, format, identity });
        }
        let usage = |reason: String| Error::Usage(format!("{}: {reason}", path.display()));
        let metadata = std::fs::metadata(path).map_err(|error| usage(error.to_string()))?;
        if metadata.is_dir() {
            return Err(usage("is a directory".to_owned()));
        }
        if path.starts_with("/dev") || path.starts_with("/proc") {
            return Ok(Self::device(path, format, &metadata));
        }
        let is_csv = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
        let format = format.unwrap_or(if is_csv { Format::Csv } else { Format::Ndjson });
        let name = path.file_name().map_or_else(|| path.to_string_lossy(), OsStr::to_string_lossy).into_owned();
        let bytes = metadata.is_file().then_some(metadata.len());
        Ok(Self { path: Some(path.to_owned()), format, identity: InputIdentity { name, bytes, format } })
    }

    /// An input such as `/dev/stdin` or a process substitution, `/dev/fd/63`. If it leads to a regular file, it is that
    /// file. Otherwise it is a stream like standard input, whose name means nothing.
    fn device(path: &Path, format: Option<Format>, metadata: &Metadata) -> Self {
        let file = path.canonicalize().ok().filter(|file| metadata.is_file() && !file.starts_with("/proc"));
        if let Some(source) = file.and_then(|file| Self::new(&file, format).ok()) {
            return source;
        }
        let format = format.unwrap_or(Format::Ndjson);
        let identity = InputIdentity { name: "-".to_owned(), bytes: None, format };
        Self { path: Some(path.to_owned()), format, identity }
    }

    /// The path after which the checkpoint is named; `None` for standard input and its like.
    pub fn state_path(&self) -> Option<&Path> {
        self.path.as_deref().filter(|_| self.identity.name != "-")
    }

    /// If the file has grown since the beginning of the run: what was sent, and how to send the rest.
    pub fn growth(&self) -> Option<String> {
        let (path, size) = (self.path.as_ref()?, self.identity.bytes?);
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
        self.path.as_ref().map_or_else(|| "standard input".to_owned(), |path| path.display().to_string())
    }

    fn open(&self) -> Result<Box<dyn Read + Send>, Error> {
        match &self.path {
            None => Ok(Box::new(io::stdin())),
            Some(path) => {
                let file = File::open(path).map_err(|error| read_error(self, &error))?;
                Ok(match self.identity.bytes {
                    Some(size) => Box::new(SizedFile::new(file, size)),
                    None => Box::new(file),
                })
            }
        }
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
    reader: BufReader<Box<dyn Read + Send>>,
    hash: Sha256,
    position: Position,
}

impl InputReader {
    /// Opens the input with index `file`, and skips a byte order mark. `hash` covers the inputs before it.
    ///
    /// # Errors
    /// If the input cannot be read.
    pub fn open(source: &Source, file: usize, hash: Sha256) -> Result<Self, Error> {
        Self::new(source.open()?, file, hash).map_err(|error| read_error(source, &error))
    }

    fn new(mut input: Box<dyn Read + Send>, file: usize, hash: Sha256) -> io::Result<Self> {
        // One read of a pipe can return fewer bytes than a byte order mark has.
        let mut start = Vec::new();
        input.by_ref().take(BYTE_ORDER_MARK.len() as u64).read_to_end(&mut start)?;
        let has_byte_order_mark = start == BYTE_ORDER_MARK;
        let input: Box<dyn Read + Send> = Box::new(io::Cursor::new(start).chain(input));
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
    Error::Input(format!("cannot read {}: {error}", source.display_name()))
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
