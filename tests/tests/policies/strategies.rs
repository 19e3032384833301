//! NVIDIA Skyhook's scenarios of DeploymentPolicies.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn scenarios_of_the_reference() -> Result<()> {
    let (mut world, recorder) = start().await?;
    nodes(&mut world, "legacy", 1..=6, &[]).await?;
    nodes(&mut world, "linear", 1..=8, &[("tier", "production")]).await?;
    let tiers = [(1..=5, "critical"), (6..=11, "standard"), (12..=15, "test")];
    for (some, tier) in tiers {
        nodes(&mut world, "multi", some, &[("priority", tier)]).await?;
    }
    let (west, production) = (("region", "us-west"), ("env", "production"));
    nodes(&mut world, "overlap", 1..=2, &[west]).await?;
    nodes(&mut world, "overlap", 3..=4, &[production]).await?;
    nodes(&mut world, "overlap", 5..=6, &[west, production]).await?;
    let (world, recorder) = (&world, &recorder);
    let (legacy, linear, multi, overlap) = tokio::join!(
        legacy_compatibility(world, recorder),
        linear_strategy(world, recorder),
        multi_compartment(world, recorder),
        overlapping_selectors(world, recorder)
    );
    legacy.context("legacy-compatibility")?;
    linear.context("linear-strategy")?;
    multi.context("multi-compartment")?;
    overlap.context("overlapping-selectors")
}

async fn legacy_compatibility(world: &World, recorder: &PaceRecorder) -> Result<()> {
    let package = json!({ "version": "6.2.0", "image": "ghcr.io/nvidia/skyhook/agentless" });
    let spec = json!({
        "priority": 100, "interruptionBudget": { "count": 3 }, "packages": { "test-pkg": package },
    });
    world.apply("legacy", "legacy", spec).await?;
    let begun = |skyhook: &Skyhook| {
        let status = of(skyhook, "__default__");
        (status.matched, status.ceiling) == (6, 3)
    };
    world
        .skyhook_until("legacy", "6 nodes, 3 at once", begun)
        .await?;
    world.complete("legacy").await?;
    let most = recorder.most("legacy", "__default__")?;
    // Every slot is used, and no more than that.
    ensure!((most.all, most.granted) == (3, 3), "{most:?}");
    numbered(world, recorder, "legacy", 6).await
}

async fn linear_strategy(world: &World, recorder: &PaceRecorder) -> Result<()> {
    let linear = json!({ "linear": {
        "initialBatch": 1, "delta": 1, "batchThreshold": 100, "failureThreshold": 2, "safetyLimit": 50,
    } });
    let production = compartment(
        "production",
        json!({ "tier": "production" }),
        json!({ "count": 4 }),
        linear,
    );
    let spec = json!({ "default": default_compartment(), "compartments": [production] });
    policy(world, "linear-policy", spec).await?;
    world
        .apply("linear", "linear", paced("linear-policy", "6.2.0"))
        .await?;
    let begun = |skyhook: &Skyhook| {
        let status = of(skyhook, "production");
        (status.matched, status.ceiling) == (8, 4)
    };
    world
        .skyhook_until("linear", "8 nodes, 4 at once", begun)
        .await?;
    reaches(world, "linear", "production", 1, 1).await?;
    reaches(world, "linear", "production", 2, 2).await?;
    reaches(world, "linear", "production", 3, 3).await?;
    reaches(world, "linear", "production", 4, 4).await?;
    ends(world, "linear", &[("production", 8, 4)]).await?;
    kept(recorder, "linear", &[("production", 4, &[1, 2, 3, 2])])?;
    numbered(world, recorder, "linear", 8).await
}

