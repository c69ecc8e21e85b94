//! Makes the text of a new key.

use event_ingest::auth::Mode;
use rand::CryptoRng;
use rand::distr::{Alphanumeric, SampleString};

/// How many random characters follow the prefix: 238 bits.
pub const RANDOM_CHARACTERS: usize = 40;

/// A new key: the mode's prefix and [`RANDOM_CHARACTERS`] of `A-Z a-z 0-9`, each as likely.
pub fn key(mode: Mode, generator: &mut impl CryptoRng) -> String {
    let mut text = mode.key_prefix().to_owned();
    Alphanumeric.append_string(generator, &mut text, RANDOM_CHARACTERS);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_ingest::auth::ApiKey;
    use rand::rand_core::UnwrapErr;
    use rand::rngs::SysRng;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn keys_are_well_formed_and_never_the_same() {
        let mut seen = BTreeSet::new();
        for mode in [Mode::Live, Mode::Test] {
            for _ in 0..500 {
                let text = key(mode, &mut UnwrapErr(SysRng));
                let secret = text.strip_prefix(mode.key_prefix()).unwrap();
                assert_eq!(secret.len(), RANDOM_CHARACTERS);
                assert!(secret.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{secret}");
                assert!(ApiKey::parse(&text).is_some());
                assert!(seen.insert(text));
            }
        }
    }

    #[test]
    fn each_of_62_characters_is_as_likely() {
        let mut counts = BTreeMap::new();
        let keys = 62 * 250;
        for _ in 0..keys {
            for byte in key(Mode::Live, &mut UnwrapErr(SysRng)).bytes().skip(8) {
                *counts.entry(byte).or_insert(0_u32) += 1;
            }
        }
        assert_eq!(counts.len(), 62);
        // 10,000 expected of each, standard deviation 99; a byte modulo 62 would be off by 2,000.
        let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
        assert!(*least > 9_200 && *most < 10_800, "{least} to {most}");
    }
}
