//! Rules for changes to packages that can be uninstalled: such a package is uninstalled before it is removed from the spec
//! or gets a lower version.
//!
//! They compare the spec with the one before and with `status.installed`, so they stand at the root. A write that changes
//! nothing about such a package passes them, as does every write of the status. A package that `status.installed` does not
//! list (there is room for so many) counts as uninstalled.

use super::packages::VERSION;
use super::schema::{Rule, Schema, UnknownField, format, text};

/// The package before, and now. `p` is its name.
const OLD: &str = "oldSelf.spec.packages[p]";
const NEW: &str = "self.spec.packages[p]";

pub(super) fn add(schema: &mut Schema<'_>) -> Result<(), UnknownField> {
    schema
        .at("status.installed")?
        .max_properties(MOST_INSTALLED);
    let enabled = format!("(has({OLD}.uninstall) && {OLD}.uninstall.enabled)");
    let on_nodes = "(has(self.status) && has(self.status.installed) && p in self.status.installed && self.status.installed[p] > 0)";
    let is_there = "(has(self.spec.packages) && p in self.spec.packages)";
    let removed = format!("{enabled} && {on_nodes} && !{is_there}");
    let changed =
        format!("{enabled} && {on_nodes} && {is_there} && {NEW}.version != {OLD}.version");
    let lowered = format!(
        "{changed} && {OLD}.version.matches({}) && {} < {}",
        text(VERSION),
        precedence(&format!("{NEW}.version")),
        precedence(&format!("{OLD}.version")),
    );
    let no = |what: &str| {
        format!("!has(oldSelf.spec.packages) || oldSelf.spec.packages.all(p, !({what}))")
    };
    let says = |condition: &str, words: &str| {
        format(
            "%s",
            &format!("oldSelf.spec.packages.map(p, {condition}, {words})"),
        )
    };
    let removal = Rule::new(
        no(&removed),
        "a package with uninstall.enabled is still on nodes: set uninstall.apply=true and wait for completion before \
         removing it",
    );
    let removal_words = "'package %s has uninstall.enabled=true and is still on %d nodes; set uninstall.apply=true and wait \
        for completion before removing from spec'.format([p, self.status.installed[p]])";
    let lowering = Rule::new(
        no(&lowered),
        "the version of a package with uninstall.enabled is lowered while it is on nodes: uninstall it first",
    );
    let wait = format!(
        "({OLD}.uninstall.apply ? 'wait for the uninstall to finish' : 'set uninstall.apply=true first, wait, then change \
         the version')"
    );
    let lowering_words = format!(
        "'package %s has uninstall.enabled=true and its version is lowered from %s to %s: %s'.format([p, {OLD}.version, \
         {NEW}.version, {wait}])"
    );
    // The message compares no versions: with the comparison it would cost more than a message may.
    for (rule, words) in [
        (removal, says(&removed, removal_words)),
        (lowering, says(&changed, &lowering_words)),
    ] {
        schema.add(rule.saying(words).about("spec.packages").forbids());
    }
    Ok(())
}

/// Packages in `status.installed`: more than the coordinator has room for.
const MOST_INSTALLED: i64 = 1024;
/// How many parts of a pre-release are compared. Versions that differ only in later parts count as equal.
const PARTS: usize = 4;

/// An expression for a text that has the precedence of `version` in the order of its bytes. API servers before 1.34 do not
/// know versions. Only functions are used whose results have a size that the API server knows beforehand.
fn precedence(version: &str) -> String {
    let core = format!("({version}.find('^v?[0-9.]+') + '.0.0')");
    let major = number(&format!("{core}.find('[0-9]+')"));
    let minor = number(&format!("{core}.find('[0-9]+[.][0-9]+').find('[0-9]+$')"));
    let patch = format!("{core}.find('[0-9]+[.][0-9]+[.][0-9]+').find('[0-9]+$')");
    let patch = number(&patch);
    let suffix = format!("{version}.find('^[^+-]*-[^+]*').find('-.*')");
    let first = part(&format!("{suffix}.find('^-[^.]*').replace('-', '', 1)"));
    let mut parts = vec![first];
    for at in 1..PARTS {
        let text = format!("{suffix}.find('^-([^.]*[.]){{{at}}}[^.]*').find('[^.]*$')");
        parts.push(format!("({text} == '' ? '' : ' ' + {})", part(&text)));
    }
    // A version without a suffix comes after all those with one.
    let suffix = format!("({suffix} == '' ? '~' : {})", parts.join(" + "));
    [major, minor, patch, suffix].join(" + ' ' + ")
}

/// A number as a text: numbers with more digits come later.
fn number(digits: &str) -> String {
    format!("'abcdefghijklmnopqrst'.substring(size({digits}), size({digits}) + 1) + {digits}")
}

/// One part of a pre-release: words come after numbers.
fn part(text: &str) -> String {
    format!(
        "({text}.matches('^[0-9]+$') ? {} : 'z' + {text})",
        number(text)
    )
}
