//! The files, or standard input: read once, from front to back, byte by byte accounted for.

use crate::args::Format;
use crate::failure::Failure;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// How much is read at once, in bytes.
const BUFFER: usize = 256 * 1024;

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// One file to read.
#[derive(Clone, Debug)]
pub struct Source {
    /// Where it is; `None` is standard input.
    pub path: Option<PathBuf>,
    /// What it holds.
    pub format: Format,
    /// What is remembered of it.
    pub identity: Identity,
}

/// What tells an input from another one, wherever it lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The file's name without its directory; `-` for standard input.
    pub name: String,
    /// Its size; unknown of what is no regular file.
    pub bytes: Option<u64>,
    /// What it is read as.
    pub format: Format,
}

impl Source {
    /// What `path` means on the command line.
    ///
    /// # Errors
    /// Where there is no such file.
    pub fn new(path: &Path, format: Option<Format>) -> Result<Self, Failure> {
        if path == Path::new("-") {
            let format = format.unwrap_or(Format::Ndjson);
            return Ok(Self { path: None, format, identity: Identity { name: "-".to_owned(), bytes: None, format } });
        }
        let usage = |why: String| Failure::Usage(format!("{}: {why}", path.display()));
        let metadata = std::fs::metadata(path).map_err(|error| usage(error.to_string()))?;
        if metadata.is_dir() {
            return Err(usage("is a directory".to_owned()));
        }
        let is_csv = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
        let format = format.unwrap_or(if is_csv { Format::Csv } else { Format::Ndjson });
        let name = path.file_name().map_or_else(|| path.to_string_lossy(), OsStr::to_string_lossy).into_owned();
        let bytes = metadata.is_file().then_some(metadata.len());
        Ok(Self { path: Some(path.to_owned()), format, identity: Identity { name, bytes, format } })
    }

    /// What to call it: as on the command line.
    pub fn shown(&self) -> String {
        self.path.as_ref().map_or_else(|| "standard input".to_owned(), |path| path.display().to_string())
    }

    fn open(&self) -> Result<Box<dyn Read + Send>, Failure> {
        match &self.path {
            None => Ok(Box::new(io::stdin())),
            Some(path) => {
                File::open(path).map(|file| Box::new(file) as _).map_err(|error| Failure::file("read", path, &error))
            }
        }
    }
}

/// A place between two events of the inputs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Which input, counted from 0.
    pub file: usize,
    /// How many bytes of it lie before this place.
    pub offset: u64,
    /// Its line that begins here, counted from 1; 0 before anything was read.
    pub line: u64,
}

/// A place, and what lies before it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    #[serde(flatten)]
    pub place: Place,
    /// SHA-256 of every byte of every input before this place, in hex; empty before the first.
    pub sha256: String,
}

/// A place, and the hash of what lies before it as it is being made.
pub struct Snapshot {
    /// Where.
    pub place: Place,
    hash: Sha256,
}

impl Snapshot {
    /// The same, with the hash finished.
    pub fn mark(self) -> Mark {
        Mark { place: self.place, sha256: hex::encode(self.hash.finalize()) }
    }
}

/// One input being read, which counts and hashes what is taken from it.
pub struct Tracked {
    reader: BufReader<Box<dyn Read + Send>>,
    hash: Sha256,
    place: Place,
}

impl Tracked {
    /// Opens input number `file`, whose bytes continue `hash`. A byte order mark is passed over.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn open(source: &Source, file: usize, hash: Sha256) -> Result<Self, Failure> {
        Self::over(source.open()?, file, hash).map_err(|error| read_failure(source, &error))
    }

    fn over(reader: Box<dyn Read + Send>, file: usize, hash: Sha256) -> io::Result<Self> {
        // Peeked at through a chain, as a pipe may give less than its three bytes at a time.
        let mut start = Vec::new();
        let mut reader = reader;
        reader.by_ref().take(BYTE_ORDER_MARK.len() as u64).read_to_end(&mut start)?;
        let has_mark = start == BYTE_ORDER_MARK;
        let whole: Box<dyn Read + Send> = Box::new(io::Cursor::new(start).chain(reader));
        let place = Place { file, offset: 0, line: 1 };
        let mut tracked = Self { reader: BufReader::with_capacity(BUFFER, whole), hash, place };
        if has_mark {
            tracked.skip_to(BYTE_ORDER_MARK.len() as u64)?;
        }
        Ok(tracked)
    }

    /// What comes next; empty at the end.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn peek(&mut self) -> io::Result<&[u8]> {
        loop {
            match self.reader.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                // Asked again, since the borrow of a returned buffer outlives a loop.
                Ok(_) => break,
            }
        }
        self.reader.fill_buf()
    }

    /// Takes the first `bytes` of what was peeked at.
    pub fn take(&mut self, bytes: usize) {
        let taken = &self.reader.buffer()[..bytes];
        self.hash.update(taken);
        self.place.offset += bytes as u64;
        self.place.line += memchr::memchr_iter(b'\n', taken).count() as u64;
        self.reader.consume(bytes);
    }

    /// Takes everything up to an offset, which must not lie behind.
    ///
    /// # Errors
    /// Where it cannot be read, or ends earlier.
    pub fn skip_to(&mut self, offset: u64) -> io::Result<()> {
        while self.place.offset < offset {
            let left = usize::try_from(offset - self.place.offset).unwrap_or(usize::MAX);
            let available = self.peek()?.len().min(left);
            if available == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.take(available);
        }
        Ok(())
    }

    /// Where it stands.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Where it stands, and what lies before.
    pub fn mark(&self) -> Mark {
        self.snapshot().mark()
    }

    /// What a [`Mark`] is made of: cheap enough to take before every event.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { place: self.place.clone(), hash: self.hash.clone() }
    }

    /// What the next input's bytes continue.
    pub fn into_hash(self) -> Sha256 {
        self.hash
    }
}

/// An input could not be read.
pub fn read_failure(source: &Source, error: &io::Error) -> Failure {
    Failure::Aborted(format!("cannot read {}: {error}", source.shown()))
}

#[cfg(test)]
impl Tracked {
    pub fn of_text(text: &[u8]) -> Self {
        Self::over(Box::new(io::Cursor::new(text.to_vec())), 0, Sha256::new()).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_is_counted_and_hashed() {
        let mut input = Tracked::of_text(b"one\ntwo\nthree");
        input.skip_to(9).unwrap();
        assert_eq!(input.place(), &Place { file: 0, offset: 9, line: 3 });
        assert_eq!(input.mark().sha256, hex::encode(Sha256::digest(b"one\ntwo\nt")));
        assert_eq!(input.peek().unwrap(), b"hree");
        assert_eq!(input.skip_to(14).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_line() {
        let mut input = Tracked::of_text("\u{feff}x".as_bytes());
        assert_eq!(input.peek().unwrap(), b"x");
        assert_eq!(input.place().offset, 3);
        assert_eq!(Tracked::of_text(b"\xef\xbb").peek().unwrap(), b"\xef\xbb");
        assert_eq!(Tracked::of_text(b"").peek().unwrap(), b"");
    }
}
