//! Patches of JSON documents.

use serde_json::Value;

/// RFC 7386.
pub(super) fn merge(there: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *there = patch.clone();
        return;
    };
    if !there.is_object() {
        *there = Value::Object(serde_json::Map::new());
    }
    let Some(there) = there.as_object_mut() else {
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            there.remove(key);
        } else {
            merge(there.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// Strategic merge: as a merge patch, but conditions are a map by `type`, from which `$patch: delete` removes one.
pub(super) fn strategic(there: &mut Value, patch: &Value) {
    let mut plain = patch.clone();
    let conditions = plain["status"]
        .as_object_mut()
        .and_then(|status| status.remove("conditions"));
    if plain["status"].is_null()
        && let Some(all) = plain.as_object_mut()
    {
        all.remove("status");
    }
    merge(there, &plain);
    let Some(Value::Array(conditions)) = conditions else {
        return;
    };
    if !there["status"]["conditions"].is_array() {
        there["status"]["conditions"] = Value::Array(Vec::new());
    }
    let Some(list) = there["status"]["conditions"].as_array_mut() else {
        return;
    };
    for condition in conditions {
        if condition["$patch"] == "delete" {
            list.retain(|c| c["type"] != condition["type"]);
            continue;
        }
        match list.iter_mut().find(|c| c["type"] == condition["type"]) {
            Some(old) => merge(old, &condition),
            None => list.push(condition),
        }
    }
}

/// A whole new object.
pub(super) fn replace(there: &mut Value, with: &Value) {
    *there = with.clone();
}
