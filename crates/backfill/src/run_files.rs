//! The files of a run: checkpoint, rejects file and lock. They stay consistent however a run ends.
//!
//! Rejected events reach the disk before the checkpoint that counts them. A resumed run truncates the
//! rejects file to the size in the checkpoint, and writes the rest again.

use crate::checkpoint::{Checkpoint, Job};
use crate::error::Error;
use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The maximum number of symbolic links in a row, as in Linux.
const MAX_LINKS: usize = 40;

/// The paths of a run's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunPaths {
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// The rejects file.
    pub rejects: PathBuf,
}

impl RunPaths {
    /// Follows links, and checks that the files of the run and its inputs are different files.
    ///
    /// # Errors
    /// The message names two paths that lead to the same file.
    pub fn resolve(&self, inputs: &[&Path]) -> Result<Self, Error> {
        let (checkpoint, rejects) = (resolve(&self.checkpoint), resolve(&self.rejects));
        let outputs = [
            ("--checkpoint", checkpoint.clone()),
            ("the checkpoint's lock", lock_path(&checkpoint)),
            ("the new checkpoint", temporary_path(&checkpoint)),
            ("--rejects", rejects.clone()),
        ];
        for (index, (name, path)) in outputs.iter().enumerate() {
            if let Some((other, _)) = outputs[..index].iter().find(|(_, other)| is_same_file(other, path)) {
                return Err(Error::Usage(format!("{other} and {name} are the same file: {}", path.display())));
            }
            if inputs.iter().any(|input| is_same_file(&resolve(input), path)) {
                let path = path.display();
                return Err(Error::Usage(format!("{path} is an input file and would be overwritten by {name}")));
            }
        }
        // A path that is not a link stays as the user wrote it, for messages.
        let followed = |path: &Path, resolved| if path.is_symlink() { resolved } else { path.to_owned() };
        Ok(Self { checkpoint: followed(&self.checkpoint, checkpoint), rejects: followed(&self.rejects, rejects) })
    }
}

/// Follows symbolic links, also where the file does not exist yet.
fn resolve(path: &Path) -> PathBuf {
    let mut path = absolute(path);
    for _ in 0..MAX_LINKS {
        let Ok(target) = std::fs::read_link(&path) else { break };
        path = path.parent().map_or(target.clone(), |parent| parent.join(&target));
    }
    let directory = path.parent().and_then(|parent| parent.canonicalize().ok());
    match (directory, path.file_name()) {
        (Some(directory), Some(name)) => directory.join(name),
        _ => path,
    }
}

/// Whether two resolved paths are equal or hard links to one file.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let file = |path: &Path| std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    one == other || file(one).is_some_and(|id| file(other) == Some(id))
}

fn lock_path(checkpoint: &Path) -> PathBuf {
    with_suffix(checkpoint, ".lock")
}

fn temporary_path(checkpoint: &Path) -> PathBuf {
    with_suffix(checkpoint, ".tmp")
}

/// Appends `suffix` to the last component of `path`.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// How a run treats the files of an earlier one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Treatment {
    /// Whether to ignore an earlier checkpoint.
    pub restart: bool,
    /// Whether the API key may be another one than the checkpoint's.
    pub same_project: bool,
}

/// The files of a run, locked against other runs.
pub struct RunFiles {
    paths: RunPaths,
    /// `None` if the run is complete.
    rejects: Option<RejectsFile>,
    is_resumed: bool,
    _lock: File,
}

impl RunFiles {
    /// Opens the files of an earlier run of `job`, or creates new ones. `paths` must not be links.
    ///
    /// # Errors
    /// If another run has locked the files, they belong to another job, or they cannot be written.
    pub fn open(paths: RunPaths, job: Job, options: Treatment) -> Result<(Self, Checkpoint), Error> {
        let lock = lock(&lock_path(&paths.checkpoint))?;
        refuse_rejects_file_of_another_run(&paths.checkpoint)?;
        let mut files = Self { paths, rejects: None, is_resumed: false, _lock: lock };
        let saved = if options.restart { None } else { load(&files.paths.checkpoint)? };
        let checkpoint = match saved {
            Some(saved) if saved.nothing_queued => files.begin_again(&saved, job)?,
            Some(saved) => files.resume(saved, &job, options.same_project)?,
            None => files.begin(job, options.restart)?,
        };
        Ok((files, checkpoint))
    }

