//! Waiting for what can only be asked for again and again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// What a test waits for anything that takes no time, on a machine that does much else.
pub const MINUTE: Duration = Duration::from_secs(60);

const BETWEEN: Duration = Duration::from_millis(50);

/// Asks until the answer is no error; after `within` the last error says what is wrong.
pub async fn eventually<T>(within: Duration, ask: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    asking_every(BETWEEN, within, ask).await
}

/// The same for what must be seen soon after it is so, or may not be asked for often.
pub async fn asking_every<T>(
    between: Duration,
    within: Duration,
    mut ask: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let begin = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) if begin.elapsed() > within => {
                return Err(error).with_context(|| format!("still so after {within:?}"));
            }
            Err(_) => tokio::time::sleep(between).await,
        }
    }
}
