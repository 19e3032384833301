//! Checks the JSON Schema of `config.json`, which is for editors, with the crate `jsonschema`. The table `cases.json` says
//! who refuses which file. A test in `oci/src/package_config` holds our own check against the same table.

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use jsonschema::Validator;
    use serde_json::Value;

    fn root() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
    }

    fn read(file: impl AsRef<Path>) -> Value {
        let file = file.as_ref();
        let text = fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        serde_json::from_slice(&text).unwrap()
    }

    fn schema() -> Validator {
        let schema = read(root().join("oci/schema/config.schema.json"));
        jsonschema::draft202012::meta::validate(&schema).unwrap();
        jsonschema::draft202012::new(&schema).unwrap()
    }

    /// The place of a JSON pointer, which need not exist.
    fn place<'a>(value: &'a mut Value, pointer: &str) -> &'a mut Value {
        let mut place = value;
        for key in pointer.split('/').skip(1) {
            place = match place {
                Value::Array(all) => &mut all[key.parse::<usize>().unwrap()],
                other => &mut other[key],
            };
        }
        place
    }

    fn edited(good: &Value, case: &Value) -> Value {
        let mut value = good.clone();
        for (pointer, new) in case["set"].as_object().into_iter().flatten() {
            *place(&mut value, pointer) = new.clone();
        }
        if let Some((parent, key)) = case["remove"].as_str().and_then(|it| it.rsplit_once('/')) {
            place(&mut value, parent)
                .as_object_mut()
                .unwrap()
                .remove(key);
        }
        value
    }

    #[test]
    fn the_schema_says_what_the_table_says() {
        let schema = schema();
        let table = read(root().join("oci/schema/cases.json"));
        let cases = table["cases"].as_array().unwrap();
        for case in cases {
            let value = edited(&table["good"], case);
            let problems: Vec<String> = schema
                .iter_errors(&value)
                .map(|it| it.to_string())
                .collect();
            assert_eq!(
                !problems.is_empty(),
                case["refused"] == "both",
                "{case}: {problems:?}"
            );
        }
        assert!(cases.len() > 80, "{} cases", cases.len());
    }

    #[test]
    fn the_schema_accepts_the_packages_that_there_are() {
        let schema = schema();
        let mut found = 0;
        for directory in ["examples/packages", "integration/fixtures/packages"] {
            let packages = fs::read_dir(root().join(directory)).unwrap();
            let files = packages.map(|entry| entry.unwrap().path().join("config.json"));
            for file in files.filter(|file| file.exists()) {
                let value = read(&file);
                let problems: Vec<String> = schema
                    .iter_errors(&value)
                    .map(|it| it.to_string())
                    .collect();
                assert!(problems.is_empty(), "{}: {problems:?}", file.display());
                if let Some(named) = value["$schema"].as_str() {
                    let named = file.parent().unwrap().join(named);
                    assert!(
                        named.exists(),
                        "{} names {}",
                        file.display(),
                        named.display()
                    );
                }
                found += 1;
            }
        }
        assert!(found > 5, "{found} packages");
    }
}
