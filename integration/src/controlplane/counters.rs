//! How many requests the API server answered, and whose they were.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

/// Requests by verb and resource (`nodes`, `nodes/status`), as `apiserver_request_total` has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestCounts(pub BTreeMap<(String, String), u64>);

impl RequestCounts {
    pub(super) fn parse(metrics: &str) -> Self {
        let mut counts = Self::default();
        for line in metrics.lines() {
            let Some(rest) = line.strip_prefix("apiserver_request_total{") else {
                continue;
            };
            let Some((labels, value)) = rest.rsplit_once("} ") else {
                continue;
            };
            let Ok(value) = value.parse::<f64>() else {
                continue;
            };
            let label = |name: &str| {
                let start = labels.split(',').find_map(|pair| {
                    pair.strip_prefix(name)?
                        .strip_prefix("=\"")?
                        .strip_suffix('"')
                });
                start.unwrap_or_default().to_owned()
            };
            let (resource, subresource) = (label("resource"), label("subresource"));
            let what = if subresource.is_empty() {
                resource
            } else {
                format!("{resource}/{subresource}")
            };
            // A counter of requests is a whole number well below 2^53.
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a count of requests is whole, positive and small"
            )]
            let value = value as u64;
            *counts.0.entry((label("verb"), what)).or_default() += value;
        }
        counts
    }

    /// What came since `earlier`, without what did not change.
    pub fn since(&self, earlier: &Self) -> Self {
        Self(increase(&self.0, &earlier.0))
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

/// Requests by user, verb and resource, from the audit log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditCounts(pub BTreeMap<AuditKey, u64>);

/// Who did what.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AuditKey {
    pub user: String,
    pub verb: String,
    pub resource: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuditEvent {
    verb: String,
    stage: String,
    user: AuditUser,
    object_ref: Option<AuditObject>,
    #[serde(default, rename = "requestURI")]
    request_uri: String,
}

#[derive(Deserialize)]
struct AuditUser {
    username: String,
}

#[derive(Deserialize)]
struct AuditObject {
    resource: String,
    subresource: Option<String>,
}

/// The addresses that a user asked for with a verb, in their order.
pub(super) fn uris(log: &str, user: &str, verb: &str) -> Result<Vec<String>> {
    let whole = log.rfind('\n').map_or("", |end| &log[..end]);
    let mut uris = Vec::new();
    for line in whole.lines() {
        let event: AuditEvent =
            serde_json::from_str(line).with_context(|| format!("audit log: {line}"))?;
        if event.user.username == user && event.verb == verb {
            uris.push(event.request_uri);
        }
    }
    Ok(uris)
}

impl AuditCounts {
    pub(super) fn parse(log: &str) -> Result<Self> {
        let mut counts = Self::default();
        // The last line may still be being written.
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        for line in whole.lines() {
            let event: AuditEvent =
                serde_json::from_str(line).with_context(|| format!("audit log: {line}"))?;
            // A watch is logged when it starts and again when it ends: count the start.
            let started = event.stage == "ResponseStarted";
            if (event.verb == "watch") != started {
                continue;
            }
            let resource = match event.object_ref {
                Some(AuditObject {
                    resource,
                    subresource: Some(sub),
                }) => {
                    format!("{resource}/{sub}")
                }
                Some(AuditObject {
                    resource,
                    subresource: None,
                }) => resource,
                None => event.request_uri,
            };
            let key = AuditKey {
                user: event.user.username,
                verb: event.verb,
                resource,
            };
            *counts.0.entry(key).or_default() += 1;
        }
        Ok(counts)
    }

    /// What came since `earlier`, without what did not change.
    pub fn since(&self, earlier: &Self) -> Self {
        Self(increase(&self.0, &earlier.0))
    }

    /// Those of users whose name `is_meant` accepts.
    pub fn of(&self, is_meant: impl Fn(&str) -> bool) -> Self {
        let counts = self.0.iter().filter(|(key, _)| is_meant(&key.user));
        Self(counts.map(|(key, count)| (key.clone(), *count)).collect())
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

fn increase<K: Ord + Clone>(
    now: &BTreeMap<K, u64>,
    earlier: &BTreeMap<K, u64>,
) -> BTreeMap<K, u64> {
    let changed = now.iter().filter_map(|(key, count)| {
        let before = earlier.get(key).copied().unwrap_or_default();
        count
            .checked_sub(before)
            .filter(|more| *more > 0)
            .map(|more| (key.clone(), more))
    });
    changed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_summed_over_codes_and_told_apart_by_subresource() {
        let text = "# TYPE apiserver_request_total counter\n\
            apiserver_request_total{code=\"200\",group=\"\",resource=\"nodes\",subresource=\"\",verb=\"PATCH\"} 3\n\
            apiserver_request_total{code=\"409\",group=\"\",resource=\"nodes\",subresource=\"\",verb=\"PATCH\"} 1\n\
            apiserver_request_total{code=\"200\",group=\"\",resource=\"nodes\",subresource=\"status\",verb=\"PATCH\"} 1e+01\n";
        let counts = RequestCounts::parse(text);
        let key = |resource: &str| ("PATCH".to_owned(), resource.to_owned());
        let want = BTreeMap::from([(key("nodes"), 4), (key("nodes/status"), 10)]);
        assert_eq!(counts, RequestCounts(want));
        assert_eq!(counts.since(&counts).total(), 0);
    }

    #[test]
    fn an_audited_watch_counts_once_and_a_cut_line_not_at_all() {
        let event = |stage: &str, verb: &str| {
            format!(
                "{{\"stage\":\"{stage}\",\"verb\":\"{verb}\",\"user\":{{\"username\":\"u\"}},\
                 \"objectRef\":{{\"resource\":\"nodes\"}},\"requestURI\":\"/x\"}}\n"
            )
        };
        let log = event("ResponseStarted", "watch")
            + &event("ResponseComplete", "watch")
            + &event("ResponseComplete", "get")
            + "{\"stage\":";
        let counts = AuditCounts::parse(&log).expect("parses");
        let key = |verb: &str| AuditKey {
            user: "u".to_owned(),
            verb: verb.to_owned(),
            resource: "nodes".to_owned(),
        };
        assert_eq!(
            counts,
            AuditCounts(BTreeMap::from([(key("get"), 1), (key("watch"), 1)]))
        );
    }
}
