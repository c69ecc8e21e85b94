//! Inputs → batches, on a thread of its own.

use crate::args::Format;
use crate::failure::Failure;
use crate::input::{Mark, Place, Source, Tracked, read_failure};
use crate::ndjson::{self, Line};
use crate::packing::{Batch, Packer};
use crate::rejects::{Fault, Reject};
use crate::table::{ColumnTypes, Row, Table};
use contract::batch::{self, BatchError};
use contract::limits::MAX_EVENT_BYTES;
use sha2::{Digest, Sha256};
use std::io;
use tokio::sync::mpsc::Sender;

/// What to read and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The inputs, in order.
    pub sources: Vec<Source>,
    /// Which columns of tables are no strings.
    pub types: ColumnTypes,
    /// The most events of a batch.
    pub max_events: usize,
}

/// Where to begin.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// The number of the first batch.
    pub ordinal: u64,
    /// Where it begins.
    pub mark: Mark,
}

/// What the reader says: batches, in order, and then the end.
pub type Read = Result<Option<Batch>, Failure>;

/// Reads the header of every table that can be read twice, so that what is wrong with one shows
/// before anything is sent.
///
/// # Errors
/// Where one is not ours.
pub fn check_headers(plan: &Plan) -> Result<(), Failure> {
    // Only regular files have a size.
    for source in plan.sources.iter().filter(|source| source.identity.bytes.is_some()) {
        let mut input = Tracked::open(source, 0, Sha256::new())?;
        Records::open(&mut input, source, &plan.types)?;
    }
    Ok(())
}

/// Reads everything from `start` on.
pub fn run(plan: &Plan, start: &Start, batches: &Sender<Read>) {
    let result = Reading { plan, start, batches, packer: Packer::new(plan.max_events, start.ordinal) }.run();
    // Nobody listens any more once the run has stopped.
    let _ = match result {
        Ok(()) => batches.blocking_send(Ok(None)),
        Err(Halt::Failure(failure)) => batches.blocking_send(Err(failure)),
        Err(Halt::Unheard) => Ok(()),
    };
}

/// Why reading ends early.
enum Halt {
    Failure(Failure),
    Unheard,
}

impl From<Failure> for Halt {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

struct Reading<'a> {
    plan: &'a Plan,
    start: &'a Start,
    batches: &'a Sender<Read>,
    packer: Packer,
}

impl Reading<'_> {
    fn run(mut self) -> Result<(), Halt> {
        let mut hash = Sha256::new();
        let mut end = self.start.mark.clone();
        for (file, source) in self.plan.sources.iter().enumerate() {
            let mut input = Tracked::open(source, file, hash)?;
            if file < self.start.mark.place.file {
                self.pass_over(&mut input, source)?;
            } else {
                self.read(&mut input, source)?;
                end = input.mark();
            }
            hash = input.into_hash();
        }
        if !self.packer.is_empty() {
            let batch = self.packer.end(end);
            self.hand_over(batch)?;
        }
        Ok(())
    }

    /// What was read by an earlier run is read again for its hash alone.
    fn pass_over(&self, input: &mut Tracked, source: &Source) -> Result<(), Halt> {
        loop {
            let available = input.peek().map_err(|error| read_failure(source, &error))?.len();
            if available == 0 {
                return Ok(());
            }
            if self.batches.is_closed() {
                return Err(Halt::Unheard);
            }
            input.take(available);
        }
    }

    fn read(&mut self, input: &mut Tracked, source: &Source) -> Result<(), Halt> {
        let mut records = Records::open(input, source, &self.plan.types)?;
        if input.place().file == self.start.mark.place.file {
            self.resume(input, source)?;
        }
        let failed = |error| read_failure(source, &error);
        let name = source.shown();
        let (mut text, mut line) = (Vec::new(), 0);
        loop {
            let before = input.snapshot();
            let record = records.next(input, &mut text, &mut line).map_err(failed)?;
            match judged(record, &text) {
                Judged::End => return Ok(()),
                Judged::Rejected(faults, keep_text) => {
                    let text = keep_text.then(|| text.clone());
                    self.packer.reject(Reject { file: name.clone(), line, faults, text });
                }
                Judged::Valid => {
                    let place = Place { line, ..before.place };
                    if self.packer.must_end_before(&text) {
                        let batch = self.packer.end(before.mark());
                        self.hand_over(batch)?;
                    }
                    self.packer.push(&source.identity.name, place, &text);
                }
            }
            if self.packer.is_full() {
                let batch = self.packer.end(input.mark());
                self.hand_over(batch)?;
            }
        }
    }

    /// Goes to where the earlier run was, and sees that everything before is as it was then.
    fn resume(&self, input: &mut Tracked, source: &Source) -> Result<(), Halt> {
        let mark = &self.start.mark;
        if mark.sha256.is_empty() {
            return Ok(());
        }
        let changed = || {
            Failure::Usage(format!(
                "{} is not what it was when the checkpoint was written, so it is not known where to go on. Put the \
                 old file back, or begin anew with --restart",
                source.shown()
            ))
        };
        match input.skip_to(mark.place.offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(changed().into()),
            Err(error) => Err(read_failure(source, &error).into()),
            Ok(()) if input.mark() != *mark => Err(changed().into()),
            Ok(()) => Ok(()),
        }
    }

    fn hand_over(&self, batch: Batch) -> Result<(), Halt> {
        self.batches.blocking_send(Ok(Some(batch))).map_err(|_| Halt::Unheard)
    }
}

