//! A client that retries as the vendor's SDKs do: the same key, full-jitter backoff, on 429, on
//! 5xx and on no answer.

use crate::test_app::Answer;
use std::time::{Duration, Instant};

/// When to try again.
#[derive(Clone, Copy, Debug)]
pub struct Retries {
    pub attempts: usize,
    /// The longest pause before the second attempt; it doubles from there.
    pub first_pause: Duration,
    pub longest_pause: Duration,
    /// How long to wait for one answer.
    pub timeout: Duration,
}

impl Retries {
    /// The vendor SDK's defaults.
    pub const SDK: Self = Self {
        attempts: 3,
        first_pause: Duration::from_millis(500),
        longest_pause: Duration::from_secs(8),
        timeout: Duration::from_secs(10),
    };
}

/// One try of a request as its client saw it.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub ended: Instant,
    /// `None` where none came.
    pub answer: Option<Answer>,
}

impl Attempt {
    pub fn is_definite(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| answer.status < 500 && answer.status != 429)
    }
}

/// Sends until there is a definite answer or no attempt is left. `jitter` picks a pause up to
/// the one given.
pub async fn send<F: Future<Output = Option<Answer>>>(
    retries: Retries,
    mut jitter: impl FnMut(Duration) -> Duration,
    mut once: impl FnMut() -> F,
) -> Vec<Attempt> {
    let mut tried = Vec::new();
    let mut pause = retries.first_pause;
    loop {
        let answer = tokio::time::timeout(retries.timeout, once()).await.ok().flatten();
        let attempt = Attempt { ended: Instant::now(), answer };
        let done = attempt.is_definite();
        tried.push(attempt);
        if done || tried.len() == retries.attempts {
            return tried;
        }
        tokio::time::sleep(jitter(pause)).await;
        pause = (pause * 2).min(retries.longest_pause);
    }
}
