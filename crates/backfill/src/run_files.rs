//! The files of a run: checkpoint, rejects file and lock. They stay consistent however a run ends.
//!
//! Rejected events reach the disk before the checkpoint that counts them. A resumed run truncates the
//! rejects file to the size in the checkpoint, and writes the rest again.

use crate::checkpoint::{Checkpoint, Job};
use crate::error::Error;
use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The paths of a run's files.
#[derive(Clone, Debug)]
pub struct RunPaths {
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// The rejects file.
    pub rejects: PathBuf,
}

/// Appends `suffix` to the last component of `path`.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The files of a run, locked against other runs.
pub struct RunFiles {
    paths: RunPaths,
    /// Opened when the first event is rejected.
    rejects: Option<File>,
    _lock: File,
}

impl RunFiles {
    /// Opens the files of an earlier run of `job`, or creates new ones.
    ///
    /// # Errors
    /// If another run has locked the files, or they belong to another job.
    pub fn open(paths: RunPaths, job: Job, restart: bool) -> Result<(Self, Checkpoint), Error> {
        let lock = lock(&with_suffix(&paths.checkpoint, ".lock"))?;
        let mut files = Self { paths, rejects: None, _lock: lock };
        let saved = if restart { None } else { load(&files.paths.checkpoint)? };
        let checkpoint = match saved {
            Some(saved) => files.resume(saved, &job)?,
            None => files.begin(job, restart)?,
        };
        Ok((files, checkpoint))
    }

    fn resume(&mut self, mut saved: Checkpoint, job: &Job) -> Result<Checkpoint, Error> {
        let path = self.paths.checkpoint.display();
        saved.check_job(job).map_err(|difference| {
            Error::Usage(format!(
                "the checkpoint {path} does not match this run: {difference}. To start over, pass --restart"
            ))
        })?;
        let counted = saved.rejects_bytes;
        let rejects = self.paths.rejects.display();
        let present = size(&self.paths.rejects);
        if present < counted && !saved.complete {
            return Err(Error::Usage(format!(
                "{rejects} lacks rejected events that the checkpoint {path} counts. Restore the file, pass its path \
                 with --rejects, or start over with --restart"
            )));
        }
        // The rejects file of a complete run is not truncated, because the user may have appended to it.
        if present > counted && !saved.complete {
            // Only the file of the earlier run can have events that the checkpoint does not count.
            if saved.rejects_path != absolute(&self.paths.rejects) {
                return Err(Error::Usage(format!(
                    "{rejects} is longer than the {counted} bytes that the checkpoint {path} counts, and would be \
                     truncated. The run that wrote the checkpoint used {}",
                    saved.rejects_path.display()
                )));
            }
            self.open_rejects(counted)?;
        }
        saved.rejects_path = absolute(&self.paths.rejects);
        Ok(saved)
    }

    fn begin(&mut self, job: Job, restart: bool) -> Result<Checkpoint, Error> {
        let present = size(&self.paths.rejects);
        if present > 0 && !restart {
            return Err(Error::Usage(format!(
                "{} exists, but its checkpoint does not. Move the file away, or overwrite it with --restart",
                self.paths.rejects.display()
            )));
        }
        // Write the checkpoint first. If the run ends here, the next run truncates the rejects file.
        let mut checkpoint = Checkpoint::new(job);
        checkpoint.rejects_path = absolute(&self.paths.rejects);
        self.save(&checkpoint, &[])?;
        if present > 0 {
            self.open_rejects(0)?;
        }
        Ok(checkpoint)
    }

    /// Opens the rejects file, if it is not open, and truncates it to `length`.
    fn open_rejects(&mut self, length: u64) -> Result<&mut File, Error> {
        let path = &self.paths.rejects;
        let open = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
            // Another run with another checkpoint may use the same rejects file.
            file.try_lock()?;
            file.set_len(length)?;
            file.seek(SeekFrom::End(0))?;
            sync_directory(path)?;
            Ok(file)
        };
        let file = match self.rejects.take() {
            Some(file) => file,
            None => open().map_err(|error| Error::file("write", path, &error))?,
        };
        Ok(self.rejects.insert(file))
    }

    /// Writes a checkpoint to disk, and before it the rejects lines since the last one.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&mut self, checkpoint: &Checkpoint, new_rejects: &[u8]) -> Result<(), Error> {
        if !new_rejects.is_empty() {
            let before = checkpoint.rejects_bytes - new_rejects.len() as u64;
            let file = self.open_rejects(before)?;
            let written = file.write_all(new_rejects).and_then(|()| file.sync_data());
            written.map_err(|error| Error::file("write", &self.paths.rejects, &error))?;
        }
        let path = &self.paths.checkpoint;
        let text = checkpoint.to_json().map_err(io::Error::other);
        text.and_then(|text| replace(path, &text)).map_err(|error| Error::file("write", path, &error))
    }
}

