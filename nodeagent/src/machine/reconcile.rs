//! Decides which packages are installed when the Node's record and the host's journal differ.
//!
//! The record is in the Node's annotations and says what is installed. The journal says what runs. If a user edited the
//! annotations, the annotations are right. If the Node was deleted and registered again, it has no result of this
//! agent, and the journal is right. Without a journal, the annotations are right, unless they are from another host:
//! then nothing is installed.

use std::collections::BTreeMap;

use skyhook_crds::installed::{PackageStates, Stamp};
use skyhook_crds::lease::protocol;
use skyhook_crds::{InterruptionLease, Stage, State};

use super::Cycle;
use super::progress::{Entries, Entry, states};

/// Where the list of installed packages comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Record and journal agree.
    Both,
    /// The journal: the Node has no result of this agent.
    Journal,
    /// The Node: a user edited its annotations, or the host has no journal.
    Node,
    /// Neither: the Node's result is from another host, from this host before its disk was replaced, or from before a reboot
    /// that has undone it.
    Nothing,
}

/// The packages that are installed on this host when it accepts a lease.
#[must_use]
pub fn of_lease(
    journal: Option<&Entries>,
    lease: &InterruptionLease,
    machine_id: &str,
    host_id: &str,
) -> (Entries, Source) {
    if protocol::is_of_another_host(lease, machine_id, host_id) {
        return (Entries::new(), Source::Nothing);
    }
    if has_unknown_stage(lease) {
        return (journal.cloned().unwrap_or_default(), Source::Journal);
    }
    let (mut entries, source) =
        reconcile(journal, &lease.spec.installed, lease.spec.stamp.as_ref());
    if source == Source::Node {
        wait_for_interrupts(&mut entries, lease);
        leave_behind(&mut entries, lease);
    }
    (entries, source)
}

/// True when the host was rebooted since the Node's result, and Skyhook did not ask for that: the reboot came after the
/// coordinator had created the lease, or before it knew of the reboot. `epoch` is the last boot that Skyhook did not ask
/// for.
#[must_use]
pub fn is_undone(lease: &InterruptionLease, epoch: &str) -> bool {
    let stamp = lease.spec.stamp.as_ref();
    let result = stamp.filter(|stamp| stamp.has_result() && !stamp.epoch.is_empty());
    result.is_some_and(|stamp| stamp.epoch != epoch)
}

/// Sets packages that are only in the Node's record to the interrupt that NVIDIA Skyhook left undone: in the record they
/// look complete.
fn wait_for_interrupts(entries: &mut Entries, lease: &InterruptionLease) {
    let left = &lease.spec.interrupts_left;
    for entry in entries.values_mut().filter(|e| e.cycle.is_none()) {
        let is_configured = (entry.stage, entry.state) == (Stage::Config, State::Complete);
        let Some(interrupt) = left.get(&entry.name).filter(|_| is_configured) else {
            continue;
        };
        (entry.stage, entry.state) = (Stage::Interrupt, State::Skipped);
        entry.cycle = Some(Cycle {
            revision: lease.spec.revision.clone(),
            skyhook: lease.spec.skyhook.clone(),
            identity: String::new(),
            content: BTreeMap::new(),
            start: None,
            interrupt: Some(interrupt.clone()),
        });
    }
}

/// Marks versions that are only in the Node's record and were left behind on the host.
fn leave_behind(entries: &mut Entries, lease: &InterruptionLease) {
    let left = lease.spec.stamp.iter().flat_map(|stamp| &stamp.left_behind);
    for key in left {
        if let Some(entry) = entries.get_mut(key).filter(|e| e.cycle.is_none()) {
            entry.left_behind = true;
        }
    }
}

/// True when the Node's record has a package in a stage that this version does not know: a newer one wrote it, and nothing
/// may be done with what it lists.
#[must_use]
pub fn has_unknown_stage(lease: &InterruptionLease) -> bool {
    let mut installed = lease.spec.installed.values();
    installed.any(|status| status.stage == Stage::Unknown)
}

/// The same for a record that is from this host. `journal` is `None` when the journal does not contain the Skyhook.
fn reconcile(
    journal: Option<&Entries>,
    installed: &PackageStates,
    stamp: Option<&Stamp>,
) -> (Entries, Source) {
    let result = stamp.filter(|stamp| stamp.has_result());
    match (journal, result) {
        (Some(journal), _) if states(journal) == *installed => (journal.clone(), Source::Both),
        (Some(journal), None) => (journal.clone(), Source::Journal),
        (journal, _) => (
            merged(journal.unwrap_or(&Entries::new()), installed),
            Source::Node,
        ),
    }
}

