//! Rules for the packages of a Skyhook.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::ValidationRule;

use super::schema::{Rule, Schema, UnknownField, format, text};
use super::skyhooks::is_duration;
use super::words;

const NAME: &str = "^[a-z][-a-z0-9]{0,41}[a-z]$";
/// Versions as Go's `golang.org/x/mod/semver` reads them.
pub(super) const VERSION: &str = "^v?(0|[1-9][0-9]{0,17})(\\.(0|[1-9][0-9]{0,17})(\\.(0|[1-9][0-9]{0,17})\
    (-(0|[1-9][0-9]{0,17}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)(\\.(0|[1-9][0-9]{0,17}|[0-9]*[A-Za-z-][0-9A-Za-z-]*))*)?\
    (\\+[0-9A-Za-z-]+(\\.[0-9A-Za-z-]+)*)?)?)?$";
const LONGEST_VERSION: i64 = 128;
const IMAGE: &str = "^[^ \\t\\r\\n:@/][^ \\t\\r\\n@]*(@sha256:[0-9a-f]{64})?$";
const DIGEST: &str = "^(sha256:[0-9a-f]{64})?$";
/// A quantity with a digit that is not 0, and without a minus.
const ABOVE_ZERO: &str = r"^\+?(([0-9]*[1-9][0-9]*(\.[0-9]*)?)|([0-9]*\.[0-9]*[1-9][0-9]*))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(0?[0-9]|1[0-8])))?$";
const CONFIG_KEY: &str = "^[-._a-zA-Z0-9]{1,253}$";
/// A glob that is well-formed and has only characters that a key of configMap can have.
const GLOB: &str =
    r"^([-._a-zA-Z0-9*?]|[\\][-._a-zA-Z0-9]|\[\^?([._a-zA-Z0-9](-[._a-zA-Z0-9])?)+\])*$";
/// All values of a configMap together. An object of the API has little more room.
const LARGEST_CONFIG: usize = 768 << 10;

pub(super) fn add(schema: &mut Schema<'_>) -> Result<(), UnknownField> {
    let mut packages = schema.at("spec.packages")?;
    for setting in ["{}.gracefulShutdown", "{}.stageTimeout"] {
        is_duration(&mut packages, setting)?;
    }
    let mut package = packages.at("{}")?;
    image(&mut package)?;
    configuration(&mut package)?;
    steps(&mut package)?;
    graph(packages)
}

fn image(package: &mut Schema<'_>) -> Result<(), UnknownField> {
    let (before, after) = words::VERSION;
    let version = Rule::new(
        format!("self.matches({})", text(VERSION)),
        format!("not a semantic version{after}"),
    );
    let version = version.saying(format!("{} + self + {}", text(before), text(after)));
    package
        .at("version")?
        .max_length(LONGEST_VERSION)
        .rule(version);
    let form = format!("self.matches({})", text(IMAGE));
    package
        .at("image")?
        .max_length(512)
        .rule(Rule::new(form, words::IMAGE));
    let digest = format!("self.matches({})", text(DIGEST));
    let digest = Rule::new(digest, words::DIGEST);
    package.at("containerSHA")?.max_length(71).rule(digest);
    let tag = "self.image.split('@')[0].find(':[^/]*$')";
    let is_version = format!(
        "[{tag}].all(t, t == '' || t == ':' + self.version || t == ':' + self.version.replace('+', '_'))"
    );
    let (before, between) = words::TAG;
    let says = format!(
        "{} + {tag} + {} + self.version",
        text(before),
        text(between)
    );
    let is_version = Rule::new(is_version, "the tag is the version, so leave the tag out");
    let is_same = "!self.image.contains('@') || !has(self.containerSHA) || self.containerSHA == '' \
        || self.image.endsWith('@' + self.containerSHA)";
    package.add(is_version.saying(says).about("image"));
    package.add(Rule::new(is_same, words::DIGESTS).about("containerSHA"));
    Ok(())
}

fn configuration(package: &mut Schema<'_>) -> Result<(), UnknownField> {
    let key = format!(
        "(k.matches({}) && k != '.' && !k.startsWith('..'))",
        text(CONFIG_KEY)
    );
    let keys = Rule::new(format!("self.all(k, {key})"), "a key is not a file name");
    let keys = keys.saying(format(
        words::CONFIG_KEY,
        &format!("self.filter(k, !{key})"),
    ));
    let size = Rule::new(
        format!("self.map(k, size(self[k])).sum() <= {LARGEST_CONFIG}"),
        "the values are more than 768 KiB together: bring large files in the image of the package",
    );
    let config = package.at("configMap")?.max_properties(256);
    config.rule(keys).rule(size);
    package.at("configInterrupts")?.max_properties(64);
    for interrupt in ["interrupt", "configInterrupts{}"] {
        let mut interrupt = package.at(interrupt)?;
        interrupt.at("services")?.max_items(64);
        interrupt.at("services[]")?.max_length(256);
    }
    // A key of configMap has no '/', so that a `*` may match anything.
    let regex =
        r"'^' + p.replace('\\', '').replace('.', '\\.').replace('*', '.*').replace('?', '.') + '$'";
    let matches = format!(
        r"((has(self.configMap) && p in self.configMap) || (p.matches('[*?\\[]') && has(self.configMap) && p.matches({}) && self.configMap.exists(f, f.matches({regex}))))",
        text(GLOB)
    );
    let interrupts = Rule::new(
        format!("!has(self.configInterrupts) || self.configInterrupts.all(p, {matches})"),
        "a key is neither a key of configMap nor a glob that matches one",
    );
    let without = format!("self.configInterrupts.filter(p, !{matches})");
    let says = format(words::CONFIG_INTERRUPT, &without);
    package.add(interrupts.saying(says).about("configInterrupts"));
    Ok(())
}