/// Replaces a file atomically: after a crash, the file has either its old or its new content.
///
/// The temporary file always has the same name, which the lock makes safe. The crate
/// `atomic-write-file` makes random names, and every killed run could leave one more file.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = with_suffix(path, ".tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_directory(path)
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Makes a creation or renaming of `path` durable.
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// Takes the lock. The file is never deleted, because two runs could then lock two different files.
fn lock(path: &Path) -> Result<File, Error> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    let file = file.map_err(|error| Error::file("write", path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Error::Usage(format!("another run is using this checkpoint (it has locked {})", path.display())))
        }
        Err(TryLockError::Error(error)) => Err(Error::file("lock", path, &error)),
    }
}

fn load(path: &Path) -> Result<Option<Checkpoint>, Error> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::file("read", path, &error)),
    };
    Checkpoint::parse(&text).map(Some).map_err(|reason| {
        let path = path.display();
        Error::Usage(format!("{path} is not a checkpoint of this version ({reason}). To start over, pass --restart"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::tests::job;
    use tempfile::TempDir;

    fn paths() -> (TempDir, RunPaths) {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let paths = RunPaths { checkpoint: path("c.json"), rejects: path("r.ndjson") };
        (directory, paths)
    }

    fn refusal(paths: &RunPaths, job: Job) -> String {
        match RunFiles::open(paths.clone(), job, false) {
            Err(Error::Usage(reason)) => reason,
            other => panic!("{:?}", other.err()),
        }
    }

    #[test]
    fn rejects_that_no_checkpoint_counts_are_truncated_and_written_again() {
        let (_directory, paths) = paths();
        let (mut files, mut checkpoint) = RunFiles::open(paths.clone(), job(), false).unwrap();
        checkpoint.rejects_bytes = 4;
        checkpoint.next_batch = 1;
        files.save(&checkpoint, b"one\n").unwrap();
        drop(files);
        // As if the run had been killed after writing the rejects file and before writing the checkpoint.
        std::fs::write(&paths.rejects, b"one\ntwo\nthr").unwrap();
        let (mut files, mut checkpoint) = RunFiles::open(paths.clone(), job(), false).unwrap();
        assert_eq!(std::fs::read(&paths.rejects).unwrap(), b"one\n");
        checkpoint.rejects_bytes = 8;
        files.save(&checkpoint, b"two\n").unwrap();
        assert_eq!(std::fs::read(&paths.rejects).unwrap(), b"one\ntwo\n");
        drop(files);
        // A resumed run with nothing to truncate appends.
        let (mut files, mut checkpoint) = RunFiles::open(paths.clone(), job(), false).unwrap();
        checkpoint.rejects_bytes = 12;
        files.save(&checkpoint, b"six\n").unwrap();
        assert_eq!(std::fs::read(&paths.rejects).unwrap(), b"one\ntwo\nsix\n");
        drop(files);
        std::fs::write(&paths.rejects, b"one").unwrap();
        assert!(refusal(&paths, job()).contains("lacks rejected events"));
    }

    #[test]
    fn another_job_is_refused_without_restart() {
        let (_directory, paths) = paths();
        drop(RunFiles::open(paths.clone(), job(), false).unwrap());
        let other = Job { max_events: 7, ..job() };
        assert!(refusal(&paths, other.clone()).contains("--max-events was 500, not 7. To start over"));
        RunFiles::open(paths.clone(), other.clone(), true).unwrap();
        RunFiles::open(paths.clone(), other, false).unwrap();
        std::fs::write(&paths.checkpoint, b"{}").unwrap();
        assert!(refusal(&paths, job()).contains("not a checkpoint of this version"));
    }

    #[test]
    fn two_runs_cannot_use_one_checkpoint() {
        let (_directory, paths) = paths();
        let first = RunFiles::open(paths.clone(), job(), false).unwrap();
        assert!(refusal(&paths, job()).contains("another run"));
        drop(first);
        RunFiles::open(paths, job(), false).unwrap();
    }

    #[test]
    fn a_rejects_file_without_a_checkpoint_is_overwritten_only_with_restart() {
        let (_directory, paths) = paths();
        std::fs::write(&paths.rejects, b"precious\n").unwrap();
        assert!(refusal(&paths, job()).contains("Move the file away"));
        assert_eq!(std::fs::read(&paths.rejects).unwrap(), b"precious\n");
        RunFiles::open(paths.clone(), job(), true).unwrap();
        assert_eq!(std::fs::read(&paths.rejects).unwrap(), b"");
    }
}
