//! What is wrong with an object, field by field.

use std::fmt;

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

    /// `checked`, unless there were problems.
    pub(crate) fn or<T>(self, checked: T) -> Result<T, FieldErrors> {
        if self.0.is_empty() {
            Ok(checked)
        } else {
            Err(FieldErrors(self.0))
        }
    }
}
