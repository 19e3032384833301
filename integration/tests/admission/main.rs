//! What the API server refuses, what `check` refuses, and what another implementation of the same rules refuses.

mod bounds;
mod chart;
mod oldest;
mod oracle;
mod packages;
mod policies;
mod removal;
mod skyhooks;
mod stored;
mod table;

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaPropsOrBool,
};
use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::core::Status;
use kube::{Api, CustomResourceExt};
use serde_json::{Value, json};
use skyhook_crds::{DeploymentPolicy, DeploymentPolicySpec, Skyhook, SkyhookSpec, admission};
use skyhook_integration::controlplane::{ControlPlane, Options};
use skyhook_integration::install::{apply, await_crds};
use skyhook_integration::run::Run;
use skyhook_integration::wait::{MINUTE, eventually};

use oracle::{Oracle, Problem};
use table::{Case, Verdict, Words};

/// A control plane with these CRDs.
async fn start(crds: &[CustomResourceDefinition]) -> Result<ControlPlane> {
    let plane = ControlPlane::start(Arc::new(Run::start()?), &Options::default()).await?;
    for crd in crds {
        apply_crd(&plane, crd).await?;
    }
    await_crds(&plane).await?;
    Ok(plane)
}

async fn apply_crd(plane: &ControlPlane, crd: &CustomResourceDefinition) -> Result<()> {
    apply(plane, &serde_json::to_string(crd)?).await.map(drop)
}

/// The CRD of Skyhooks as the chart renders it for new API servers.
fn skyhook_crd() -> Result<CustomResourceDefinition> {
    let mut crd = admission::skyhook()?;
    let schema = crd.spec.versions[0].schema.as_mut();
    let root = schema.and_then(|schema| schema.open_api_v3_schema.as_mut());
    let mut at = root.context("a schema")?;
    for field in ["spec", "packages"] {
        let properties = at.properties.as_mut().context("properties")?;
        at = properties.get_mut(field).context(field)?;
    }
    let Some(JSONSchemaPropsOrBool::Schema(package)) = &mut at.additional_properties else {
        anyhow::bail!("packages have no schema");
    };
    let properties = package.properties.as_mut().context("properties")?;
    let resources = properties.get_mut("resources").context("resources")?;
    let rules = resources.x_kubernetes_validations.as_mut();
    rules.context("rules")?.extend(admission::rules_from_1_34());
    Ok(crd)
}

/// All objects of a kind, whatever is in them.
fn objects<K: CustomResourceExt>(plane: &ControlPlane) -> Api<DynamicObject> {
    let resource: ApiResource = K::api_resource();
    Api::all_with(plane.client(), &resource)
}

/// What the API server says about an object that is made: the object as it would be stored, or what is wrong with it.
async fn made(
    api: &Api<DynamicObject>,
    object: &Value,
) -> Result<Result<DynamicObject, Vec<Problem>>> {
    let object: DynamicObject = serde_json::from_value(object.clone())?;
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    // A CRD that was established a moment ago may not be served yet.
    eventually(MINUTE, async || match api.create(&params, &object).await {
        Ok(stored) => Ok(Ok(stored)),
        Err(kube::Error::Api(status)) if status.is_invalid() => Ok(Err(causes(&status))),
        Err(error) => Err(error.into()),
    })
    .await
}

fn causes(status: &Status) -> Vec<Problem> {
    let details = status.details.iter();
    let causes = details.flat_map(|details| &details.causes);
    causes
        // With an object that has an enumeration or a length wrong, rules are not evaluated, which it says as well.
        .filter(|cause| {
            !cause
                .message
                .contains("some validation rules were not checked")
        })
        .map(|cause| Problem::new(&cause.field, &cause.message))
        .collect()
}

/// What `check` says about an object: `None` when it cannot even be read.
type Check = fn(&str, &Value) -> Result<(), Option<Vec<Problem>>>;

fn check_skyhook(name: &str, spec: &Value) -> Result<(), Option<Vec<Problem>>> {
    let spec: SkyhookSpec = serde_json::from_value(spec.clone()).map_err(|_| None)?;
    let errors = spec.check(name).map(drop);
    errors.map_err(|errors| Some(errors.0.iter().map(Problem::from).collect()))
}

