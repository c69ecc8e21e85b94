//! Reads an object in S3 from front to back.
//!
//! Each request is for a block of limited size, and the next block is requested while one is being used. No connection
//! waits for a slow service, and memory is bounded by two blocks.

use crate::s3::Object;
use bytes::{Buf, Bytes};
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;

/// The size of the first block, in bytes. It suffices to recognize the format.
const FIRST_BLOCK_BYTES: u64 = 64 * 1024;
/// The size of later blocks. Each block is 8 times as large as the one before it, up to this size.
const MAX_BLOCK_BYTES: u64 = 4 * 1024 * 1024;

/// Reads an object from a position to its end.
pub struct ObjectReader {
    object: Object,
    /// The rest of the current block.
    block: Bytes,
    /// Where the current block ends.
    end: u64,
    /// The size of the next block that is requested.
    block_bytes: u64,
    /// The block that follows the current one.
    requested: Option<Block>,
    bytes_read: Arc<AtomicU64>,
}

struct Block {
    end: u64,
    bytes: Receiver<io::Result<Bytes>>,
}

impl ObjectReader {
    /// Reads from the byte `start` on. `bytes_read` will follow the position in the object.
    pub fn new(object: Object, start: u64, bytes_read: Arc<AtomicU64>) -> Self {
        Self { object, block: Bytes::new(), end: start, block_bytes: FIRST_BLOCK_BYTES, requested: None, bytes_read }
    }

    /// Requests the block that begins at `start`; `None` at the end of the object.
    fn request(&mut self, start: u64) -> Option<Block> {
        let end = self.object.size().min(start + self.block_bytes);
        self.block_bytes = MAX_BLOCK_BYTES.min(self.block_bytes * 8);
        (start < end).then(|| Block { end, bytes: self.object.fetch(start..end) })
    }

    fn next_block(&mut self) -> io::Result<()> {
        // After an error, the same block is requested again.
        let Some(block) = self.requested.take().or_else(|| self.request(self.end)) else { return Ok(()) };
        self.block = received(&block.bytes)?;
        self.end = block.end;
        // Often only the first block is read, to recognize the format.
        if self.block_bytes == MAX_BLOCK_BYTES {
            self.requested = self.request(self.end);
        }
        Ok(())
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.block.is_empty() {
            self.next_block()?;
        }
        let read = buffer.len().min(self.block.len());
        self.block.copy_to_slice(&mut buffer[..read]);
        self.bytes_read.store(self.end - self.block.len() as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Waits for requested bytes.
pub fn received(bytes: &Receiver<io::Result<Bytes>>) -> io::Result<Bytes> {
    bytes.recv().unwrap_or_else(|_| Err(io::Error::other("internal error: the thread that reads from S3 ended")))
}
