//! How far a run got: the checkpoint and the rejects file, which agree whatever ends the run.
//!
//! Rejects reach the disk before the checkpoint that counts them; what a run wrote after its last
//! checkpoint, the next one cuts off and writes again.

use crate::failure::Failure;
use crate::input::{Identity, Mark};
use crate::table::ColumnTypes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Changes whenever an older program would go on wrongly from a newer one's checkpoint.
const FORMAT: &str = "event-ingest-backfill/2";

/// How long the service remembers a key by default, in seconds (contract section 3).
const DEDUP_WINDOW: u64 = 24 * 3600;

/// The file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    format: String,
    /// What must be the same for a run to go on.
    #[serde(flatten)]
    pub job: Job,
    /// The number of the first batch that is not done.
    pub next_batch: u64,
    /// Where it begins.
    pub mark: Mark,
    /// Later batches that are done: number and key.
    pub done_beyond: BTreeMap<u64, String>,
    /// Where the rejects are, in full.
    rejects: PathBuf,
    /// How long that file is.
    pub rejects_bytes: u64,
    /// Events accepted so far, over all runs.
    pub accepted: u64,
    /// Events rejected so far, over all runs.
    pub rejected: u64,
    /// Requests that were repeated so far, over all runs.
    pub retries: u64,
    /// Whether nothing is left to be done.
    pub complete: bool,
    /// When this was written, in seconds since 1970.
    updated_at: u64,
}

/// What is sent where, as far as batches and keys depend on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The base URL.
    pub url: String,
    /// The Host header, where it is not the URL's.
    pub host: Option<String>,
    /// `live` or `test`, by the API key's prefix: the service keeps the two apart.
    pub mode: String,
    /// The inputs.
    pub inputs: Vec<Identity>,
    /// The most events of a batch.
    pub max_events: usize,
    /// Columns that are no strings.
    pub types: ColumnTypes,
}

impl Checkpoint {
    /// Nothing is done yet.
    pub fn new(job: Job) -> Self {
        Self {
            format: FORMAT.to_owned(),
            job,
            rejects: PathBuf::new(),
            next_batch: 0,
            mark: Mark::default(),
            done_beyond: BTreeMap::new(),
            rejects_bytes: 0,
            accepted: 0,
            rejected: 0,
            retries: 0,
            complete: false,
            updated_at: now(),
        }
    }

    /// Whether anything was done before this run.
    pub fn has_begun(&self) -> bool {
        self.next_batch > 0 || !self.done_beyond.is_empty()
    }

    /// How old it is in hours, if the service may have forgotten the keys of what was in flight.
    pub fn forgotten_for(&self) -> Option<u64> {
        let age = now().saturating_sub(self.updated_at);
        (!self.complete && age >= DEDUP_WINDOW).then_some(age / 3600)
    }

    /// Says what differs, where this is the checkpoint of another job.
    fn must_fit(&self, job: &Job) -> Result<(), String> {
        let ours = &self.job;
        if ours.inputs.len() != job.inputs.len() {
            return Err(format!("it is about {} files, not {}", ours.inputs.len(), job.inputs.len()));
        }
        for (was, is) in ours.inputs.iter().zip(&job.inputs) {
            if was.name != is.name {
                return Err(format!("it is about the file {}, not {}", was.name, is.name));
            }
            if was.bytes != is.bytes {
                return Err(format!("the size of {} was another one then", is.name));
            }
            if was.format != is.format {
                return Err(format!("{} was read as another format then", is.name));
            }
        }
        if ours.max_events != job.max_events {
            return Err(format!("--max-events was {} then, not {}", ours.max_events, job.max_events));
        }
        if ours.types != job.types {
            return Err("--types were others then".to_owned());
        }
        if ours.mode != job.mode {
            return Err(format!("the API key was a {} one then, not a {} one", ours.mode, job.mode));
        }
        if ours.url != job.url {
            return Err(format!(
                "--url was {} then. If the new one is the same service, change `url` in the checkpoint",
                ours.url
            ));
        }
        if ours.host != job.host {
            let was = ours.host.as_deref().unwrap_or("not given");
            return Err(format!(
                "--host was {was} then. If the new one is the same service, change `host` in the checkpoint"
            ));
        }
        Ok(())
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since_epoch| since_epoch.as_secs())
}

