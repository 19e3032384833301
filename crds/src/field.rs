//! What is wrong with an object, field by field.

use std::fmt;
use std::ops::RangeInclusive;

/// One problem, with the path of the field that has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct FieldError {
    /// As in `spec.compartments[2].budget.percent`.
    pub field: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

/// Everything that is wrong with an object; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct FieldErrors(pub Vec<FieldError>);

impl fmt::Display for FieldErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

/// Collects problems while an object is checked.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<FieldError>);

impl Problems {
    pub(crate) fn add(&mut self, field: impl Into<String>, problem: impl Into<String>) {
        self.0.push(FieldError {
            field: field.into(),
            problem: problem.into(),
        });
    }

    /// Adds the problems of a part.
    pub(crate) fn extend(&mut self, errors: FieldErrors) {
        self.0.extend(errors.0);
    }

    /// How many there are so far.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// `value`, or the least of the range and a problem when it is outside.
    pub(crate) fn within(&mut self, value: i32, range: RangeInclusive<i32>, field: &str) -> u32 {
        let least = *range.start();
        let value = if range.contains(&value) {
            value
        } else {
            let bound = if *range.end() == i32::MAX {
                format!("{least} or more")
            } else {
                format!("from {least} to {}", range.end())
            };
            self.add(field, format!("it is {value}, and must be {bound}"));
            least
        };
        value.unsigned_abs()
    }

    /// `checked`, unless there were problems.
    pub(crate) fn or<T>(self, checked: T) -> Result<T, FieldErrors> {
        if self.0.is_empty() {
            Ok(checked)
        } else {
            Err(FieldErrors(self.0))
        }
    }
}