fn steps(package: &mut Schema<'_>) -> Result<(), UnknownField> {
    package.at("env")?.max_items(256);
    package.at("env[].name")?.pattern("^[ -<>-~]+$");
    let value = "!(has(self.valueFrom) && has(self.value) && self.value != '')";
    package
        .at("env[]")?
        .rule(Rule::new(value, words::ENV_VALUE));
    let sources = "[has(self.configMapKeyRef), has(self.fieldRef), has(self.fileKeyRef), has(self.resourceFieldRef), \
        has(self.secretKeyRef)].filter(x, x).size() == 1";
    let sources = Rule::new(sources, words::ENV_SOURCE);
    package.at("env[].valueFrom")?.rule(sources);
    let fields = ["cpuRequest", "cpuLimit", "memoryRequest", "memoryLimit"];
    let all = fields
        .map(|field| format!("has(self.{field})"))
        .join(" && ");
    let none = fields
        .map(|field| format!("!has(self.{field})"))
        .join(" && ");
    let mut resources = package.at("resources")?;
    for field in fields {
        let field = resources.at(field)?.max_length(32);
        field.pattern(ABOVE_ZERO).minimum(1.0);
    }
    let all_or_none = format!("({all}) || ({none})");
    resources.add(Rule::new(all_or_none, words::RESOURCES));
    let uninstall = Rule::new("!self.apply || self.enabled", words::UNINSTALL);
    package.at("uninstall")?.rule(uninstall.about("apply"));
    Ok(())
}

/// A limit is not below its request.
pub(super) fn limits() -> Vec<ValidationRule> {
    let rule = |field: &str, request: &str, words| {
        let [limit, request] = [field, request].map(|field| format!("self.{field}"));
        // A quantity that is none is told by its pattern.
        let both_are = [&limit, &request]
            .map(|of| format!("has({of}) && isQuantity(string({of}))"))
            .join(" && ");
        let rule = format!(
            "!({both_are}) || quantity(string({limit})).compareTo(quantity(string({request}))) >= 0"
        );
        Rule::new(rule, words).about(field).0
    };
    vec![
        rule("cpuLimit", "cpuRequest", words::CPU_LIMIT),
        rule("memoryLimit", "memoryRequest", words::MEMORY_LIMIT),
    ]
}

/// Names, and what depends on what. A rule for keys is a rule of the map, so none of the packages can be changed while one
/// breaks it.
fn graph(mut packages: Schema<'_>) -> Result<(), UnknownField> {
    packages.at("{}.dependsOn")?.max_properties(32);
    packages.at("{}.dependsOn{}")?.max_length(LONGEST_VERSION);
    let name = format!("k.matches({})", text(NAME));
    let says = format(words::PACKAGE_NAME, &format!("self.filter(k, !{name})"));
    let names = Rule::new(
        format!("self.all(k, {name})"),
        "a package name is not valid",
    );
    let equal = "(!has(self[k].name) || self[k].name == '' || self[k].name == k)";
    let differing = format(words::NAME_DIFFERS, &format!("self.filter(k, !{equal})"));
    let equal = Rule::new(
        format!("self.all(k, {equal})"),
        "name must not be set explicitly, or equal the key",
    );
    let is_there = "(d in self && self[d].version == self[k].dependsOn[d])";
    let all_are = format!("(!has(self[k].dependsOn) || self[k].dependsOn.all(d, {is_there}))");
    let missing = format!(
        "self.map(k, !{all_are}, self[k].dependsOn.map(d, !{is_there}, k + ' needs ' + d + '|' + self[k].dependsOn[d]))"
    );
    let missing = format(words::MISSING, &missing);
    let complete = Rule::new(
        format!("self.all(k, {all_are})"),
        "graph is not valid: a package or a version of dependsOn is missing",
    );
    // Longer ones need a loop, which CEL does not have.
    let no_cycle = "(!has(self[a].dependsOn) || self[a].dependsOn.all(b, a != b && (!(b in self) || !has(self[b].dependsOn) \
        || (!(a in self[b].dependsOn) && self[b].dependsOn.all(c, !(c in self) || !has(self[c].dependsOn) \
        || !(a in self[c].dependsOn))))))";
    let cycle = format(words::CYCLE, &format!("self.filter(a, !{no_cycle})"));
    let no_cycle = Rule::new(
        format!("self.all(a, {no_cycle})"),
        "dependsOn forms a cycle of up to three packages",
    );
    packages
        .max_properties(64)
        .rule(names.saying(says))
        .rule(equal.saying(differing))
        .rule(complete.saying(missing))
        .rule(no_cycle.saying(cycle));
    Ok(())
}