/// Where checkpoint and rejects are kept.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// The rejects.
    pub rejects: PathBuf,
}

/// `path` with more after its last character.
pub fn beside(path: &Path, more: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(more);
    name.into()
}

/// The files of one run, which no other run may have meanwhile.
pub struct Store {
    paths: Paths,
    /// Opened with the first reject.
    rejects: Option<File>,
    _lock: File,
}

impl Store {
    /// Takes the files of a job: those of an earlier run, to go on, or new ones.
    ///
    /// # Errors
    /// Where another run has them, or an earlier run was about something else.
    pub fn open(paths: Paths, job: Job, restart: bool) -> Result<(Self, Checkpoint), Failure> {
        let lock = lock(&beside(&paths.checkpoint, ".lock"))?;
        let mut store = Self { paths, rejects: None, _lock: lock };
        let found = if restart { None } else { load(&store.paths.checkpoint)? };
        let checkpoint = match found {
            Some(found) => store.resume(found, &job)?,
            None => store.begin(job, restart)?,
        };
        Ok((store, checkpoint))
    }

    fn resume(&mut self, found: Checkpoint, job: &Job) -> Result<Checkpoint, Failure> {
        let path = &self.paths.checkpoint;
        found.must_fit(job).map_err(|why| {
            let path = path.display();
            Failure::Usage(format!("the checkpoint {path} does not fit: {why}. To begin anew, give --restart"))
        })?;
        let length = found.rejects_bytes;
        let rejects = &self.paths.rejects;
        let present = std::fs::metadata(rejects).map_or(0, |metadata| metadata.len());
        if present < length && !found.complete {
            let (rejects, path) = (rejects.display(), path.display());
            return Err(Failure::Usage(format!(
                "{rejects} lacks rejects that the checkpoint {path} counts. Put it back, give its path with \
                 --rejects, or begin anew with --restart"
            )));
        }
        // A finished run's file may have been added to by somebody; it is left alone.
        if present > length && !found.complete {
            // What is cut off was written after the last checkpoint, and so only to that file.
            if found.rejects != whole(rejects) {
                let (rejects, was) = (rejects.display(), found.rejects.display());
                return Err(Failure::Usage(format!(
                    "{rejects} holds more than the {length} bytes that the checkpoint {} counts, and would be cut: the \
                     rejects were in {was} then",
                    path.display()
                )));
            }
            self.rejects_file(length)?;
        }
        Ok(Checkpoint { rejects: whole(&self.paths.rejects), ..found })
    }

    fn begin(&mut self, job: Job, restart: bool) -> Result<Checkpoint, Failure> {
        let rejects = self.paths.rejects.clone();
        let present = std::fs::metadata(&rejects).map_or(0, |metadata| metadata.len());
        if present > 0 && !restart {
            let rejects = rejects.display();
            return Err(Failure::Usage(format!(
                "{rejects} is there already, without a checkpoint: move it away, or overwrite it with --restart"
            )));
        }
        // The checkpoint first: from here on, an end of the run means that the rejects are cut.
        let checkpoint = Checkpoint { rejects: whole(&rejects), ..Checkpoint::new(job) };
        self.save(&checkpoint, &[])?;
        if present > 0 {
            self.rejects_file(0)?;
        }
        Ok(checkpoint)
    }

