//! The value of the header `Idempotency-Key`.

use crate::limits::MAX_IDEMPOTENCY_KEY_LEN;

/// A client's idempotency key: 1 to 255 visible ASCII characters, otherwise opaque.
///
/// It implements neither `Debug` nor `Display`, because logs must not contain it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct IdempotencyKey<'request>(&'request str);

impl<'request> IdempotencyKey<'request> {
    /// Parses a header value; `None` if it is not a valid key.
    #[must_use]
    pub fn parse(text: &'request str) -> Option<Self> {
        let is_key =
            (1..=MAX_IDEMPOTENCY_KEY_LEN).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_key.then_some(Self(text))
    }

    /// The key as the client sent it.
    #[must_use]
    pub fn as_str(self) -> &'request str {
        self.0
    }
}
