//! What the API server bounds. Such objects may be stored, so `check` takes them.

use serde_json::{Value, json};

use super::skyhooks::{package, spec};
use super::table::{Case, Group};

pub(super) fn cases(base: &Value) -> Vec<Case> {
    let count = |v: &Value| usize::try_from(v.as_u64().unwrap_or_default()).unwrap_or_default();
    let many = move |v: &Value, of: &dyn Fn(usize) -> (String, Value)| -> Value {
        (0..count(v))
            .map(of)
            .collect::<serde_json::Map<String, Value>>()
            .into()
    };
    let letters = |n: usize| {
        let letter = |n: usize| char::from(b'a' + u8::try_from(n % 26).unwrap_or_default());
        format!("{}{}", letter(n / 26), letter(n))
    };
    let one = json!({ "version": "1.0.0", "image": "r/a" });
    let interrupt = json!({ "type": "noop" });
    [
        Group::new("number of packages", base, {
            let one = one.clone();
            move |v| spec(&json!({ "packages": many(v, &|n| (format!("p{}", letters(n)), one.clone())) }))
        })
        .good([json!(63)])
        .server_alone([json!(64)]),
        Group::new("number of dependencies", base, move |v| {
            let mut packages = many(v, &|n| (format!("p{}", letters(n)), one.clone()));
            let all = many(v, &|n| (format!("p{}", letters(n)), json!("1.0.0")));
            packages["aa"] = json!({ "dependsOn": all });
            spec(&json!({ "packages": packages }))
        })
        .good([json!(32)])
        .server_alone([json!(33)]),
        Group::new("number of tolerations", base, move |v| {
            spec(&json!({ "additionalTolerations": vec![json!({ "operator": "Exists" }); count(v)] }))
        })
        .good([json!(128)])
        .server_alone([json!(129)]),
        Group::new("number of variables", base, move |v| {
            package(&json!({ "env": vec![json!({ "name": "A" }); count(v)] }))
        })
        .good([json!(256)])
        .server_alone([json!(257)]),
        Group::new("number of services", base, move |v| {
            package(&json!({ "interrupt": { "type": "service", "services": vec!["a"; count(v)] } }))
        })
        .good([json!(64)])
        .server_alone([json!(65)]),
        Group::new("number of keys", base, move |v| {
            package(&json!({ "configMap": many(v, &|n| (n.to_string(), json!(""))) }))
        })
        .good([json!(256)])
        .server_alone([json!(257)]),
        Group::new("number of configInterrupts", base, move |v| {
            let config = many(v, &|n| (n.to_string(), json!("")));
            let interrupts = many(v, &|n| (n.to_string(), interrupt.clone()));
            package(&json!({ "configMap": config, "configInterrupts": interrupts }))
        })
        .good([json!(64)])
        .server_alone([json!(65)]),
        Group::new("length of deploymentPolicy", base, move |v| {
            spec(&json!({ "deploymentPolicy": "p".repeat(count(v)) }))
        })
        .good([json!(253)])
        .server_alone([json!(254)]),
    ]
    .into_iter()
    .flat_map(Group::cases)
    .collect()
}