    fn rejects_file(&mut self, length: u64) -> Result<&mut File, Failure> {
        let path = &self.paths.rejects;
        let open = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
            // Another backfill may have been given the same path.
            file.try_lock()?;
            file.set_len(length)?;
            file.seek(SeekFrom::End(0))?;
            sync_directory(path)?;
            Ok(file)
        };
        let file = match self.rejects.take() {
            Some(file) => file,
            None => open().map_err(|error| Failure::file("write", path, &error))?,
        };
        Ok(self.rejects.insert(file))
    }

    /// Makes a checkpoint last, `rejects` being those since the one before.
    ///
    /// # Errors
    /// Where the disk does not take it.
    pub fn save(&mut self, checkpoint: &Checkpoint, rejects: &[u8]) -> Result<(), Failure> {
        if !rejects.is_empty() {
            let before = checkpoint.rejects_bytes - rejects.len() as u64;
            let file = self.rejects_file(before)?;
            let written = file.write_all(rejects).and_then(|()| file.sync_data());
            written.map_err(|error| Failure::file("write", &self.paths.rejects, &error))?;
        }
        let checkpoint = Checkpoint { updated_at: now(), ..checkpoint.clone() };
        let path = &self.paths.checkpoint;
        let text = serde_json::to_vec_pretty(&checkpoint).map_err(io::Error::other);
        text.and_then(|text| replace(path, &text)).map_err(|error| Failure::file("write", path, &error))
    }
}

/// Replaces a file's content as a whole: whatever happens, the old or the new one is there.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    // Always the same name, safe under the lock: a run that was killed leaves no litter.
    let temporary = beside(path, ".tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_directory(path)
}

/// A path that means the same from any directory.
fn whole(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Makes the name of `path` last.
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// The lock's file stays: deleting it could leave two runs with a lock each.
fn lock(path: &Path) -> Result<File, Failure> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    let file = file.map_err(|error| Failure::file("write", path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Failure::Usage(format!("another run has this checkpoint at this moment (it holds {})", path.display())))
        }
        Err(TryLockError::Error(error)) => Err(Failure::file("lock", path, &error)),
    }
}