/// An input as a sequence of records.
enum Records {
    Ndjson,
    /// `None` where there is not even a header.
    Csv(Option<Box<Table>>),
}

enum Record {
    Text(Vec<Fault>),
    Broken(Fault),
    TooLong(String),
    End,
}

impl Records {
    fn open(input: &mut Tracked, source: &Source, types: &ColumnTypes) -> Result<Self, Failure> {
        if source.format == Format::Ndjson {
            return Ok(Self::Ndjson);
        }
        let table = Table::open(input, types).map_err(|error| read_failure(source, &error))?;
        let table = table.map_err(|why| Failure::Usage(format!("{}: {why}", source.shown())))?;
        Ok(Self::Csv(table.map(Box::new)))
    }

    fn next(&mut self, input: &mut Tracked, text: &mut Vec<u8>, line: &mut u64) -> io::Result<Record> {
        match self {
            Self::Ndjson => Ok(match ndjson::next_line(input, text, line)? {
                Line::Whole => Record::Text(Vec::new()),
                Line::TooLong(bytes) => {
                    Record::TooLong(format!("the line has {bytes} bytes; an event has at most {MAX_EVENT_BYTES}"))
                }
                Line::End => Record::End,
            }),
            Self::Csv(None) => Ok(Record::End),
            Self::Csv(Some(table)) => Ok(match table.next_event(input, text, line)? {
                Row::Event(fault) => {
                    let fault = fault.map(|(field, reason)| Fault { field, code: "invalid_cell".into(), reason });
                    Record::Text(fault.into_iter().collect())
                }
                Row::Broken(reason) => Record::Broken(Fault { field: None, code: "invalid_row".into(), reason }),
                Row::TooLong => Record::TooLong(format!(
                    "the row has more than {MAX_EVENT_BYTES} bytes or far too many cells; is a quote left open?"
                )),
                Row::End => Record::End,
            }),
        }
    }
}

enum Judged {
    Valid,
    /// Why, and whether its text is there to be kept.
    Rejected(Vec<Fault>, bool),
    End,
}

/// Judges a record by the service's own rules.
fn judged(record: Record, text: &[u8]) -> Judged {
    match record {
        Record::End => Judged::End,
        Record::Broken(fault) => Judged::Rejected(vec![fault], true),
        Record::TooLong(reason) => {
            Judged::Rejected(vec![Fault { field: None, code: "too_long".into(), reason }], false)
        }
        Record::Text(mut faults) => {
            faults.extend(faults_of(text));
            if faults.is_empty() { Judged::Valid } else { Judged::Rejected(faults, true) }
        }
    }
}

