//! Recovers the configuration of installed packages when the journal is lost, from the revision in the Node's stamp.

use skyhook_crds::InterruptionLease;
use skyhook_crds::revision::RevisionData;

use crate::lease::{ApiError, LeaseApi};
use crate::machine::{Cycle, Entries, Wanted};

/// Completes entries that are in the Node's record and not in the journal. Returns the revision that was used: the
/// caller must keep it in the journal.
pub(super) async fn recover(
    api: &LeaseApi,
    lease: &InterruptionLease,
    entries: &mut Entries,
) -> Result<Option<(String, RevisionData)>, ApiError> {
    let stamp = lease.spec.stamp.as_ref().filter(|stamp| stamp.has_result());
    let Some(name) = stamp.map(|stamp| stamp.revision.clone()) else {
        return Ok(None);
    };
    if name.is_empty() || entries.values().all(|e| e.cycle.is_some()) {
        return Ok(None);
    }
    let data = match api.revision(&name).await {
        Ok(data) => data,
        Err(error @ (ApiError::NotFound { .. } | ApiError::Malformed { .. })) => {
            tracing::warn!(%error, "the configuration of the installed packages is not known");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    complete(entries, lease, &name, &data);
    Ok(Some((name, data)))
}

fn complete(entries: &mut Entries, lease: &InterruptionLease, name: &str, data: &RevisionData) {
    for entry in entries.values_mut().filter(|e| e.cycle.is_none()) {
        let package = data.packages.get(&entry.name);
        let Some(package) = package.filter(|p| p.version == entry.version) else {
            continue;
        };
        let wanted = Wanted::of(package);
        if entry.is_done() {
            entry.configured = Some(wanted.config.clone());
            entry.had_interrupt = wanted.interrupt.is_some();
        }
        entry.cycle = Some(Cycle {
            revision: name.to_owned(),
            skyhook: lease.spec.skyhook.clone(),
            identity: wanted.identity,
            content: wanted.config,
            start: None,
            interrupt: None,
        });
    }
}

#[cfg(test)]
mod tests {
    use skyhook_crds::package::PackageStatus;
    use skyhook_crds::{Package, Stage, State};

    use super::*;
    use crate::machine::Entry;

    #[test]
    fn what_is_complete_is_known_with_its_configuration() {
        let package = |version: &str| Package {
            name: "aa".into(),
            version: version.into(),
            config_map: [("k".to_owned(), "1".to_owned())].into(),
            ..Package::default()
        };
        let data = RevisionData {
            packages: [("aa".to_owned(), package("1.0.0"))].into(),
            serial: false,
            ..RevisionData::default()
        };
        for (version, stage, state, configured, cycle) in [
            ("1.0.0", Stage::Config, State::Complete, true, true),
            ("1.0.0", Stage::Config, State::InProgress, false, true),
            ("0.9.0", Stage::Config, State::Complete, false, false),
        ] {
            let entry = Entry::adopted(&PackageStatus {
                name: "aa".into(),
                version: version.into(),
                image: "r/aa".into(),
                container_sha: None,
                stage,
                state,
                restarts: 0,
            });
            let key = entry.key();
            let mut entries: Entries = [(key.clone(), entry)].into();
            let lease = InterruptionLease::new("n", Default::default());
            complete(&mut entries, &lease, "s-1", &data);
            let got = &entries[&key];
            assert_eq!(
                (got.configured.is_some(), got.cycle.is_some()),
                (configured, cycle),
                "{version} {stage} {state}"
            );
        }
    }
}