fn load(path: &Path) -> Result<Option<Checkpoint>, Failure> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::file("read", path, &error)),
    };
    let unusable = |why: &str| {
        let path = path.display();
        Failure::Usage(format!("{path} is no checkpoint of this version ({why}). To begin anew, give --restart"))
    };
    let checkpoint: Checkpoint = serde_json::from_slice(&text).map_err(|error| unusable(&error.to_string()))?;
    if checkpoint.format != FORMAT {
        return Err(unusable(&checkpoint.format));
    }
    Ok(Some(checkpoint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Format;

    fn job() -> Job {
        let input = Identity { name: "f".to_owned(), bytes: Some(7), format: Format::Ndjson };
        Job {
            url: "https://a".to_owned(),
            host: None,
            mode: "test".to_owned(),
            inputs: vec![input],
            max_events: 500,
            types: ColumnTypes::default(),
        }
    }

    fn paths(test: &str) -> Paths {
        let directory = std::env::temp_dir().join(format!("event-ingest-backfill-{}-{test}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        Paths { checkpoint: directory.join("c.json"), rejects: directory.join("r.ndjson") }
    }

    fn refusal(paths: &Paths, job: Job) -> String {
        match Store::open(paths.clone(), job, false) {
            Err(Failure::Usage(why)) => why,
            other => panic!("{:?}", other.err()),
        }
    }

    #[test]
    fn rejects_that_no_checkpoint_counts_are_cut_off_and_written_again() {
        let paths = paths("cut");
        let (mut store, mut checkpoint) = Store::open(paths.clone(), job(), false).unwrap();
        checkpoint.rejects_bytes = 4;
        checkpoint.next_batch = 1;
        store.save(&checkpoint, b"one\n").unwrap();
        drop(store);
        // Killed between the two writes.
        std::fs::write(&paths.rejects, b"one\ntwo\nthr").unwrap();
        let (mut store, mut checkpoint) = Store::open(paths.clone(), job(), false).unwrap();
        assert_eq!(std::fs::read(&paths.rejects).unwrap(), b"one\n");
        checkpoint.rejects_bytes = 8;
        store.save(&checkpoint, b"two\n").unwrap();
        assert_eq!(std::fs::read(&paths.rejects).unwrap(), b"one\ntwo\n");
        drop(store);
        // A run that goes on and has nothing to cut appends, too.
        let (mut store, mut checkpoint) = Store::open(paths.clone(), job(), false).unwrap();
        checkpoint.rejects_bytes = 12;
        store.save(&checkpoint, b"six\n").unwrap();
        assert_eq!(std::fs::read(&paths.rejects).unwrap(), b"one\ntwo\nsix\n");
        drop(store);
        std::fs::write(&paths.rejects, b"one").unwrap();
        assert!(refusal(&paths, job()).contains("lacks rejects"));
    }

    #[test]
    fn another_job_is_refused_and_may_begin_anew() {
        let paths = paths("other");
        drop(Store::open(paths.clone(), job(), false).unwrap());
        let change = |change: fn(&mut Job)| {
            let mut other = job();
            change(&mut other);
            refusal(&paths, other)
        };
        assert!(change(|job| job.inputs.clear()).contains("1 files, not 0"));
        assert!(change(|job| job.inputs[0].name = "g".to_owned()).contains("file f, not g"));
        assert!(change(|job| job.inputs[0].bytes = Some(8)).contains("size of f"));
        assert!(change(|job| job.inputs[0].format = Format::Csv).contains("another format"));
        assert!(change(|job| job.max_events = 7).contains("--max-events was 500 then, not 7"));
        assert!(change(|job| job.types = ColumnTypes::parse("a=number").unwrap()).contains("--types"));
        assert!(change(|job| job.url = "https://b".to_owned()).contains("https://a"));
        assert!(change(|job| job.host = Some("b".to_owned())).contains("--host was not given"));
        assert!(change(|job| job.mode = "live".to_owned()).contains("a test one then, not a live one"));
        let other = Job { max_events: 7, ..job() };
        Store::open(paths.clone(), other.clone(), true).unwrap();
        Store::open(paths.clone(), other, false).unwrap();
        std::fs::write(&paths.checkpoint, b"{}").unwrap();
        assert!(refusal(&paths, job()).contains("no checkpoint of this version"));
    }

    #[test]
    fn what_was_in_flight_a_day_ago_may_be_forgotten_though_nothing_was_done() {
        let old = Checkpoint { updated_at: now() - DEDUP_WINDOW - 3600, ..Checkpoint::new(job()) };
        assert_eq!(old.forgotten_for(), Some(25));
        assert_eq!(Checkpoint { complete: true, ..old }.forgotten_for(), None);
        assert_eq!(Checkpoint::new(job()).forgotten_for(), None);
    }

    #[test]
    fn two_runs_cannot_have_one_checkpoint() {
        let paths = paths("lock");
        let first = Store::open(paths.clone(), job(), false).unwrap();
        assert!(refusal(&paths, job()).contains("another run"));
        drop(first);
        Store::open(paths, job(), false).unwrap();
    }

    #[test]
    fn rejects_without_a_checkpoint_are_not_overwritten_unasked() {
        let paths = paths("stray");
        std::fs::write(&paths.rejects, b"precious\n").unwrap();
        assert!(refusal(&paths, job()).contains("move it away"));
        assert_eq!(std::fs::read(&paths.rejects).unwrap(), b"precious\n");
        Store::open(paths.clone(), job(), true).unwrap();
        assert_eq!(std::fs::read(&paths.rejects).unwrap(), b"");
    }

    #[test]
    fn only_an_old_unfinished_checkpoint_is_warned_about() {
        let mut checkpoint = Checkpoint::new(job());
        checkpoint.next_batch = 1;
        assert_eq!(checkpoint.forgotten_for(), None);
        checkpoint.updated_at -= 25 * 3600;
        assert_eq!(checkpoint.forgotten_for(), Some(25));
        checkpoint.complete = true;
        assert_eq!(checkpoint.forgotten_for(), None);
    }
}
