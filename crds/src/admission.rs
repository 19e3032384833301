//! What the API server itself refuses: bounds and rules (`x-kubernetes-validations`) in the CRDs.
//!
//! `check` of [`SkyhookSpec`](crate::SkyhookSpec) and of [`DeploymentPolicySpec`](crate::DeploymentPolicySpec) finds the same
//! mistakes, in the same words, in objects that were stored without these rules.
//!
//! A rule stands at the field that it is about, as low as possible: an object that was stored before the rule can then be
//! edited elsewhere, because a rule counts only where the value has changed. While a rule of the map of packages is broken (for
//! names and dependencies), no package can be changed; while deploymentPolicy and interruptionBudget are both set, nothing of
//! the spec can. Metadata and the status can always be written. A rule at the root would count at each write, so it has to
//! compare with the old object.
//!
//! The API server estimates beforehand what a rule costs at most, so everything that a rule looks at has a bound. The bounds
//! are far above what is in use. Before they or the rules are changed, ask the oldest Kubernetes that the chart supports
//! (`integration/oldest`): newer ones take rules that it refuses.

mod packages;
mod policies;
mod schema;
mod selectors;
mod skyhooks;
mod uninstall;
pub(crate) mod words;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, ValidationRule,
};
use kube::CustomResourceExt as _;

use crate::{DeploymentPolicy, InterruptionLease, RolloutState, Skyhook};
pub use schema::UnknownField;
use schema::{Schema, root};

/// All our CRDs, as the chart installs them.
pub fn crds() -> Result<Vec<CustomResourceDefinition>, UnknownField> {
    Ok(vec![
        skyhook()?,
        deployment_policy()?,
        InterruptionLease::crd(),
        RolloutState::crd(),
    ])
}

/// The CRD of Skyhooks.
pub fn skyhook() -> Result<CustomResourceDefinition, UnknownField> {
    with_rules(Skyhook::crd(), |schema| {
        skyhooks::add(schema)?;
        packages::add(schema)?;
        uninstall::add(schema)
    })
}

/// The CRD of `DeploymentPolicies`.
pub fn deployment_policy() -> Result<CustomResourceDefinition, UnknownField> {
    with_rules(DeploymentPolicy::crd(), policies::add)
}

/// More rules for `spec.packages{}.resources`, for API servers from 1.34 on. Older ones refuse them as too expensive, whatever
/// bounds there are.
#[must_use]
pub fn rules_from_1_34() -> Vec<ValidationRule> {
    packages::limits()
}

fn with_rules(
    mut crd: CustomResourceDefinition,
    add: impl Fn(&mut Schema<'_>) -> Result<(), UnknownField>,
) -> Result<CustomResourceDefinition, UnknownField> {
    for version in &mut crd.spec.versions {
        add(&mut root(version)?)?;
    }
    Ok(crd)
}

#[cfg(test)]
mod tests;