    /// Whether an earlier run may have sent something.
    pub fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    fn resume(&mut self, mut saved: Checkpoint, job: &Job, same_project: bool) -> Result<Checkpoint, Error> {
        let path = self.paths.checkpoint.display();
        saved.check_job(job, same_project).map_err(|difference| {
            Error::Usage(format!(
                "the checkpoint {path} does not match this run: {difference}. To start over, pass --restart"
            ))
        })?;
        saved.job.api_key.clone_from(&job.api_key);
        self.is_resumed = true;
        // The rejects file of a complete run stays as it is, because the user may have moved or changed it.
        if saved.complete {
            return Ok(saved);
        }
        let counted = saved.rejects_bytes;
        let mut file = RejectsFile::open(&self.paths.rejects)?;
        let rejects = self.paths.rejects.display();
        let present = file.size()?;
        if present < counted {
            return Err(Error::Usage(format!(
                "{rejects} lacks rejected events that the checkpoint {path} counts. Restore the file, pass its path \
                 with --rejects, or start over with --restart"
            )));
        }
        // Only the file of the earlier run can have events that the checkpoint does not count.
        if present > counted && saved.rejects_path != absolute(&self.paths.rejects) {
            return Err(Error::Usage(format!(
                "{rejects} is longer than the {counted} bytes that the checkpoint {path} counts, and would be \
                 truncated. The run that wrote the checkpoint used {}",
                saved.rejects_path.display()
            )));
        }
        file.truncate(counted)?;
        self.rejects = Some(file);
        saved.rejects_path = absolute(&self.paths.rejects);
        Ok(saved)
    }

    /// Begins after a run that queued nothing. Its rejected events will be found again, so they need not be kept.
    fn begin_again(&mut self, saved: &Checkpoint, job: Job) -> Result<Checkpoint, Error> {
        let mut file = RejectsFile::open(&self.paths.rejects)?;
        let is_its_own = saved.rejects_path == absolute(&self.paths.rejects) && saved.rejects_bytes == file.size()?;
        if is_its_own {
            file.truncate(0)?;
        }
        drop(file);
        self.begin(job, true)
    }

    fn begin(&mut self, job: Job, restart: bool) -> Result<Checkpoint, Error> {
        let path = &self.paths.rejects;
        let mut file = RejectsFile::open(path)?;
        if file.size()? > 0 {
            if !restart {
                return Err(Error::Usage(format!(
                    "{} exists, but its checkpoint does not. Move the file away, or pass --restart, which renames it",
                    path.display()
                )));
            }
            set_aside(path)?;
            file = RejectsFile::open(path)?;
        }
        self.rejects = Some(file);
        let mut checkpoint = Checkpoint::new(job);
        checkpoint.rejects_path = absolute(path);
        self.save(&checkpoint, &[])?;
        Ok(checkpoint)
    }

    /// Writes a checkpoint to disk, and before it the rejects lines since the last one.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&mut self, checkpoint: &Checkpoint, new_rejects: &[u8]) -> Result<(), Error> {
        if let Some(file) = self.rejects.as_mut().filter(|_| !new_rejects.is_empty()) {
            file.append(new_rejects)?;
        }
        let path = &self.paths.checkpoint;
        let text = checkpoint.to_json().map_err(io::Error::other);
        text.and_then(|text| replace(path, &text)).map_err(|error| Error::file("write", path, &error))
    }
}

/// The rejects file, open and locked from the beginning of the run, so that it can be written when an event is
/// rejected hours later. If it is empty at the end, it is removed.
struct RejectsFile {
    path: PathBuf,
    file: File,
}

