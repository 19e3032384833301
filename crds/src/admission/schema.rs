//! Schemas by path, and what is added there.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinitionVersion, JSON, JSONSchemaProps, JSONSchemaPropsOrArray,
    JSONSchemaPropsOrBool, ValidationRule,
};

/// There is no field for a bound or a rule, so the rule would be lost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the schema has no {0}: has the field got another name? Then change the path in crds/src/admission as well"
)]
pub struct UnknownField(pub String);

/// The schema of one field. What is added narrows what it takes.
#[derive(Debug)]
pub(super) struct Schema<'a>(&'a mut JSONSchemaProps);

/// The schema of a whole object.
pub(super) fn root(
    version: &mut CustomResourceDefinitionVersion,
) -> Result<Schema<'_>, UnknownField> {
    let schema = version.schema.as_mut();
    let root = schema.and_then(|schema| schema.open_api_v3_schema.as_mut());
    root.map(Schema)
        .ok_or_else(|| UnknownField("schema".to_owned()))
}

impl Schema<'_> {
    /// The schema of a field below this one. `{}` stands for the values of a map and `[]` for the items of a list, as in
    /// `spec.packages{}.env[].name`.
    pub(super) fn at(&mut self, path: &str) -> Result<Schema<'_>, UnknownField> {
        let unknown = || UnknownField(path.to_owned());
        let mut schema = &mut *self.0;
        let spaced = path.replace("{}", ".{}").replace("[]", ".[]");
        for step in spaced.split('.').filter(|step| !step.is_empty()) {
            let next = match step {
                "{}" => match schema.additional_properties.as_mut() {
                    Some(JSONSchemaPropsOrBool::Schema(values)) => Some(values.as_mut()),
                    Some(JSONSchemaPropsOrBool::Bool(_)) | None => None,
                },
                "[]" => match schema.items.as_mut() {
                    Some(JSONSchemaPropsOrArray::Schema(items)) => Some(items.as_mut()),
                    Some(JSONSchemaPropsOrArray::Schemas(_)) | None => None,
                },
                field => schema
                    .properties
                    .as_mut()
                    .and_then(|all| all.get_mut(field)),
            };
            schema = next.ok_or_else(unknown)?;
        }
        Ok(Schema(schema))
    }

    /// Limits `metadata.name`. `metadata` is in no schema of ours, because every object has it.
    pub(super) fn longest_object_name(&mut self, length: usize) {
        let string = JSONSchemaProps {
            type_: Some("string".to_owned()),
            max_length: i64::try_from(length).ok(),
            ..JSONSchemaProps::default()
        };
        let metadata = JSONSchemaProps {
            type_: Some("object".to_owned()),
            properties: Some([("name".to_owned(), string)].into()),
            ..JSONSchemaProps::default()
        };
        let properties = self.0.properties.get_or_insert_default();
        properties.insert("metadata".to_owned(), metadata);
    }

    pub(super) fn max_length(self, length: i64) -> Self {
        self.0.max_length = Some(length);
        self
    }

    pub(super) fn max_items(self, items: i64) -> Self {
        self.0.max_items = Some(items);
        self
    }

    pub(super) fn max_properties(self, properties: i64) -> Self {
        self.0.max_properties = Some(properties);
        self
    }

    pub(super) fn minimum(self, least: f64) -> Self {
        self.0.minimum = Some(least);
        self
    }

    pub(super) fn pattern(self, pattern: &str) -> Self {
        self.0.pattern = Some(pattern.to_owned());
        self
    }

    pub(super) fn one_of(self, values: &[&str]) -> Self {
        let values = values.iter().map(|value| JSON((*value).into()));
        self.0.enum_ = Some(values.collect());
        self
    }

    pub(super) fn rule(mut self, rule: Rule) -> Self {
        self.add(rule);
        self
    }

    pub(super) fn add(&mut self, rule: Rule) {
        let rules = &mut self.0.x_kubernetes_validations;
        rules.get_or_insert_default().push(rule.0);
    }
}

/// A rule in CEL. `self` is the value of the field.
#[derive(Debug)]
pub(super) struct Rule(pub(super) ValidationRule);

impl Rule {
    /// What has to be true, and what is said otherwise.
    pub(super) fn new(rule: impl Into<String>, message: impl Into<String>) -> Self {
        Self(ValidationRule {
            rule: rule.into(),
            message: Some(message.into()),
            ..ValidationRule::default()
        })
    }

    /// Says the value of this expression in place of the message.
    pub(super) fn saying(mut self, expression: impl Into<String>) -> Self {
        self.0.message_expression = Some(expression.into());
        self
    }

    /// Names a field below as the one that is wrong.
    pub(super) fn about(mut self, field: &str) -> Self {
        self.0.field_path = Some(format!(".{field}"));
        self
    }

    /// The value is well-formed but not allowed now.
    pub(super) fn forbids(mut self) -> Self {
        self.0.reason = Some("FieldValueForbidden".to_owned());
        self
    }
}

/// A text as a string of CEL.
pub(super) fn text(text: &str) -> String {
    format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"))
}

/// An expression for a text in which `%s` stands for the value of `list`. Joined texts would have no bound for the API
/// server, but a text that is formatted costs nothing.
pub(super) fn format(message: &str, list: &str) -> String {
    format!("{}.format([{list}])", text(message))
}
