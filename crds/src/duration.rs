//! Durations as Go's `time.ParseDuration` reads them (`30s`, `1m30s`, `1.5h`): the format of `gracefulShutdown`.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A duration, kept as written.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(transparent)]
pub struct GoDuration(pub String);

impl JsonSchema for GoDuration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Matches what [`GoDuration::value`] reads. The lengths are limited, because the API server knows beforehand then that a
/// check takes little time.
pub(crate) const PATTERN: &str = "^[+]?(0|(([0-9]{1,6}([.][0-9]{0,9})?|[.][0-9]{1,9})h\
    |([0-9]{1,8}([.][0-9]{0,9})?|[.][0-9]{1,9})m\
    |([0-9]{1,10}([.][0-9]{0,9})?|[.][0-9]{1,9})s\
    |([0-9]{1,18}([.][0-9]{0,9})?|[.][0-9]{1,9})(ns|us|µs|μs|ms))+)$";
/// Longest text of a duration that the API server takes.
pub(crate) const LONGEST: i64 = 64;

/// Not a duration.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a duration (write for example 30s, 1m30s or 2h)")]
pub struct InvalidDuration(pub String);

impl GoDuration {
    /// The value; negative durations are refused because no field of ours has a use for one.
    pub fn value(&self) -> Result<Duration, InvalidDuration> {
        parse(&self.0).ok_or_else(|| InvalidDuration(self.0.clone()))
    }
}

fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let unit: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || number.len() > 24 || fraction.contains('.')
        {
            return None;
        }
        let mantissa: u128 = format!("{whole}{fraction}").parse().ok()?;
        let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        nanos = nanos.checked_add(mantissa.checked_mul(unit)? / scale)?;
        rest = tail;
    }
    u64::try_from(nanos).ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        for (text, want) in [
            ("30s", Some(Duration::from_secs(30))),
            ("1m30s", Some(Duration::from_secs(90))),
            ("1.5h", Some(Duration::from_secs(5400))),
            ("100ms", Some(Duration::from_millis(100))),
            ("0", Some(Duration::ZERO)),
            (".5s", Some(Duration::from_millis(500))),
            ("30", None),
            ("", None),
            ("-3s", None),
            ("1x", None),
            ("s", None),
            ("9999999999h", None),
        ] {
            assert_eq!(GoDuration(text.into()).value().ok(), want, "{text}");
        }
    }
}
