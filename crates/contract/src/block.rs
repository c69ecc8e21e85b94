//! Eight bytes of JSON text at a time.

/// The length of a block in bytes.
pub const BLOCK: usize = size_of::<u64>();

/// The number of bytes before the first quotation mark or backslash, 0 to [`BLOCK`].
#[must_use]
pub fn before_quote(block: [u8; BLOCK]) -> usize {
    before_first(quotes(u64::from_le_bytes(block)))
}

/// The number of bytes before the first that a JSON string must escape, 0 to [`BLOCK`].
#[must_use]
pub fn before_escape(block: [u8; BLOCK]) -> usize {
    let block = u64::from_le_bytes(block);
    before_first(quotes(block) | less_than(block, b' '))
}

const ONES: u64 = u64::from_le_bytes([1; BLOCK]);

fn quotes(block: u64) -> u64 {
    let equal = |byte: u8| less_than(block ^ (ONES * u64::from(byte)), 1);
    equal(b'"') | equal(b'\\')
}

/// Sets the high bit of each byte that is less than `limit`, which is at most 128. A borrow can also set it
/// in bytes after the first of them.
fn less_than(block: u64, limit: u8) -> u64 {
    const HIGH_BITS: u64 = ONES << 7;
    block.wrapping_sub(ONES * u64::from(limit)) & !block & HIGH_BITS
}

fn before_first(high_bits: u64) -> usize {
    (high_bits.trailing_zeros() / u8::BITS) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pair of bytes at every two places, because a byte can influence those after it.
    #[test]
    fn the_first_byte_is_found_as_by_comparing_each() {
        for first in 0..=u8::MAX {
            for second in 0..=u8::MAX {
                for place in 0..BLOCK - 1 {
                    let mut block = [b'x'; BLOCK];
                    (block[place], block[place + 1]) = (first, second);
                    let is_quote = |byte: &u8| matches!(byte, b'"' | b'\\');
                    let before = |found: Option<usize>| found.unwrap_or(BLOCK);
                    assert_eq!(before_quote(block), before(block.iter().position(is_quote)), "{block:?}");
                    let is_escaped = |byte: &u8| *byte < b' ' || is_quote(byte);
                    assert_eq!(before_escape(block), before(block.iter().position(is_escaped)), "{block:?}");
                }
            }
        }
    }
}