fn faults_of(text: &[u8]) -> Vec<Fault> {
    match batch::Batch::parse_single(text) {
        Ok(_) => Vec::new(),
        // serde_json counts lines within the event, which is one line.
        Err(BatchError::Malformed(what)) => {
            let reason = what.replace(" at line 1 column", " at column");
            vec![Fault { field: None, code: "malformed_json".into(), reason }]
        }
        Err(BatchError::Invalid(faults)) => {
            let fault = |fault: batch::Violation| Fault {
                field: fault.field,
                code: "validation_failed".into(),
                reason: fault.message.into_owned(),
            };
            faults.into_iter().map(fault).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn file(name: &str, content: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("event-ingest-backfill-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn read(files: &[&PathBuf], start: &Start) -> Result<Vec<Batch>, Failure> {
        let sources = files.iter().map(|path| Source::new(path, None).unwrap()).collect();
        let plan = Plan { sources, types: ColumnTypes::default(), max_events: 3 };
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1000);
        run(&plan, start, &sender);
        let mut batches = Vec::new();
        loop {
            match receiver.try_recv().expect("a message") {
                Ok(Some(batch)) => batches.push(batch),
                Ok(None) => return Ok(batches),
                Err(failure) => return Err(failure),
            }
        }
    }

    fn lines(from: usize, count: usize) -> String {
        let line = |id| format!("{{\"external_user_id\":\"{id}\",\"name\":\"n\"}}\n");
        (from..from + count).map(line).collect()
    }

    #[test]
    fn a_run_begun_at_any_mark_reads_the_same_batches_over_files_of_any_kind() {
        let rows = (0..7).map(|id| format!("c{id},n\r\n\r\n")).collect::<Vec<_>>().concat();
        let first = file("first.ndjson", &format!("\u{feff}{}\n{{}}\n{}", lines(0, 4), lines(10, 3)));
        let second = file("second.csv", &format!("\u{feff}external_user_id,name\r\n{rows}broken\r\n"));
        let third = file("third.ndjson", &lines(20, 2));
        let files = [&first, &second, &third];
        let all = read(&files, &Start::default()).unwrap();
        let sent: usize = all.iter().map(|batch| batch.body.len()).sum();
        let rejected: Vec<_> = all.iter().flat_map(|batch| &batch.rejects).map(|reject| reject.line).collect();
        assert_eq!((sent, rejected), (16, vec![6, 16]));
        for (index, batch) in all.iter().enumerate() {
            let start = Start { ordinal: batch.ordinal + 1, mark: batch.end.clone() };
            let rest = read(&files, &start).unwrap();
            let told = |batches: &[Batch]| -> Vec<_> {
                batches.iter().map(|batch| (batch.ordinal, batch.key(), batch.end.clone())).collect()
            };
            assert_eq!(told(&rest), told(&all[index + 1..]));
        }
    }

    #[test]
    fn input_that_changed_before_the_mark_is_noticed() {
        let path = file("changing.ndjson", &lines(0, 7));
        let batches = read(&[&path], &Start::default()).unwrap();
        let start = Start { ordinal: 1, mark: batches[0].end.clone() };
        read(&[&path], &start).unwrap();
        for changed in [lines(0, 7).replacen("\"n\"", "\"m\"", 1), lines(1, 7), String::new()] {
            file("changing.ndjson", &changed);
            let failure = read(&[&path], &start).unwrap_err();
            assert!(matches!(failure, Failure::Usage(why) if why.contains("--restart")));
        }
    }

    #[test]
    fn a_file_of_faults_does_not_fill_the_memory() {
        let path = file("faults.ndjson", &"{}\n".repeat(1200));
        let batches = read(&[&path], &Start::default()).unwrap();
        assert_eq!(batches.iter().map(|batch| batch.rejects.len()).collect::<Vec<_>>(), [500, 500, 200]);
        assert!(batches.iter().all(|batch| batch.body.len() == 0));
        let reject = &batches[0].rejects[1];
        assert_eq!(
            (reject.line, reject.faults.len(), reject.faults[0].field.as_deref()),
            (2, 2, Some("external_user_id"))
        );
    }
}