async fn multi_compartment(world: &World, recorder: &PaceRecorder) -> Result<()> {
    let exponential = |initial: i32, threshold: i32, failures: i32, limit: i32| {
        json!({ "exponential": {
            "initialBatch": initial, "growthFactor": 2, "batchThreshold": threshold, "failureThreshold": failures,
            "safetyLimit": limit,
        } })
    };
    let tier = |name: &str, budget: Value, strategy: Value| {
        compartment(name, json!({ "priority": name }), budget, strategy)
    };
    let compartments = json!([
        tier(
            "critical",
            json!({ "count": 2 }),
            exponential(1, 100, 1, 50)
        ),
        tier(
            "standard",
            json!({ "percent": 33 }),
            exponential(1, 100, 2, 50)
        ),
        tier("test", json!({ "percent": 50 }), exponential(2, 90, 3, 60)),
    ]);
    let spec = json!({ "default": default_compartment(), "compartments": compartments });
    policy(world, "multi-tier-policy", spec).await?;
    world
        .apply("multi", "multi", paced("multi-tier-policy", "6.2.0"))
        .await?;
    // A third of six nodes is 1.98.
    let begun = |skyhook: &Skyhook| {
        let shown = ["critical", "standard", "test"].map(|one| {
            let status = of(skyhook, one);
            (status.matched, status.ceiling)
        });
        shown == [(5, 2), (6, 1), (4, 2)]
    };
    world
        .skyhook_until("multi", "ceilings of all compartments", begun)
        .await?;
    for (compartment, completed, current) in [
        ("test", 2, 1),
        ("critical", 1, 1),
        ("standard", 1, 1),
        ("critical", 2, 2),
        ("test", 4, 2),
    ] {
        reaches(world, "multi", compartment, completed, current).await?;
    }
    ends(
        world,
        "multi",
        &[("critical", 5, 3), ("standard", 6, 6), ("test", 4, 2)],
    )
    .await?;
    let sizes: [(&str, usize, &[usize]); 3] = [
        ("critical", 2, &[1, 2, 2]),
        ("standard", 1, &[1, 1, 1, 1, 1, 1]),
        ("test", 2, &[2, 2]),
    ];
    kept(recorder, "multi", &sizes)?;
    numbered(world, recorder, "multi", 15).await
}

async fn overlapping_selectors(world: &World, recorder: &PaceRecorder) -> Result<()> {
    let exponential = || {
        json!({ "exponential": {
            "initialBatch": 1, "growthFactor": 2, "batchThreshold": 100, "failureThreshold": 1, "safetyLimit": 50,
        } })
    };
    let two = || json!({ "count": 2 });
    let fixed = default_compartment()["strategy"].clone();
    let both = json!({ "region": "us-west", "env": "production" });
    let compartments = json!([
        compartment(
            "us-west",
            json!({ "region": "us-west" }),
            two(),
            exponential()
        ),
        compartment(
            "production",
            json!({ "env": "production" }),
            two(),
            exponential()
        ),
        compartment("prod-us-west", both, json!({ "count": 1 }), fixed),
    ]);
    let spec = json!({ "default": default_compartment(), "compartments": compartments });
    policy(world, "overlapping-policy", spec).await?;
    world
        .apply("overlap", "overlap", paced("overlapping-policy", "6.2.0"))
        .await?;
    let all = ["us-west", "production", "prod-us-west"];
    let begun = |skyhook: &Skyhook| {
        let shown = all.map(|one| {
            let status = of(skyhook, one);
            (status.matched, status.ceiling)
        });
        let statuses = skyhook
            .status
            .iter()
            .flat_map(|status| status.node_status.values());
        let waiting = statuses
            .clone()
            .filter(|status| **status == Status::Waiting)
            .count();
        let working = statuses
            .filter(|status| **status == Status::InProgress)
            .count();
        shown == [(2, 2), (2, 2), (2, 1)] && (waiting, working) == (3, 3)
    };
    world
        .skyhook_until("overlap", "3 nodes wait and 3 are worked on", begun)
        .await?;
    for one in all {
        reaches(world, "overlap", one, 1, 1).await?;
    }
    for one in all {
        reaches(world, "overlap", one, 2, 2).await?;
    }
    ends(
        world,
        "overlap",
        &[
            ("us-west", 2, 2),
            ("production", 2, 2),
            ("prod-us-west", 2, 2),
        ],
    )
    .await?;
    let sizes: [(&str, usize, &[usize]); 3] = [
        ("us-west", 2, &[1, 1]),
        ("production", 2, &[1, 1]),
        ("prod-us-west", 1, &[1, 1]),
    ];
    kept(recorder, "overlap", &sizes)?;
    numbered(world, recorder, "overlap", 6).await
}
