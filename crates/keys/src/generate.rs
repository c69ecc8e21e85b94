//! Generates the text of a new key.

use contract::tenant::Mode;
use rand::CryptoRng;
use rand::distr::{Alphanumeric, SampleString};

/// How many random characters follow the prefix: 238 bits.
const RANDOM_CHARS: usize = 40;

/// Returns the mode's prefix followed by [`RANDOM_CHARS`] random characters of `A-Z a-z 0-9`.
pub fn key(mode: Mode, rng: &mut impl CryptoRng) -> String {
    let mut text = mode.key_prefix().to_owned();
    Alphanumeric.append_string(rng, &mut text, RANDOM_CHARS);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::api_key::ApiKey;
    use rand::rand_core::UnwrapErr;
    use rand::rngs::SysRng;

    #[test]
    fn a_generated_key_is_well_formed_and_random() {
        for mode in [Mode::Live, Mode::Test] {
            let [key, other] = [(); 2].map(|()| key(mode, &mut UnwrapErr(SysRng)));
            let secret = key.strip_prefix(mode.key_prefix()).unwrap();
            assert_eq!(secret.len(), RANDOM_CHARS);
            assert!(secret.bytes().all(|byte| byte.is_ascii_alphanumeric()));
            assert!(ApiKey::parse(&key).is_some_and(|parsed| parsed.mode() == mode));
            assert_ne!(key, other);
        }
    }
}
