//! A file that is read to the size it had at the beginning of the run, and no further.

use crate::error::Unreadable;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Reads a file's first bytes. It is an error if the file has become shorter, because events are missing then; what has
/// been appended is not read, because a writer may be in the middle of a line.
pub struct SizedFile {
    file: File,
    size: u64,
    left: u64,
    bytes_read: Arc<AtomicU64>,
}

impl SizedFile {
    /// Reads the first `size` bytes of `file`. `bytes_read` will follow the number of bytes read.
    pub fn new(file: File, size: u64, bytes_read: Arc<AtomicU64>) -> Self {
        Self { file, size, left: size, bytes_read }
    }
}

impl Read for SizedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.by_ref().take(self.left).read(buffer)?;
        self.left -= read as u64;
        self.bytes_read.store(self.size - self.left, Ordering::Relaxed);
        if read == 0 && self.left > 0 && !buffer.is_empty() {
            let (size, end) = (self.size, self.size - self.left);
            return Err(io::Error::other(Unreadable(format!(
                "the file had {size} bytes at the beginning of the run, and now ends after {end}. Restore it, and run the \
                 same command again"
            ))));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_to_its_size_and_no_further() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        std::fs::write(&path, "0123456789").unwrap();
        let read = |size| {
            let mut text = String::new();
            SizedFile::new(File::open(&path).unwrap(), size, Arc::default()).read_to_string(&mut text).map(|_| text)
        };
        assert_eq!([0, 7, 10].map(|size| read(size).unwrap()), ["", "0123456", "0123456789"]);
        let error = read(11).unwrap_err().to_string();
        assert!(error.contains("had 11 bytes") && error.contains("ends after 10"), "{error}");
    }
}
