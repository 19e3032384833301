//! Kubernetes quantities as users write them: `500m`, `2`, `1.5Gi`, and bare YAML numbers.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

/// A quantity. Kept as written; [`Quantity::milli`] and [`Quantity::bytes`] give its value.
#[derive(Serialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(transparent)]
pub struct Quantity(pub String);

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum IntOrString {
            Int(i64),
            String(String),
        }
        Ok(match IntOrString::deserialize(deserializer)? {
            IntOrString::Int(n) => Self(n.to_string()),
            IntOrString::String(s) => Self(s),
        })
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-kubernetes-int-or-string": true })
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Not a quantity.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a Kubernetes quantity (write for example 500m, 2 or 512Mi)")]
pub struct InvalidQuantity(pub String);

impl Quantity {
    /// The value in thousandths, rounded up: milli-CPUs of a CPU quantity.
    pub fn milli(&self) -> Result<i128, InvalidQuantity> {
        self.scaled(1000)
    }

    /// The value rounded up to a whole number: bytes of a memory quantity.
    pub fn bytes(&self) -> Result<i128, InvalidQuantity> {
        self.scaled(1)
    }

    fn scaled(&self, by: i128) -> Result<i128, InvalidQuantity> {
        parse(self.0.trim(), by).ok_or_else(|| InvalidQuantity(self.0.clone()))
    }
}

fn parse(text: &str, by: i128) -> Option<i128> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 24 {
        return None;
    }
    let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (mut numerator, mut denominator) = factor(suffix)?;
    numerator = numerator.checked_mul(by)?;
    denominator =
        denominator.checked_mul(10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?)?;
    let product = mantissa.checked_mul(numerator)?;
    let value = product / denominator + i128::from(product % denominator != 0);
    Some(if negative { -value } else { value })
}

fn factor(suffix: &str) -> Option<(i128, i128)> {
    let binary = |n: u32| Some((1_i128 << (10 * n), 1));
    let decimal = |n: i32| {
        let power = 10_i128.checked_pow(n.unsigned_abs())?;
        Some(if n < 0 { (1, power) } else { (power, 1) })
    };
    match suffix {
        "" => Some((1, 1)),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        exponent => {
            let exponent: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            if exponent.abs() > 18 {
                None
            } else {
                decimal(exponent)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        for (text, milli, bytes) in [
            ("500m", Some(500), Some(1)),
            ("2", Some(2000), Some(2)),
            ("0.5", Some(500), Some(1)),
            ("1Gi", Some(1000 << 30), Some(1 << 30)),
            ("1.5Ki", Some(1_536_000), Some(1536)),
            ("1e3", Some(1_000_000), Some(1000)),
            (
                "12E",
                Some(12_000_000_000_000_000_000_000),
                Some(12_000_000_000_000_000_000),
            ),
            ("-1", Some(-1000), Some(-1)),
            ("", None, None),
            ("1.2.3", None, None),
            ("abc", None, None),
            ("1Mb", None, None),
        ] {
            let quantity = Quantity(text.to_owned());
            assert_eq!(quantity.milli().ok(), milli, "{text} in thousandths");
            assert_eq!(quantity.bytes().ok(), bytes, "{text} in bytes");
        }
    }

    #[test]
    fn bare_numbers_decode() {
        assert_eq!(
            serde_json::from_str::<Quantity>("2").unwrap(),
            Quantity("2".into())
        );
        assert_eq!(
            serde_json::from_str::<Quantity>("\"2Gi\"").unwrap(),
            Quantity("2Gi".into())
        );
    }
}