fn check_policy(_: &str, spec: &Value) -> Result<(), Option<Vec<Problem>>> {
    let spec: DeploymentPolicySpec = serde_json::from_value(spec.clone()).map_err(|_| None)?;
    let errors = spec.check().map(drop);
    errors.map_err(|errors| Some(errors.0.iter().map(Problem::from).collect()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_and_check_say_the_same() -> Result<()> {
    let crds = [skyhook_crd()?, admission::deployment_policy()?];
    let plane = start(&crds).await?;
    let skyhooks = skyhooks::cases();
    let policies = policies::cases();
    ensure!(
        skyhooks.len() >= 300 && policies.len() >= 60,
        "{} and {}",
        skyhooks.len(),
        policies.len()
    );
    let skyhook = Oracle::new(&crds[0])?;
    let api = objects::<Skyhook>(&plane);
    let mut wrong = compare(&api, &skyhook, check_skyhook, &skyhooks).await?;
    let policy = Oracle::new(&crds[1])?;
    let api = objects::<DeploymentPolicy>(&plane);
    wrong.extend(compare(&api, &policy, check_policy, &policies).await?);
    ensure!(
        wrong.is_empty(),
        "{} of {} differ:\n{}",
        wrong.len(),
        skyhooks.len() + policies.len(),
        wrong.join("\n")
    );
    eprintln!(
        "admission: {} Skyhooks and {} DeploymentPolicies",
        skyhooks.len(),
        policies.len()
    );
    Ok(())
}

/// Whether a message ends with these words. Lists may be in another order: a rule visits the keys of a map in the order of
/// Go's maps, which differs from call to call.
fn ends_with(message: &str, words: &str) -> bool {
    let from = message.len().checked_sub(words.len());
    let end = from.and_then(|from| message.get(from..));
    end.is_some_and(|end| items(end) == items(words))
}

fn items(message: &str) -> Vec<&str> {
    let mut items: Vec<&str> = message.split(['[', ']', ',']).map(str::trim).collect();
    items.sort_unstable();
    items
}

/// Everything that the three say differently about the cases, unless the case expects it.
async fn compare(
    api: &Api<DynamicObject>,
    oracle: &Oracle,
    check: Check,
    cases: &[Case],
) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mut broken = BTreeSet::new();
    for case in cases {
        let server = made(api, &case.object)
            .await
            .with_context(|| case.to_string())?;
        let (rules, beside) = oracle.problems(&case.object);
        broken.extend(rules);
        // `check` is for stored objects, which have the defaults of the schema.
        let spec = match &server {
            Ok(stored) => stored.data["spec"].clone(),
            Err(_) => case.object["spec"].clone(),
        };
        let name = case.object["metadata"]["name"].as_str().unwrap_or_default();
        let checked = check(name, &spec);
        let server = server.map(drop);
        let mut differ = |what: String| wrong.push(format!("{case}: {what}"));
        let server_refuses = matches!(case.verdict, Verdict::Bad | Verdict::ServerAlone);
        if server.is_err() != server_refuses {
            differ(format!("the API server says {server:?}"));
        }
        if beside.is_empty() == server_refuses {
            differ(format!("kube-cel says {beside:?}"));
        }
        if checked.is_err() != matches!(case.verdict, Verdict::Bad | Verdict::CheckAlone) {
            differ(format!("check says {checked:?}"));
        }
        if let (Err(server), Err(Some(checked))) = (&server, &checked)
            && case.words != Words::Elsewhere
        {
            let has_own = case.words == Words::Own;
            let same = |a: &Problem, b: &Problem| {
                a.field == b.field && (has_own || ends_with(&a.message, &b.message))
            };
            let all_said = checked.iter().all(|b| server.iter().any(|a| same(a, b)));
            let all_found = server.iter().all(|a| checked.iter().any(|b| same(a, b)));
            if !all_said || !all_found {
                differ(format!(
                    "the API server says {server:?}, check says {checked:?}"
                ));
            }
        }
    }
    for rule in oracle.rules() {
        // Rules for changes: see `removal`.
        if !broken.contains(&rule) && !rule.contains("oldSelf") {
            wrong.push(format!("no object breaks the rule {rule}"));
        }
    }
    Ok(wrong)
}

/// An object of ours.
fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec })
}