impl RejectsFile {
    fn open(path: &Path) -> Result<Self, Error> {
        let failure = |error: &io::Error| Error::file("write", path, error);
        if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            let path = path.display();
            return Err(Error::Usage(format!("{path} is not a regular file, so it cannot keep rejected events")));
        }
        // If `path` is the checkpoint of another run, the lock beside it is locked.
        let beside = lock_path(path);
        if beside.is_file() {
            lock(&beside)?;
        }
        loop {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
            let file = file.map_err(|error| failure(&error))?;
            lock_file(&file, path, "rejects file")?;
            // Another run may have removed the file between the two calls above.
            let is_current =
                |metadata: std::fs::Metadata| file.metadata().is_ok_and(|file| file.ino() == metadata.ino());
            if std::fs::metadata(path).is_ok_and(is_current) {
                sync_directory(path).map_err(|error| failure(&error))?;
                return Ok(Self { path: path.to_owned(), file });
            }
        }
    }

    fn size(&self) -> Result<u64, Error> {
        self.file.metadata().map(|metadata| metadata.len()).map_err(|error| Error::file("read", &self.path, &error))
    }

    /// Truncates the file, and continues at its end.
    fn truncate(&mut self, length: u64) -> Result<(), Error> {
        let result = self.file.set_len(length).and_then(|()| self.file.seek(SeekFrom::End(0)));
        result.map(drop).map_err(|error| Error::file("write", &self.path, &error))
    }

    fn append(&mut self, lines: &[u8]) -> Result<(), Error> {
        let written = self.file.write_all(lines).and_then(|()| self.file.sync_data());
        written.map_err(|error| Error::file("write", &self.path, &error))
    }
}

impl Drop for RejectsFile {
    fn drop(&mut self) {
        // The file is still locked. An empty file that stays does no harm.
        if self.size().is_ok_and(|size| size == 0) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Renames a file to the first free name with a number.
fn set_aside(path: &Path) -> Result<(), Error> {
    let mut number = 1_u32;
    while with_suffix(path, &format!(".{number}")).exists() {
        number += 1;
    }
    let renamed = std::fs::rename(path, with_suffix(path, &format!(".{number}")));
    renamed.map_err(|error| Error::file("rename", path, &error))
}

/// Replaces a file atomically: after a crash, the file has either its old or its new content.
///
/// The temporary file always has the same name, which the lock makes safe. The crate
/// `atomic-write-file` makes random names, and every killed run could leave one more file.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = temporary_path(path);
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_directory(path)
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Makes a creation or renaming of `path` durable, where the file system can.
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.or_else(|error| if is_unsupported(&error) { Ok(()) } else { Err(error) })
}

/// Whether the file system cannot open or synchronize directories at all: network and FUSE file systems return EINVAL,
/// ENOTSUP, ENOSYS or EBADF, and a directory that may not be listed cannot be opened.
fn is_unsupported(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::InvalidInput, io::ErrorKind::Unsupported, io::ErrorKind::PermissionDenied];
    // EBADF has no kind.
    kinds.contains(&error.kind()) || error.raw_os_error() == Some(9)
}

/// Takes the lock. The file is never deleted, because two runs could then lock two different files.
fn lock(path: &Path) -> Result<File, Error> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    let file = file.map_err(|error| Error::file("write", path, &error))?;
    lock_file(&file, path, "checkpoint")?;
    Ok(file)
}

fn lock_file(file: &File, path: &Path, what: &str) -> Result<(), Error> {
    let path = path.display();
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => Error::Usage(format!("another run is using this {what} (it has locked {path})")),
        TryLockError::Error(error) => Error::Usage(format!(
            "cannot lock {path}: {error}. Pass --checkpoint and --rejects with paths on a file system that can lock files"
        )),
    })
}

