//! How the fuzzers change inputs.

use crate::targets::expand::{RUN, count};

/// How much inputs expand.
#[derive(Clone, Copy)]
pub struct Expansion {
    /// The most bytes of most expanded inputs.
    pub usual: usize,
    /// One in this many inputs can expand to more. Reading a megabyte takes as long as thousands of small inputs.
    pub large_one_in: u32,
}

/// Changes an input as libFuzzer does, and then shortens its runs. An input of size `size` is at the start of `data`.
/// Returns the new size.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32, expansion: Expansion) -> usize {
    let size = libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    if !seed.is_multiple_of(expansion.large_one_in) {
        shorten_runs(&mut data[..size], expansion.usual);
    }
    size
}

/// Lowers the counts of the runs of an input, so that together they expand to at most `most` bytes.
fn shorten_runs(input: &mut [u8], mut most: usize) {
    let mut at = 0;
    while let Some(next) = input.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == RUN)) {
        at += next + 1;
        let Some([length, counts @ ..]) = input.get(at..).and_then(|rest| rest.first_chunk::<4>()).copied() else {
            return;
        };
        let length = usize::from(length).min(input.len() - at - 4);
        let times = count(counts).min(most / length.max(1));
        let [_, _, c1, c2] = u32::try_from(times).unwrap_or(0).to_be_bytes();
        input[at + 1..at + 4].copy_from_slice(&[0, c1, c2]);
        most -= length * times;
        at += 4 + length;
    }
}
