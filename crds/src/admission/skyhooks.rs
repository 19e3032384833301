//! Rules for what a Skyhook says about its roll-out.

use super::schema::{Rule, Schema, UnknownField, text};
use super::selectors::{self, Bounds};
use super::words;
use crate::duration;
use crate::names::MAX_SKYHOOK_NAME;

pub(super) fn add(schema: &mut Schema<'_>) -> Result<(), UnknownField> {
    schema.longest_object_name(MAX_SKYHOOK_NAME);
    let both = "has(self.deploymentPolicy) && self.deploymentPolicy != '' && has(self.interruptionBudget) \
        && (has(self.interruptionBudget.percent) || has(self.interruptionBudget.count))";
    let both = Rule::new(format!("!({both})"), words::POLICY_AND_BUDGET).about("deploymentPolicy");
    schema.at("spec")?.rule(both);
    schema.at("spec.deploymentPolicy")?.max_length(253);
    schema.at("spec.additionalTolerations")?.max_items(128);
    let budget = "!(has(self.percent) && has(self.count))";
    let budget = Rule::new(budget, words::BUDGET);
    schema.at("spec.interruptionBudget")?.rule(budget);
    let bounds = Bounds {
        expressions: 64,
        values: 1024,
    };
    for path in [
        "spec.nodeSelectors",
        "spec.podNonInterruptLabels",
        "spec.drainConfig.podSelector",
    ] {
        selectors::add(schema, path, &bounds)?;
    }
    for path in ["spec.drainConfig.timeout", "spec.drainConfig.gracePeriod"] {
        is_duration(schema, path)?;
    }
    Ok(())
}

/// Adds the rule that the field at `path` has a duration that is not negative.
pub(super) fn is_duration(schema: &mut Schema<'_>, path: &str) -> Result<(), UnknownField> {
    let matches = format!("self.matches({})", text(duration::PATTERN));
    let duration = schema.at(path)?.max_length(duration::LONGEST);
    duration.rule(Rule::new(matches, words::DURATION));
    Ok(())
}
