//! Asks whoever sits at the terminal.

use std::io::Write as _;

use tokio::sync::oneshot;

/// Asks a question. Only `y` and `yes` in any case answer with yes. Ctrl-C ends the program while it waits.
pub(super) async fn yes(question: &str) -> bool {
    let mut stderr = std::io::stderr();
    // Whoever cannot read the question does not answer it.
    let _asked = write!(stderr, "\r{question} [y/N]: ").and_then(|()| stderr.flush());
    let (answer, answered) = oneshot::channel();
    // A thread of its own: the runtime would wait for one of its own at the end of the program.
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = std::io::stdin().read_line(&mut line);
        let _nobody_waits = answer.send(read.map(|_| line));
    });
    let line = answered.await.ok().and_then(Result::ok).unwrap_or_default();
    ["y", "yes"].contains(&line.trim().to_lowercase().as_str())
}
