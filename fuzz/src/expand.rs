//! Long inputs from short ones, so that an input of 8 KiB reaches the large limits.

/// Expands the runs of an input, up to `most` bytes. A run is 0xFF, which never occurs in UTF-8, a
/// length, a count in three bytes, and as many bytes as the length says; those bytes are repeated as
/// often as the count says. All other bytes stand for themselves.
pub fn expand(input: &[u8], most: usize) -> Vec<u8> {
    let mut output = Vec::new();
    let mut rest = input;
    while let Some((&first, after)) = rest.split_first() {
        if let (0xFF, [length, c0, c1, c2, run @ ..]) = (first, after) {
            let (run, after) = run.split_at(run.len().min(usize::from(*length)));
            let room = (most - output.len().min(most)) / run.len().max(1);
            let count = usize::from(*c0) << 16 | usize::from(*c1) << 8 | usize::from(*c2);
            output.extend(run.repeat(count.min(room)));
            rest = after;
        } else {
            output.push(first);
            rest = after;
        }
    }
    output
}