/// The Node's record, completed from the journal for packages that are in both.
fn merged(journal: &Entries, installed: &PackageStates) -> Entries {
    installed
        .iter()
        .map(|(key, status)| {
            let entry = match journal.get(key) {
                None => Entry::adopted(status),
                Some(known) if known.status() == *status => known.clone(),
                // The edit ends the cycle: the package continues from the edited stage.
                Some(known) => Entry {
                    configured: known.configured.clone(),
                    had_interrupt: known.had_interrupt,
                    cycle: known.cycle.clone().map(|cycle| Cycle {
                        interrupt: None,
                        identity: String::new(),
                        start: None,
                        ..cycle
                    }),
                    ..Entry::adopted(status)
                },
            };
            (key.clone(), entry)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use skyhook_crds::State;
    use skyhook_crds::lease::{InterruptionLeaseSpec, InterruptionLeaseStatus, Phase};
    use skyhook_crds::package::{Interrupt, InterruptType, PackageStatus};

    use super::*;

    fn status(version: &str, stage: Stage, state: State) -> PackageStatus {
        PackageStatus {
            name: "a".into(),
            version: version.into(),
            image: "r/a".into(),
            container_sha: None,
            stage,
            state,
            restarts: 0,
        }
    }

    fn record(status: &PackageStatus) -> PackageStates {
        [(format!("a|{}", status.version), status.clone())].into()
    }

    fn journal(status: &PackageStatus) -> Entries {
        let mut entry = Entry::adopted(status);
        entry.configured = Some([("k".to_owned(), "digest".to_owned())].into());
        [(entry.key(), entry)].into()
    }

    fn stamp(lease: &str, machine: &str) -> Stamp {
        Stamp {
            lease: lease.into(),
            machine_id: machine.into(),
            ..Stamp::default()
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn who_wins() {
        let old = status("1.0.0", Stage::Config, State::Complete);
        let new = status("2.0.0", Stage::Config, State::Complete);
        let here = Some(stamp("uid", "m"));
        let granted_only = Some(stamp("", ""));
        let none = PackageStates::new();
        for (name, journal, installed, stamp, reporter, want, states_want) in [
            (
                "agree",
                Some(&old),
                record(&old),
                &here,
                "",
                Source::Both,
                record(&old),
            ),
            (
                "edited",
                Some(&old),
                record(&new),
                &here,
                "",
                Source::Node,
                record(&new),
            ),
            (
                "deleted by hand",
                Some(&old),
                none.clone(),
                &here,
                "",
                Source::Node,
                none.clone(),
            ),
            (
                "registered anew",
                Some(&old),
                none.clone(),
                &None,
                "",
                Source::Journal,
                record(&old),
            ),
            (
                "no result yet",
                Some(&old),
                record(&new),
                &granted_only,
                "",
                Source::Journal,
                record(&old),
            ),
            (
                "adopted",
                None,
                record(&new),
                &None,
                "",
                Source::Node,
                record(&new),
            ),
            (
                "journal lost",
                None,
                record(&new),
                &here,
                "",
                Source::Node,
                record(&new),
            ),
            (
                "another machine",
                Some(&old),
                record(&new),
                &Some(stamp_of_other()),
                "",
                Source::Nothing,
                none.clone(),
            ),
            (
                "the disk was written anew",
                None,
                record(&new),
                &Some(on_host("before")),
                "",
                Source::Nothing,
                none.clone(),
            ),
            (
                "the journal was lost, the host ID was not",
                None,
                record(&new),
                &Some(on_host("h")),
                "",
                Source::Node,
                record(&new),
            ),
            (
                "another machine accepted the lease",
                None,
                record(&new),
                &None,
                "other",
                Source::Nothing,
                none.clone(),
            ),
            (
                "accepted here before the journal was lost",
                None,
                record(&new),
                &None,
                "m",
                Source::Node,
                record(&new),
            ),
        ] {
            let journal = journal.map(self::journal);
            let lease = lease(&installed, stamp.as_ref(), reporter);
            let (entries, source) = of_lease(journal.as_ref(), &lease, "m", "h");
            assert_eq!(source, want, "{name}");
            assert_eq!(states(&entries), states_want, "{name}");
        }
    }

    #[test]
    fn a_record_with_a_stage_that_is_not_known_is_left_to_a_newer_agent() {
        let done = status("1.0.0", Stage::Config, State::Complete);
        let newer = status("1.0.0", Stage::Unknown, State::InProgress);
        let lease = lease(&record(&newer), Some(&stamp("uid", "m")), "");
        assert!(has_unknown_stage(&lease));
        let known = journal(&done);
        let (entries, _) = of_lease(Some(&known), &lease, "m", "h");
        assert_eq!(entries, known);
        let (entries, _) = of_lease(None, &lease, "m", "h");
        assert_eq!(entries, Entries::new());
    }

    fn lease(
        installed: &PackageStates,
        stamp: Option<&Stamp>,
        reporter: &str,
    ) -> InterruptionLease {
        let spec = InterruptionLeaseSpec {
            installed: installed.clone(),
            stamp: stamp.cloned(),
            ..InterruptionLeaseSpec::default()
        };
        let mut lease = InterruptionLease::new("worker-1", spec);
        lease.status = (!reporter.is_empty()).then(|| InterruptionLeaseStatus {
            phase: Some(Phase::Accepted),
            machine_id: reporter.to_owned(),
            ..InterruptionLeaseStatus::default()
        });
        lease
    }

    fn on_host(host: &str) -> Stamp {
        Stamp {
            host_id: host.into(),
            ..stamp("uid", "m")
        }
    }

    fn stamp_of_other() -> Stamp {
        stamp("uid", "other")
    }

    #[test]
    fn a_package_waits_for_the_interrupt_that_was_left_undone_unless_the_journal_knows_it() {
        let done = status("1.0.0", Stage::Config, State::Complete);
        let erroring = status("1.0.0", Stage::Config, State::Erroring);
        let interrupt = Interrupt {
            kind: InterruptType::Reboot,
            services: Vec::new(),
        };
        for (name, journal, recorded, left, want) in [
            ("left", None, &done, true, Stage::Interrupt),
            ("not left", None, &done, false, Stage::Config),
            ("not configured", None, &erroring, true, Stage::Config),
            (
                "in the journal",
                Some(journal(&done)),
                &done,
                true,
                Stage::Config,
            ),
        ] {
            let mut lease = lease(&record(recorded), None, "");
            if left {
                let left = [("a".to_owned(), interrupt.clone())];
                lease.spec.interrupts_left = left.into();
            }
            let (entries, _) = of_lease(journal.as_ref(), &lease, "m", "h");
            let entry = &entries["a|1.0.0"];
            assert_eq!(entry.stage, want, "{name}");
            let waits = want == Stage::Interrupt;
            assert_eq!(entry.interrupt(), waits.then_some(&interrupt), "{name}");
        }
    }

    #[test]
    fn a_reboot_undoes_the_result_that_a_lease_begins_with() {
        let of = |lease: &str, epoch: &str| Stamp {
            epoch: epoch.into(),
            ..stamp(lease, "m")
        };
        for (name, stamp, want) in [
            ("no record", None, false),
            ("no result", Some(of("", "first")), false),
            (
                "a result of an agent that tells no boot",
                Some(of("l", "")),
                false,
            ),
            ("a result of this boot", Some(of("l", "second")), false),
            ("a result of an earlier boot", Some(of("l", "first")), true),
        ] {
            let mut lease = InterruptionLease::new("n", InterruptionLeaseSpec::default());
            lease.spec.stamp = stamp;
            assert_eq!(is_undone(&lease, "second"), want, "{name}");
        }
    }

    #[test]
    fn a_rerun_by_hand_keeps_what_the_host_was_configured_with() {
        let done = status("1.0.0", Stage::Config, State::Complete);
        let rerun = status("1.0.0", Stage::Apply, State::InProgress);
        let (entries, _) = of_lease(
            Some(&journal(&done)),
            &lease(&record(&rerun), Some(&stamp("uid", "m")), ""),
            "m",
            "h",
        );
        let entry = &entries["a|1.0.0"];
        assert_eq!(
            (entry.stage, entry.state),
            (Stage::Apply, State::InProgress)
        );
        assert!(entry.configured.is_some());
    }
}
