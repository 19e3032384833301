//! How results are written: as a table, as JSON or as YAML, byte for byte as NVIDIA Skyhook's plugin writes them, because
//! scripts read them.

mod yaml;

use std::str::FromStr;

use serde::Serialize;

/// The form of a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Table,
    /// A table with more columns.
    Wide,
    Json,
    Yaml,
}

/// A form of output that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid output format {0:?}")]
pub struct InvalidFormat(String);

impl FromStr for Format {
    type Err = InvalidFormat;

    fn from_str(text: &str) -> Result<Self, InvalidFormat> {
        match text.to_lowercase().as_str() {
            "table" => Ok(Self::Table),
            "wide" => Ok(Self::Wide),
            "json" => Ok(Self::Json),
            "yaml" => Ok(Self::Yaml),
            other => Err(InvalidFormat(other.to_owned())),
        }
    }
}

impl Format {
    /// The value as JSON or YAML; `None` for a table.
    pub fn data(self, value: &impl Serialize) -> Result<Option<String>, serde_json::Error> {
        match self {
            Self::Json => json(value).map(Some),
            Self::Yaml => yaml::render(value).map(Some),
            Self::Table | Self::Wide => Ok(None),
        }
    }
}

/// JSON as Go's `encoding/json` indents it.
fn json(value: &impl Serialize) -> Result<String, serde_json::Error> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    // Outside of strings JSON has none of these characters.
    for (plain, escaped) in [
        ('<', r"\u003c"),
        ('>', r"\u003e"),
        ('&', r"\u0026"),
        ('\u{2028}', r"\u2028"),
        ('\u{2029}', r"\u2029"),
    ] {
        if text.contains(plain) {
            text = text.replace(plain, escaped);
        }
    }
    Ok(text)
}

/// A table: a header, a row of dashes as long as each header, the rows. Columns are two spaces apart, and the last one is
/// not padded.
#[must_use]
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let dashes: Vec<String> = header.iter().map(|name| "-".repeat(name.len())).collect();
    let header: Vec<String> = header.iter().map(|name| (*name).to_owned()).collect();
    let lines = || [&header, &dashes].into_iter().chain(rows);
    let width = |column: usize| {
        let cells = lines().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    for line in lines() {
        for (column, cell) in line.iter().enumerate() {
            text.push_str(cell);
            if column + 1 < line.len() {
                let missing = widths[column].saturating_sub(cell.chars().count());
                text.push_str(&" ".repeat(missing + 2));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_pads_every_column_but_the_last() {
        let rows = [
            vec!["node-1".into(), "complete".into(), "2/2".into()],
            vec!["n".into(), "ERRORING".into(), "10/12".into()],
        ];
        let want = "\
NODE    STATUS    PACKAGES
----    ------    --------
node-1  complete  2/2
n       ERRORING  10/12
";
        assert_eq!(table(&["NODE", "STATUS", "PACKAGES"], &rows), want);
    }

    #[test]
    fn the_name_of_a_format_has_any_case() {
        for (text, want) in [
            ("table", Ok(Format::Table)),
            ("WIDE", Ok(Format::Wide)),
            ("Json", Ok(Format::Json)),
            ("yaml", Ok(Format::Yaml)),
            ("xml", Err(r#"invalid output format "xml""#.to_owned())),
        ] {
            let given = Format::from_str(text).map_err(|error| error.to_string());
            assert_eq!(given, want, "{text}");
        }
    }

    #[test]
    fn json_is_escaped_as_go_escapes_it() {
        let given = Format::Json
            .data(&json!({ "a": "<b> & c", "n": [] }))
            .unwrap();
        let want = "{\n  \"a\": \"\\u003cb\\u003e \\u0026 c\",\n  \"n\": []\n}\n";
        assert_eq!(given.as_deref(), Some(want));
    }
}
