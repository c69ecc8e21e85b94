//! Long inputs from short ones, so that an input of a few hundred bytes reaches the large limits.

use std::borrow::Cow;

/// The byte that begins a run. It never occurs in UTF-8.
pub const RUN: u8 = 0xFF;

/// Expands the runs of an input, up to `most` bytes. A run is 0xFF, a length, a count in three bytes, and as many
/// bytes as the length says; those bytes are repeated as often as the count says. All other bytes stand for
/// themselves.
pub fn expand(input: &[u8], most: usize) -> Cow<'_, [u8]> {
    if !input.contains(&RUN) {
        return Cow::Borrowed(input);
    }
    let mut output = Vec::new();
    let mut rest = input;
    while let Some((&first, after)) = rest.split_first() {
        if let (RUN, [length, c0, c1, c2, run @ ..]) = (first, after) {
            let (run, after) = run.split_at(run.len().min(usize::from(*length)));
            let room = (most - output.len().min(most)) / run.len().max(1);
            output.extend(run.repeat(count([*c0, *c1, *c2]).min(room)));
            rest = after;
        } else {
            output.push(first);
            rest = after;
        }
    }
    Cow::Owned(output)
}

/// The count of a run.
pub fn count([c0, c1, c2]: [u8; 3]) -> usize {
    usize::from(c0) << 16 | usize::from(c1) << 8 | usize::from(c2)
}
