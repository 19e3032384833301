//! The result of a step: the content of the result file, and messages.

use serde::{Deserialize, Serialize};

/// Exit code of a shell whose child was killed by SIGKILL.
const SHELL_SAW_KILL: i32 = 128 + SIGKILL;
const SIGKILL: i32 = 9;

/// The result of a step.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct StepResult {
    /// Exit code, if the step exited.
    pub code: Option<i32>,
    /// Signal, if the step was killed by a signal.
    pub signal: Option<i32>,
    /// Why the step could not be started.
    pub error: Option<String>,
    /// The supervisor got SIGTERM and ended the step.
    pub ended: bool,
    pub timed_out: bool,
    /// Set when the kernel killed a process of the step because memory ran out: which memory that was. The step itself
    /// may have succeeded.
    pub out_of_memory: Option<OutOfMemory>,
    /// Why the step's log is missing or not complete.
    pub log_problem: Option<String>,
    /// Why values of secrets may be in the output and in the log.
    pub mask_problem: Option<String>,
    /// End of stderr or, if that is empty, of stdout.
    pub tail: String,
    /// How long the step ran, in milliseconds. Changes of the host's clock make no difference.
    pub took_ms: u64,
    /// Unix milliseconds.
    pub finished_at: i64,
}

/// Which memory ran out.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum OutOfMemory {
    /// The memory that the step may use: its limit as a Kubernetes quantity.
    Limit(String),
    /// The memory of the host.
    Host,
}

impl OutOfMemory {
    fn describe(&self) -> String {
        match self {
            Self::Limit(limit) => format!("out of memory, memoryLimit {limit}"),
            Self::Host => "out of memory on the host".to_owned(),
        }
    }
}

impl StepResult {
    /// The result of a step that could not be run.
    #[must_use]
    pub fn failed(error: String) -> Self {
        Self {
            error: Some(error),
            ..Self::default()
        }
    }

    /// A message that says what went wrong, with the last lines of the output. `limit` is what the step took longer than,
    /// if it took too long.
    #[must_use]
    pub fn describe(&self, limit: Option<&str>) -> String {
        let mut problem = self.problem(limit);
        if let Some(log) = &self.log_problem {
            problem = format!("{problem} (its log is missing or not complete: {log})");
        }
        if let Some(masks) = &self.mask_problem {
            problem = format!("{problem} ({masks})");
        }
        let lines: Vec<&str> = self.tail.lines().collect();
        let tail = lines[lines.len().saturating_sub(5)..].join("\n");
        if tail.is_empty() {
            problem
        } else {
            format!("{problem}: {tail}")
        }
    }

    fn problem(&self, limit: Option<&str>) -> String {
        let problem = match (&self.error, self.code, self.signal) {
            (Some(error), _, _) => format!("could not be run: {error}"),
            _ if self.timed_out => match limit {
                Some(limit) => format!("took longer than {limit}, and was ended"),
                None => "took too long and was ended".to_owned(),
            },
            _ if self.ended => "was ended: the lease was stopped".to_owned(),
            (None, Some(code), _) => format!("exited with {code}"),
            (None, None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None, None) => "ended in an unknown way".to_owned(),
        };
        let Some(memory) = self.out_of_memory.as_ref().map(OutOfMemory::describe) else {
            return problem;
        };
        let was_killed = self.signal == Some(SIGKILL) || self.code == Some(SHELL_SAW_KILL);
        if was_killed && !self.timed_out && !self.ended {
            format!("was killed: {memory}")
        } else {
            format!("{problem}; one of its processes was killed: {memory}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_in_words() {
        let limit = || Some(OutOfMemory::Limit("512Mi".into()));
        let base = StepResult::default;
        for (result, want) in [
            (
                StepResult {
                    code: Some(137),
                    out_of_memory: limit(),
                    ..base()
                },
                "was killed: out of memory, memoryLimit 512Mi",
            ),
            (
                StepResult {
                    signal: Some(9),
                    out_of_memory: Some(OutOfMemory::Host),
                    tail: "last words".into(),
                    ..base()
                },
                "was killed: out of memory on the host: last words",
            ),
            (
                StepResult {
                    code: Some(2),
                    out_of_memory: limit(),
                    ..base()
                },
                "exited with 2; one of its processes was killed: out of memory, memoryLimit 512Mi",
            ),
            (
                StepResult {
                    signal: Some(9),
                    timed_out: true,
                    out_of_memory: limit(),
                    ..base()
                },
                "took too long and was ended; one of its processes was killed: out of memory, memoryLimit 512Mi",
            ),
            (
                StepResult {
                    signal: Some(9),
                    ..base()
                },
                "was killed by signal 9",
            ),
            (
                StepResult {
                    code: Some(1),
                    log_problem: Some("No space left on device".into()),
                    tail: "1\n2\n3\n4\n5\n6".into(),
                    ..base()
                },
                "exited with 1 (its log is missing or not complete: No space left on device): 2\n3\n4\n5\n6",
            ),
            (
                StepResult {
                    code: Some(1),
                    mask_problem: Some("not all secrets are masked".into()),
                    tail: "last words".into(),
                    ..base()
                },
                "exited with 1 (not all secrets are masked): last words",
            ),
        ] {
            assert_eq!(result.describe(None), want);
        }
    }

    #[test]
    fn a_result_of_an_earlier_version_is_read() {
        let result: StepResult = serde_json::from_str(r#"{"code":3,"tail":"x"}"#).unwrap();
        assert_eq!(result.describe(None), "exited with 3: x");
    }
}
