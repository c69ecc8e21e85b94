//! A client that retries as the SDK does: with the same key, with full-jitter backoff, after a 429, a 5xx, or no
//! response.

use crate::test_app::Response;
use std::time::Duration;

/// The retry policy.
#[derive(Clone, Copy, Debug)]
pub struct Retries {
    pub attempts: usize,
    /// The longest pause before the second attempt. It doubles for each further attempt.
    pub first_pause: Duration,
    pub longest_pause: Duration,
    /// The longest wait for a response.
    pub timeout: Duration,
}

impl Retries {
    /// The defaults of the SDK.
    pub const SDK: Self = Self {
        attempts: 3,
        first_pause: Duration::from_millis(500),
        longest_pause: Duration::from_secs(8),
        timeout: Duration::from_secs(10),
    };
}

/// One attempt, as its client sees it.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The response, if there was one.
    pub response: Option<Response>,
}

impl Attempt {
    pub fn is_definite(&self) -> bool {
        self.response.as_ref().is_some_and(|response| response.status < 500 && response.status != 429)
    }
}

/// Sends until there is a definite response or no attempt is left. `jitter` chooses a pause up to its
/// argument.
pub async fn send<F: Future<Output = Option<Response>>>(
    retries: Retries,
    mut jitter: impl FnMut(Duration) -> Duration,
    mut once: impl FnMut() -> F,
) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let mut pause = retries.first_pause;
    loop {
        let response = tokio::time::timeout(retries.timeout, once()).await.ok().flatten();
        let attempt = Attempt { response };
        let is_done = attempt.is_definite();
        attempts.push(attempt);
        if is_done || attempts.len() == retries.attempts {
            return attempts;
        }
        tokio::time::sleep(jitter(pause)).await;
        pause = (pause * 2).min(retries.longest_pause);
    }
}
