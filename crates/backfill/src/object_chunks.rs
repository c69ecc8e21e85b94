//! Reads parts of an object in S3, for Parquet.
//!
//! Parquet reads each column of a row group from front to back, and switches between columns. A request therefore fetches
//! more than is needed at once, and the latest range of each column is kept.

use crate::object_reader::received;
use crate::s3::Object;
use bytes::{Buf, Bytes};
use parquet::errors::Result;
use parquet::file::reader::{ChunkReader, Length};
use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

/// The sizes of a request, in bytes, unless a page is larger.
const MIN_FETCH_BYTES: u64 = 64 * 1024;
const MAX_FETCH_BYTES: u64 = 1024 * 1024;
/// The size of all ranges that are kept, in bytes, unless there are more than 512 columns.
const KEPT_BYTES: u64 = 32 * 1024 * 1024;
/// The footer and the page after it, for example.
const MIN_KEPT_RANGES: usize = 4;

/// An object, and the ranges of it that are kept.
#[derive(Clone)]
pub struct ObjectChunks {
    object: Object,
    kept: Arc<Mutex<Kept>>,
}

struct Kept {
    /// Each range's start and bytes. The one that was used last is at the back.
    ranges: VecDeque<(u64, Bytes)>,
    max_ranges: usize,
    fetch_bytes: u64,
}

impl Kept {
    /// The bytes from `start` to the end of the range that contains it.
    fn from(&mut self, start: u64) -> Option<Bytes> {
        let contains = |(begin, bytes): &(u64, Bytes)| (*begin..begin + bytes.len() as u64).contains(&start);
        let index = self.ranges.iter().position(contains)?;
        let (begin, bytes) = self.ranges.remove(index)?;
        self.ranges.push_back((begin, bytes.clone()));
        Some(bytes.slice(usize::try_from(start - begin).ok()?..))
    }

    fn keep(&mut self, start: u64, bytes: Bytes) {
        self.ranges.push_back((start, bytes));
        while self.ranges.len() > self.max_ranges {
            self.ranges.pop_front();
        }
    }
}

impl ObjectChunks {
    /// Reads `object`, with small requests until [`Self::expect_columns`] is called.
    pub fn new(object: Object) -> Self {
        let kept = Kept { ranges: VecDeque::new(), max_ranges: MIN_KEPT_RANGES, fetch_bytes: MIN_FETCH_BYTES };
        Self { object, kept: Arc::new(Mutex::new(kept)) }
    }

    /// Keeps one range for each column.
    pub fn expect_columns(&self, columns: usize) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.max_ranges = columns + MIN_KEPT_RANGES;
        kept.fetch_bytes = (KEPT_BYTES / kept.max_ranges as u64).clamp(MIN_FETCH_BYTES, MAX_FETCH_BYTES);
    }

    /// At least `min` bytes from `start` on, or all that there are.
    fn read_at(&self, start: u64, min: usize) -> io::Result<Bytes> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.from(start).unwrap_or_default();
        let next = start + found.len() as u64;
        let end = self.object.size().min((next + kept.fetch_bytes).max(start + min as u64));
        if found.len() >= min || next >= end {
            return Ok(found);
        }
        let fetched = received(&self.object.fetch(next..end))?;
        kept.keep(next, fetched.clone());
        let missing = fetched.len().min(min - found.len());
        Ok(if found.is_empty() { fetched } else { [found, fetched.slice(..missing)].concat().into() })
    }
}

impl Length for ObjectChunks {
    fn len(&self) -> u64 {
        self.object.size()
    }
}

impl ChunkReader for ObjectChunks {
    type T = ChunkStream;

    fn get_read(&self, start: u64) -> Result<ChunkStream> {
        Ok(ChunkStream { chunks: self.clone(), next: start, bytes: Bytes::new() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let bytes = self.read_at(start, length)?;
        if bytes.len() < length {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(bytes.slice(..length))
    }
}

/// Reads from a position on.
pub struct ChunkStream {
    chunks: ObjectChunks,
    /// Where `bytes` ends.
    next: u64,
    bytes: Bytes,
}

impl Read for ChunkStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.bytes.is_empty() {
            self.bytes = self.chunks.read_at(self.next, 1)?;
            self.next += self.bytes.len() as u64;
        }
        let read = buffer.len().min(self.bytes.len());
        self.bytes.copy_to_slice(&mut buffer[..read]);
        Ok(read)
    }
}
