//! Rules for `DeploymentPolicies`. Ranges of numbers and lengths are in the types.

use super::schema::{Rule, Schema, UnknownField, format, text};
use super::selectors::{self, Bounds};
use super::words;
use crate::policy::DEFAULT_COMPARTMENT;

pub(super) fn add(schema: &mut Schema<'_>) -> Result<(), UnknownField> {
    let mut spec = schema.at("spec")?;
    let twins = "self.filter(a, !self.exists_one(b, b.name == a.name)).map(a, a.name)";
    let names = Rule::new(
        "self.all(a, self.exists_one(b, b.name == a.name))",
        "several compartments have the same name",
    );
    let names = names.saying(format(words::SAME_NAMES, twins));
    let twins = "self.map(a, !self.exists_one(b, b.selector == a.selector), a.name)";
    let selectors = Rule::new(
        "self.all(a, self.exists_one(b, b.selector == a.selector))",
        "several compartments have the same selector",
    );
    let selectors = selectors.saying(format(words::SAME_SELECTORS, twins));
    spec.at("compartments")?.rule(names).rule(selectors);
    let own = format!("self != {}", text(DEFAULT_COMPARTMENT));
    let own = Rule::new(own, words::DEFAULT_NAME);
    spec.at("compartments[].name")?.rule(own);
    let bounds = Bounds {
        expressions: 32,
        values: 64,
    };
    selectors::add(&mut spec, "compartments[].selector", &bounds)?;
    let both = text(words::BUDGET_BOTH);
    let neither = text(words::BUDGET_NEITHER);
    for place in ["default", "compartments[]"] {
        let budget = Rule::new(
            "has(self.percent) != has(self.count)",
            "set exactly one of percent and count",
        );
        let budget = budget.saying(format!("has(self.percent) ? {both} : {neither}"));
        spec.at(&format!("{place}.budget"))?.rule(budget);
        let one =
            "[has(self.fixed), has(self.linear), has(self.exponential)].filter(x, x).size() == 1";
        let one = Rule::new(one, words::STRATEGY);
        spec.at(&format!("{place}.strategy"))?.rule(one);
    }
    Ok(())
}
