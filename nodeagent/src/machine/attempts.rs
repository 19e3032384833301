//! How often and how long a stage is tried. An attempt is one run of the steps of a stage, its checks included, or one
//! interrupt other than a reboot. A package that has used up its attempts gives up: it waits until somebody runs it again
//! or changes it.
//!
//! Only the time in which steps run counts, as their supervisors measure it: the host's clock may be changed, and a pause
//! may last for days.

use std::time::Duration;

use skyhook_crds::State;

use super::progress::{Doing, Half, Progress};
use super::retry;

/// What a failure is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// A step of the package, or its interrupt, has failed: an attempt is used up.
    OfPackage,
    /// No step of the package ran to its end: its files could not be put on the host, or the host went down.
    OfSurroundings,
}

/// What limits the time of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepLimit {
    /// The limit for every single step.
    Step(Duration),
    /// What is left of the time of the stage.
    Stage { left: Duration, whole: Duration },
}

impl StepLimit {
    /// How long the step may run.
    #[must_use]
    pub const fn duration(self) -> Duration {
        match self {
            Self::Step(limit) => limit,
            Self::Stage { left, .. } => left,
        }
    }

    /// The limit in messages: "took longer than …".
    #[must_use]
    pub fn describe(self) -> String {
        match self {
            Self::Step(limit) => format!("{limit:?}, the limit for a step"),
            Self::Stage { left, whole } if left == whole => {
                format!("{whole:?}, the stageTimeout of the package")
            }
            Self::Stage { left, whole } => format!(
                "{left:?}, which earlier steps had left of the stageTimeout of the package ({whole:?})"
            ),
        }
    }
}

/// What limits the time of the package's step that runs now or is started next. `of_step` is the limit for every step.
#[must_use]
pub fn step_limit(p: &Progress, key: &str, of_step: Option<Duration>) -> Option<StepLimit> {
    let entry = p.entries.get(key)?;
    let whole = p.limits_of(entry).stage_timeout_ms();
    let of_stage = whole.map(|whole| StepLimit::Stage {
        left: Duration::from_millis(whole.saturating_sub(entry.spent_ms)),
        whole: Duration::from_millis(whole),
    });
    of_step
        .map(StepLimit::Step)
        .into_iter()
        .chain(of_stage)
        .min_by_key(|limit| limit.duration())
}

/// True when the time of the stage is used up: no further step of the attempt starts.
pub(super) fn is_over_time(p: &Progress, key: &str) -> bool {
    let limit = step_limit(p, key, None);
    limit.is_some_and(|limit| limit.duration().is_zero())
}

/// Ends an attempt of a stage that has failed, and schedules the next one. Gives the package up if this was the last one.
pub(super) fn fail(
    p: &mut Progress,
    key: &str,
    half: Half,
    reason: &str,
    failure: Failure,
    now: i64,
) {
    let what = format!("{} {key}", p.lease);
    let stopping = p.stop.is_some();
    let Some(entry) = p.entries.get_mut(key) else {
        return;
    };
    if stopping {
        // The agent ended the step because of the stop: this is not a failure of the package.
        entry.doing = Doing::Idle;
        entry.say(reason);
        return;
    }
    entry.failures += 1;
    entry.doing = Doing::Retry {
        at: now + retry::delay_ms(entry.failures, &what),
        half,
    };
    entry.say(reason);
    entry.set(entry.stage, State::Erroring, now);
    if failure == Failure::OfPackage {
        use_up(p, key, half, reason, now);
    }
}

/// Counts an attempt that has failed. Returns true if it was the last one: then the package gives up.
pub(super) fn use_up(p: &mut Progress, key: &str, half: Half, reason: &str, now: i64) -> bool {
    let skyhook = p.skyhook.name.clone();
    let Some(entry) = p.entries.get(key) else {
        return false;
    };
    let most = p.limits_of(entry).max_attempts();
    let Some(entry) = p.entries.get_mut(key) else {
        return false;
    };
    entry.attempts = entry.attempts.saturating_add(1);
    if most.is_none_or(|most| entry.attempts < most) {
        return false;
    }
    entry.doing = Doing::GaveUp { half, at: now };
    let times = match entry.attempts {
        1 => "1 attempt".to_owned(),
        attempts => format!("{attempts} attempts"),
    };
    // The status of the Skyhook shows the beginning of the message.
    entry.say(&format!(
        "gave up after {times}. To go on, run it again (kubectl skyhook package rerun {} --skyhook {skyhook} --node NODE), \
         reset the node, or change the package. The last attempt said: {reason}",
        entry.name
    ));
    true
}

/// Starts the count of attempts anew where a lease brings another revision: what failed may have been changed. A lease at
/// the same revision goes on with the count.
pub(super) fn begin(p: &mut Progress, now: i64) {
    for entry in p.entries.values_mut() {
        if entry.tried_at.as_ref() == Some(&p.revision) {
            continue;
        }
        entry.tried_at = Some(p.revision.clone());
        entry.attempts = 0;
        if let Doing::GaveUp { half, .. } = entry.doing {
            entry.doing = if entry.awaits_interrupt() {
                Doing::Idle
            } else {
                Doing::Retry { at: now, half }
            };
        }
    }
}
