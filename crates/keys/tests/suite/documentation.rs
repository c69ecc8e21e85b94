//! The examples in docs/keys.md, run in order.

use crate::shell::{Shell, hint};
use std::io::{Read, pipe};
use std::process::Command;
use std::time::Duration;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/keys.md");

#[tokio::test]
async fn the_examples_print_what_the_documentation_shows() {
    let document = std::fs::read_to_string(DOCUMENT).expect("the document");
    let shell = Shell::new().await;
    let (mut documented, mut actual) = (Hints::default(), Hints::default());
    let examples = examples(&document);
    assert!(examples.len() > 5, "{examples:?}");
    for (line, output) in examples {
        if line.starts_with("rotate") {
            // Keys with the same name are sorted by the second of their creation.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let expected = documented.replace(output.trim_end());
        let line = line.split(' ').map(|word| match documented.position(word) {
            Some(position) => actual.0[position].as_str(),
            None => word,
        });
        let output = output_of(shell.command(&line.collect::<Vec<_>>().join(" ")));
        let output = output.replace(&shell.table, "api-keys");
        assert_eq!(actual.replace(output.trim_end()), expected);
    }
}

/// Returns the arguments and the output of every command in the document's console blocks.
fn examples(document: &str) -> Vec<(&str, &str)> {
    let blocks = document.split("```console\n").skip(1).map(|block| block.split("```").next().unwrap_or_default());
    let commands = blocks.flat_map(|block| block.split("$ event-ingest-keys ").skip(1));
    commands.map(|command| command.split_once('\n').expect("output after the command")).collect()
}

/// Runs a command and returns what a terminal would show.
fn output_of(mut command: Command) -> String {
    let (mut reader, writer) = pipe().expect("a pipe");
    let mut child = command.stdout(writer.try_clone().expect("a pipe")).stderr(writer).spawn().expect("it starts");
    // The pipe ends when nobody can write to it.
    drop(command);
    let mut output = String::new();
    reader.read_to_string(&mut output).expect("UTF-8");
    child.wait().expect("it ends");
    output
}

/// The hints in a text, in order of their first appearance.
#[derive(Default)]
struct Hints(Vec<String>);

impl Hints {
    fn position(&self, hint: &str) -> Option<usize> {
        self.0.iter().position(|known| known == hint)
    }

    /// Replaces keys, hints and times, which differ in every run.
    fn replace(&mut self, text: &str) -> String {
        let in_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | ':');
        let pieces = text.split_inclusive(|c| !in_word(c));
        let replaced = pieces.map(|piece| {
            let word = piece.trim_end_matches(|c| !in_word(c));
            let name = if word.starts_with("sk_live_") || word.starts_with("sk_test_") {
                let hint = hint(word);
                let position = self.position(&hint).unwrap_or_else(|| {
                    self.0.push(hint);
                    self.0.len() - 1
                });
                format!("{} {position} of {} characters", &word[..8], word.len())
            } else if word.len() == 20 && word.ends_with('Z') {
                "time".to_owned()
            } else {
                word.to_owned()
            };
            name + &piece[word.len()..]
        });
        replaced.collect()
    }
}
