//! containerd's `hosts.toml`. No I/O.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{HostSettings, HostsError, RegistrySettings};

/// Reads a `hosts.toml`. Paths in it are relative to `dir`.
pub(crate) fn parse(text: &str, dir: &Path) -> Result<RegistrySettings, HostsError> {
    let path = dir.join("hosts.toml");
    let table: Table = text
        .parse()
        .map_err(|error| HostsError::toml(&path, text, &error))?;
    let reader = Reader { dir, path };
    let mut settings = RegistrySettings::default();
    if let Some(hosts) = table.get("host") {
        let hosts = hosts
            .as_table()
            .ok_or_else(|| reader.wrong("host", "a table"))?;
        for (url, host) in hosts {
            let field = format!("host.{url:?}");
            let host = host
                .as_table()
                .ok_or_else(|| reader.wrong(&field, "a table"))?;
            settings.hosts.push(reader.host(url.clone(), &field, host)?);
        }
    }
    let server = match table.get("server") {
        None => String::new(),
        Some(Value::String(url)) => url.clone(),
        Some(_) => return Err(reader.wrong("server", "a string")),
    };
    let own = [
        "server",
        "ca",
        "client",
        "skip_verify",
        "override_path",
        "header",
        "rewrite",
    ];
    if own.iter().any(|key| table.contains_key(*key)) {
        settings.server = Some(reader.host(server, "", &table)?);
    }
    Ok(settings)
}

struct Reader<'a> {
    dir: &'a Path,
    path: PathBuf,
}

impl Reader<'_> {
    fn wrong(&self, field: &str, want: &'static str) -> HostsError {
        HostsError::Field {
            path: self.path.clone(),
            field: field.to_owned(),
            want,
        }
    }

    fn host(&self, url: String, field: &str, table: &Table) -> Result<HostSettings, HostsError> {
        let name = |key: &str| {
            if field.is_empty() {
                key.to_owned()
            } else {
                format!("{field}.{key}")
            }
        };
        let boolean = |key| match table.get(key) {
            None => Ok(false),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.wrong(&name(key), "true or false")),
        };
        let ca = self.texts(&name("ca"), table.get("ca"))?;
        let capabilities = self.texts(&name("capabilities"), table.get("capabilities"))?;
        Ok(HostSettings {
            url,
            capabilities: capabilities.iter().map(|it| it.to_lowercase()).collect(),
            ca: ca.iter().map(|path| self.dir.join(path)).collect(),
            client: self.client(&name("client"), table.get("client"))?,
            skip_verify: boolean("skip_verify")?,
            override_path: boolean("override_path")?,
            header: self.map(&name("header"), table.get("header"))?,
            rewrite: self
                .map(&name("rewrite"), table.get("rewrite"))?
                .into_iter()
                .map(|(key, values)| (key, values.concat()))
                .collect(),
            repository: None,
            plain_fallback: false,
        })
    }

    /// Reads a string or an array of strings.
    fn texts(&self, field: &str, value: Option<&Value>) -> Result<Vec<String>, HostsError> {
        let wrong = || self.wrong(field, "a string or an array of strings");
        match value {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text.clone()]),
            Some(Value::Array(values)) => {
                let texts = values.iter().map(|value| value.as_str().map(str::to_owned));
                texts.collect::<Option<_>>().ok_or_else(wrong)
            }
            Some(_) => Err(wrong()),
        }
    }

    /// Reads a file, an array of files, or an array of pairs of files.
    fn client(
        &self,
        field: &str,
        value: Option<&Value>,
    ) -> Result<Vec<(PathBuf, Option<PathBuf>)>, HostsError> {
        let wrong = || {
            self.wrong(
                field,
                "a file, files, or pairs of certificate and key files",
            )
        };
        let Some(Value::Array(values)) = value else {
            let files = self.texts(field, value).map_err(|_| wrong())?;
            return Ok(files
                .iter()
                .map(|file| (self.dir.join(file), None))
                .collect());
        };
        let mut pairs = Vec::new();
        for value in values {
            match self
                .texts(field, Some(value))
                .map_err(|_| wrong())?
                .as_slice()
            {
                [both] => pairs.push((self.dir.join(both), None)),
                [certificate, key] => {
                    pairs.push((self.dir.join(certificate), Some(self.dir.join(key))));
                }
                _ => return Err(wrong()),
            }
        }
        Ok(pairs)
    }

    fn map(
        &self,
        field: &str,
        value: Option<&Value>,
    ) -> Result<BTreeMap<String, Vec<String>>, HostsError> {
        let Some(value) = value else {
            return Ok(BTreeMap::new());
        };
        let table = value
            .as_table()
            .ok_or_else(|| self.wrong(field, "a table"))?;
        table
            .iter()
            .map(|(key, value)| {
                Ok((
                    key.clone(),
                    self.texts(&format!("{field}.{key}"), Some(value))?,
                ))
            })
            .collect()
    }
}
