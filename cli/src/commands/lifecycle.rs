//! `pause`, `resume`, `disable` and `enable`: two annotations of a Skyhook.

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};
use kube::core::PartialObjectMeta;
use serde_json::{Value, json};
use skyhook_crds::{Skyhook, names};

use super::version;
use crate::args::Confirmed;
use crate::edit::{self, Part};
use crate::session::{Session, list, said};

/// The first version that obeys the annotations.
const FIRST_VERSION: &str = "v0.8.0";

/// What is done to a Skyhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Pause,
    Resume,
    Disable,
    Enable,
}

impl Action {
    const fn verb(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Disable => "disable",
            Self::Enable => "enable",
        }
    }

    const fn done(self) -> &'static str {
        match self {
            Self::Pause => "paused",
            Self::Resume => "resumed",
            Self::Disable => "disabled",
            Self::Enable => "enabled",
        }
    }

    /// The annotation, and its value if it is to be there.
    const fn annotation(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Pause => (names::PAUSE, Some("true")),
            Self::Resume => (names::PAUSE, None),
            Self::Disable => (names::DISABLE, Some("true")),
            Self::Enable => (names::DISABLE, None),
        }
    }

    /// The patch of a Skyhook.
    fn patch(self) -> Value {
        let (key, value) = self.annotation();
        json!({ "metadata": { "annotations": { key: value } } })
    }

    /// Why an operator of this version would not obey, if it would not.
    fn refusal(self, name: &str, operator: &str) -> Option<String> {
        if !version::is_older(operator, FIRST_VERSION) {
            return None;
        }
        let (key, value) = self.annotation();
        let verb = self.verb();
        Some(if key == names::PAUSE {
            let value = value.is_some();
            format!(
                "operator version {operator} uses spec.pause instead of annotations; use 'kubectl edit skyhook {name}' and set \
                 spec.pause: {value}"
            )
        } else {
            format!(
                "operator version {operator} does not support {verb}; this feature was added in {FIRST_VERSION}"
            )
        })
    }
}

/// Runs one of the four.
pub(crate) async fn run(session: &mut Session<'_>, action: Action, args: &Confirmed) -> Result<()> {
    let (name, verb) = (&args.name, action.verb());
    if session.global.dry_run {
        return session.print(&format!("[dry-run] Would {verb} Skyhook {name:?}\n"));
    }
    let question = format!("This will {verb} Skyhook {name:?}. Continue? [y/N]: ");
    if !args.confirm.confirm && !session.ask_y(&question)? {
        return session.print("Aborted.\n");
    }
    let client = session.client().await?;
    // Its metadata is enough, so that a Skyhook that cannot be decoded can be paused.
    let api: Api<PartialObjectMeta<Skyhook>> = Api::all(client.clone());
    let skyhook = api.get(name).await.map_err(said);
    let skyhook = skyhook.with_context(|| format!("getting skyhook {name:?}"))?;
    let mut operator = skyhook.annotations().get(names::VERSION).cloned();
    if !operator.as_deref().is_some_and(version::is_valid) {
        let deployments: Api<Deployment> = Api::namespaced(client, &session.global.namespace);
        let found = list(&deployments, &ListParams::default()).await;
        operator = found.ok().and_then(|all| version::of_operator(&all));
        if !operator.as_deref().is_some_and(version::is_valid) {
            session.say(&format!(
                "Warning: unable to determine operator version; cannot verify compatibility (requires {FIRST_VERSION}+)"
            ))?;
        }
    }
    let refusal = operator.and_then(|operator| action.refusal(name, &operator));
    if let Some(refusal) = refusal {
        bail!(refusal);
    }
    let done = edit::change(&api, skyhook, Part::Object, |_| Ok(Some(action.patch()))).await;
    done.with_context(|| format!("patching skyhook {name:?}"))?;
    session.print(&format!("Skyhook {name:?} {}\n", action.done()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_touches_its_own_annotation() {
        for (action, key, value) in [
            (Action::Pause, "skyhook.nvidia.com/pause", json!("true")),
            (Action::Resume, "skyhook.nvidia.com/pause", json!(null)),
            (Action::Disable, "skyhook.nvidia.com/disable", json!("true")),
            (Action::Enable, "skyhook.nvidia.com/disable", json!(null)),
        ] {
            let want = json!({ "metadata": { "annotations": { key: value } } });
            assert_eq!(action.patch(), want, "{action:?}");
        }
    }

    #[test]
    fn old_operators_are_told_from_new_ones() {
        let pause = "operator version v0.7.6 uses spec.pause instead of annotations; use 'kubectl edit skyhook s' and set \
                     spec.pause: ";
        for (action, operator, want) in [
            (Action::Pause, "v0.7.6", Some(format!("{pause}true"))),
            (Action::Resume, "v0.7.6", Some(format!("{pause}false"))),
            (
                Action::Disable,
                "0.7.0",
                Some("operator version 0.7.0 does not support disable; this feature was added in v0.8.0".into()),
            ),
            (Action::Enable, "v0.8.0", None),
            (Action::Pause, "1.0.0-alpha.1", None),
            (Action::Pause, "dev", None),
        ] {
            assert_eq!(action.refusal("s", operator), want, "{action:?} {operator}");
        }
    }
}
