//! Tables of objects: a base and one change each.

use std::fmt;

use serde_json::Value;

/// Who refuses an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Good,
    Bad,
    /// A bound, or what costs the API server too much to look at more closely.
    ServerAlone,
    /// What rules cannot say.
    CheckAlone,
}

/// How the API server says what is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// As `check` does: at the same field, in the same words.
    Same,
    /// At the same field, in words of its own: those of the schema.
    Own,
    /// It could not evaluate a rule, and says so.
    Elsewhere,
}

#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) object: Value,
    pub(super) verdict: Verdict,
    pub(super) words: Words,
    group: &'static str,
    value: Value,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.value.to_string();
        if let Some((cut, _)) = value.char_indices().nth(120) {
            value.truncate(cut);
        }
        write!(f, "{} = {value} ({:?})", self.group, self.verdict)
    }
}

/// Cases that differ in one place.
pub(super) struct Group<'a> {
    name: &'static str,
    base: &'a Value,
    /// The change of the base for a value.
    change: Box<dyn Fn(&Value) -> Value + 'a>,
    words: Words,
    cases: Vec<Case>,
}

impl<'a> Group<'a> {
    pub(super) fn new(
        name: &'static str,
        base: &'a Value,
        change: impl Fn(&Value) -> Value + 'a,
    ) -> Self {
        Self {
            name,
            base,
            change: Box::new(change),
            words: Words::Same,
            cases: Vec::new(),
        }
    }

    /// Cases that follow are refused by the API server in its own words.
    pub(super) fn in_own_words(mut self) -> Self {
        self.words = Words::Own;
        self
    }

    /// Cases that follow are refused because the API server cannot evaluate a rule.
    pub(super) fn said_elsewhere(mut self) -> Self {
        self.words = Words::Elsewhere;
        self
    }

    pub(super) fn good(self, values: impl IntoIterator<Item = Value>) -> Self {
        self.with(Verdict::Good, values)
    }

    pub(super) fn bad(self, values: impl IntoIterator<Item = Value>) -> Self {
        self.with(Verdict::Bad, values)
    }

    pub(super) fn server_alone(self, values: impl IntoIterator<Item = Value>) -> Self {
        self.with(Verdict::ServerAlone, values)
    }

    pub(super) fn check_alone(self, values: impl IntoIterator<Item = Value>) -> Self {
        self.with(Verdict::CheckAlone, values)
    }

    fn with(mut self, verdict: Verdict, values: impl IntoIterator<Item = Value>) -> Self {
        for value in values {
            let mut object = self.base.clone();
            merge(&mut object, (self.change)(&value));
            self.cases.push(Case {
                object,
                verdict,
                words: self.words,
                group: self.name,
                value,
            });
        }
        self
    }

    pub(super) fn cases(self) -> Vec<Case> {
        self.cases
    }
}

/// Puts `change` over `object`: objects are merged, everything else is replaced.
pub(super) fn merge(object: &mut Value, change: Value) {
    match (object, change) {
        (Value::Object(object), Value::Object(change)) => {
            for (key, value) in change {
                merge(object.entry(key).or_insert(Value::Null), value);
            }
        }
        (object, change) => *object = change,
    }
}