/// A rejects file is locked itself, not with a file beside it.
fn refuse_rejects_file_of_another_run(checkpoint: &Path) -> Result<(), Error> {
    let Ok(file) = File::open(checkpoint) else { return Ok(()) };
    lock_file(&file, checkpoint, "file for rejected events")
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

    const KEEP: Treatment = Treatment { restart: false, same_project: false };
    const RESTART: Treatment = Treatment { restart: true, same_project: false };

    fn paths() -> (TempDir, RunPaths) {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let paths = RunPaths { checkpoint: path("c.json"), rejects: path("r.ndjson") };
        (directory, paths)
    }

    fn refusal(paths: &RunPaths, job: Job) -> String {
        match RunFiles::open(paths.clone(), job, KEEP) {
            Err(Error::Usage(reason)) => reason,
            other => panic!("{:?}", other.err()),
        }
    }

    #[test]
    fn rejects_that_no_checkpoint_counts_are_truncated_and_written_again() {
        let (_directory, paths) = paths();
        let (mut files, mut checkpoint) = RunFiles::open(paths.clone(), job(), KEEP).unwrap();
        checkpoint.rejects_bytes = 4;
        checkpoint.next_batch = 1;
        files.save(&checkpoint, b"one\n").unwrap();
        drop(files);
        // As if the run had been killed after writing the rejects file and before writing the checkpoint.
        std::fs::write(&paths.rejects, b"one\ntwo\nthr").unwrap();
        let (mut files, mut checkpoint) = RunFiles::open(paths.clone(), job(), KEEP).unwrap();
        assert_eq!(std::fs::read(&paths.rejects).unwrap(), b"one\n");
        checkpoint.rejects_bytes = 8;
        files.save(&checkpoint, b"two\n").unwrap();
        assert_eq!(std::fs::read(&paths.rejects).unwrap(), b"one\ntwo\n");
        drop(files);
        // A resumed run with nothing to truncate appends.
        let (mut files, mut checkpoint) = RunFiles::open(paths.clone(), job(), KEEP).unwrap();
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
        drop(RunFiles::open(paths.clone(), job(), KEEP).unwrap());
        let other = Job { max_events: 7, ..job() };
        assert!(refusal(&paths, other.clone()).contains("--max-events was 500, not 7. To start over"));
        RunFiles::open(paths.clone(), other.clone(), RESTART).unwrap();
        RunFiles::open(paths.clone(), other, KEEP).unwrap();
        std::fs::write(&paths.checkpoint, b"{}").unwrap();
        assert!(refusal(&paths, job()).contains("not a checkpoint of this version"));
    }

    #[test]
    fn two_runs_cannot_use_one_checkpoint() {
        let (_directory, paths) = paths();
        let first = RunFiles::open(paths.clone(), job(), KEEP).unwrap();
        assert!(refusal(&paths, job()).contains("another run"));
        drop(first);
        RunFiles::open(paths, job(), KEEP).unwrap();
    }

    #[test]
    fn a_rejects_file_without_a_checkpoint_is_overwritten_only_with_restart() {
        let (_directory, paths) = paths();
        std::fs::write(&paths.rejects, b"precious\n").unwrap();
        assert!(refusal(&paths, job()).contains("Move the file away"));
        assert_eq!(std::fs::read(&paths.rejects).unwrap(), b"precious\n");
        RunFiles::open(paths.clone(), job(), RESTART).unwrap();
        assert!(!paths.rejects.exists());
        assert_eq!(std::fs::read(with_suffix(&paths.rejects, ".1")).unwrap(), b"precious\n");
        // A second restart does not overwrite what the first one kept.
        std::fs::write(&paths.rejects, b"more\n").unwrap();
        RunFiles::open(paths.clone(), job(), RESTART).unwrap();
        assert_eq!(std::fs::read(with_suffix(&paths.rejects, ".1")).unwrap(), b"precious\n");
        assert_eq!(std::fs::read(with_suffix(&paths.rejects, ".2")).unwrap(), b"more\n");
    }

    #[test]
    fn two_runs_cannot_use_one_rejects_file_in_any_role() {
        let (directory, paths) = paths();
        let other = |checkpoint: &str, rejects: &str| {
            let path = |name: &str| directory.path().join(name);
            refusal(&RunPaths { checkpoint: path(checkpoint), rejects: path(rejects) }, job())
        };
        let _running = RunFiles::open(paths, job(), KEEP).unwrap();
        assert!(other("c2.json", "r.ndjson").contains("another run is using this rejects file"));
        assert!(other("c.json", "r2.ndjson").contains("another run is using this checkpoint"));
        assert!(other("r.ndjson", "r2.ndjson").contains("another run"));
        assert!(other("c2.json", "c.json").contains("another run"));
    }

    #[test]
    fn the_files_of_a_run_are_different_files_also_through_links() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::create_dir(path("d")).unwrap();
        std::os::unix::fs::symlink(directory.path(), path("d/up")).unwrap();
        std::os::unix::fs::symlink("c.json", path("link")).unwrap();
        std::fs::write(path("input"), "x").unwrap();
        std::fs::hard_link(path("input"), path("hard")).unwrap();
        let resolve = |checkpoint: &str, rejects: &str| {
            let paths = RunPaths { checkpoint: path(checkpoint), rejects: path(rejects) };
            paths.resolve(&[&path("input")]).map_err(|error| error.to_string())
        };
        for (checkpoint, rejects) in [
            ("c.json", "c.json"),
            ("c.json", "./d/../c.json"),
            ("c.json", "d/up/c.json"),
            ("c.json", "link"),
            ("link", "c.json"),
            ("c.json", "c.json.lock"),
            ("c.json", "c.json.tmp"),
        ] {
            let error = resolve(checkpoint, rejects).unwrap_err();
            assert!(error.contains("are the same file"), "{checkpoint} {rejects}: {error}");
        }
        for (checkpoint, rejects) in [("input", "r"), ("c.json", "input"), ("c.json", "hard"), ("d/up/hard", "r")] {
            assert!(resolve(checkpoint, rejects).unwrap_err().contains("is an input file"), "{checkpoint} {rejects}");
        }
        let root = directory.path().canonicalize().unwrap();
        let found = resolve("link", "d/up/r").unwrap();
        assert_eq!((found.checkpoint, found.rejects), (root.join("c.json"), path("d/up/r")));
    }

    #[test]
    fn a_checkpoint_of_a_run_that_queued_nothing_binds_nobody() {
        let (_directory, paths) = paths();
        let (mut files, mut checkpoint) = RunFiles::open(paths.clone(), job(), KEEP).unwrap();
        checkpoint.nothing_queued = true;
        checkpoint.rejects_bytes = 4;
        files.save(&checkpoint, b"one\n").unwrap();
        drop(files);
        let other = Job { max_events: 7, ..job() };
        let (files, checkpoint) = RunFiles::open(paths.clone(), other, KEEP).unwrap();
        assert_eq!((checkpoint.rejects_bytes, checkpoint.nothing_queued), (0, false));
        drop(files);
        assert!(!paths.rejects.exists() && !with_suffix(&paths.rejects, ".1").exists());
    }

    #[test]
    fn another_key_resumes_only_if_it_is_said_to_be_of_the_same_project() {
        let (_directory, paths) = paths();
        drop(RunFiles::open(paths.clone(), job(), KEEP).unwrap());
        let rotated = Job { api_key: "sk_test_…bbbb".to_owned(), ..job() };
        assert!(refusal(&paths, rotated.clone()).contains("--same-project"));
        let options = Treatment { same_project: true, ..KEEP };
        let (mut files, checkpoint) = RunFiles::open(paths.clone(), rotated.clone(), options).unwrap();
        files.save(&checkpoint, &[]).unwrap();
        drop(files);
        RunFiles::open(paths.clone(), rotated, KEEP).unwrap();
        assert!(refusal(&paths, job()).contains("--same-project"));
    }

    #[test]
    fn a_directory_that_cannot_be_synchronized_is_no_error_but_a_failing_disk_is() {
        for code in [22, 95, 38, 9, 13, 1] {
            assert!(is_unsupported(&io::Error::from_raw_os_error(code)), "{code}");
        }
        for code in [5, 28, 2] {
            assert!(!is_unsupported(&io::Error::from_raw_os_error(code)), "{code}");
        }
    }
}
