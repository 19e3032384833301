//! Rules and policies of admission, as the chart has them.

use super::*;

const POLICIES: [&str; 2] = [
    "skyhook-skyhook-operator-policy-in-use",
    "skyhook-skyhook-operator-warnings",
];

#[tokio::test]
async fn the_policies_of_admission_can_be_left_out() -> Result<()> {
    if !chart_can_run("the_policies_of_admission_can_be_left_out").await {
        return Ok(());
    }
    let objects = render(&[]).await?;
    for name in POLICIES {
        find(&objects, "ValidatingAdmissionPolicy", name)?;
        let binding = find(&objects, "ValidatingAdmissionPolicyBinding", name)?;
        assert_eq!(binding["spec"]["policyName"], name);
    }
    let objects = render(&["--set", "admissionPolicies.enabled=false"]).await?;
    for name in POLICIES {
        ensure!(
            find(&objects, "ValidatingAdmissionPolicy", name).is_err(),
            "{name}"
        );
        ensure!(
            find(&objects, "ValidatingAdmissionPolicyBinding", name).is_err(),
            "{name}"
        );
    }
    // The policy for the agents' tokens is no matter of taste.
    find(&objects, "ValidatingAdmissionPolicy", AGENT)?;
    Ok(())
}

/// A limit below its request is refused by a rule where the API server can take one, and warned of elsewhere.
#[tokio::test]
async fn limits_are_compared_in_the_crd_from_1_34_on() -> Result<()> {
    if !chart_can_run("limits_are_compared_in_the_crd_from_1_34_on").await {
        return Ok(());
    }
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/packages/additionalProperties/properties/\
        resources/x-kubernetes-validations";
    for (version, rules, warnings) in [
        ("1.30.0", 1, 5),
        ("1.33.9", 1, 5),
        ("1.34.0-rc.1", 3, 3),
        ("1.36.3", 3, 3),
    ] {
        let objects = render(&["--kube-version", version]).await?;
        let crd = find(
            &objects,
            "CustomResourceDefinition",
            "skyhooks.skyhook.nvidia.com",
        )?;
        let found = crd
            .pointer(path)
            .and_then(Value::as_array)
            .context("rules")?;
        assert_eq!(found.len(), rules, "{version}");
        let policy = find(&objects, "ValidatingAdmissionPolicy", POLICIES[1])?;
        let found = policy["spec"]["validations"]
            .as_array()
            .context("validations")?;
        assert_eq!(found.len(), warnings, "{version}");
    }
    Ok(())
}
