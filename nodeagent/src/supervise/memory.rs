//! Finds out whether the kernel's OOM killer killed a process of the step.
#![expect(clippy::disallowed_methods, reason = "the supervisor is all shell")]

use std::fs;
use std::path::Path;

use super::OutOfMemory;
use super::cgroup;

/// The kernel's counters of one scope.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counters {
    /// Number of processes of the scope that the OOM killer killed.
    kills: u64,
    /// How often the scope's own memory limit was reached; not known with cgroup version 1.
    at_limit: Option<u64>,
}

/// Counts the OOM kills in the supervisor's own scope, starting when this value is created.
#[derive(Debug)]
pub(super) struct Kills {
    before: Counters,
}

impl Kills {
    pub(super) fn now() -> Self {
        Self {
            before: read().unwrap_or_default(),
        }
    }

    /// Which memory has run out since then. `None` when no process was killed, or the kernel has no such counter.
    pub(super) fn since(&self, limit: Option<&str>) -> Option<OutOfMemory> {
        judge(self.before, read()?, limit)
    }
}

fn judge(before: Counters, after: Counters, limit: Option<&str>) -> Option<OutOfMemory> {
    if after.kills <= before.kills {
        return None;
    }
    let below_limit = after.at_limit.is_some() && after.at_limit == before.at_limit;
    match limit {
        Some(limit) if !below_limit => Some(OutOfMemory::Limit(limit.to_owned())),
        Some(_) | None => Some(OutOfMemory::Host),
    }
}

fn read() -> Option<Counters> {
    cgroup::memory_directories().iter().find_map(|d| read_in(d))
}

fn read_in(directory: &Path) -> Option<Counters> {
    let text = |name: &str| fs::read_to_string(directory.join(name)).ok();
    text("memory.events")
        .and_then(|events| parse(&events))
        .or_else(|| text("memory.oom_control").and_then(|control| parse(&control)))
}

/// Reads `memory.events` of cgroup version 2 or `memory.oom_control` of version 1: both use the same name for the
/// counter.
fn parse(text: &str) -> Option<Counters> {
    let count = |name: &str| {
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(found, _)| *found == name)
            .and_then(|(_, count)| count.trim().parse().ok())
    };
    Some(Counters {
        kills: count("oom_kill")?,
        at_limit: count("oom"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_both_versions() {
        let v2 = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n";
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n";
        let counters = |kills, at_limit| Some(Counters { kills, at_limit });
        assert_eq!(parse(v2), counters(2, Some(3)));
        assert_eq!(parse(v1), counters(1, None));
        assert_eq!(parse("oom_kill_disable 0\nunder_oom 0\n"), None);
    }

    #[test]
    fn the_memory_that_ran_out_is_named() {
        let counters = |kills, at_limit| Counters { kills, at_limit };
        let limit = Some("512Mi");
        let of_limit = Some(OutOfMemory::Limit("512Mi".into()));
        for (before, after, limit, want) in [
            (counters(1, None), counters(1, None), limit, None),
            (
                counters(0, None),
                counters(1, None),
                limit,
                of_limit.clone(),
            ),
            (counters(0, Some(0)), counters(1, Some(1)), limit, of_limit),
            // The memory of the host, or of a slice above the scope, ran out before the scope's own limit was reached.
            (
                counters(0, Some(2)),
                counters(1, Some(2)),
                limit,
                Some(OutOfMemory::Host),
            ),
            (
                counters(0, None),
                counters(2, None),
                None,
                Some(OutOfMemory::Host),
            ),
        ] {
            assert_eq!(judge(before, after, limit), want);
        }
    }
}
