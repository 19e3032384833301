//! The user's own logins to registries: those of docker and podman.
#![expect(
    clippy::disallowed_methods,
    reason = "this is shell: environment, files and programs"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, anyhow};
use nix::unistd::User;
use serde::Deserialize;
use serde_json::{Value, json};
use skyhook_oci::Credentials;

/// The files in a home directory.
const IN_HOME: [&str; 2] = [".docker/config.json", ".config/containers/auth.json"];
/// How docker calls Docker Hub in its configuration.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// The logins for a registry: those in `given`, or those that the user has.
pub(super) fn of(given: Option<&Path>, registry: &str) -> anyhow::Result<Credentials> {
    if let Some(file) = given {
        let failed = || format!("--docker-config {}", file.display());
        let text = fs::read(file).with_context(failed)?;
        return Login {
            file: file.to_owned(),
            of: None,
        }
        .credentials(&text, registry)
        .with_context(failed);
    }
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let user = variable("SUDO_USER").and_then(|name| User::from_name(&name).ok().flatten());
    let mut all = Credentials::anonymous();
    for login in logins(&variable, user.as_ref()) {
        let source = login.file.display().to_string();
        let read = match fs::read(&login.file) {
            Ok(text) => login.credentials(&text, registry),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => Err(error.into()),
        };
        let read =
            read.unwrap_or_else(|error| Credentials::unusable(&source, format!("{error:#}")));
        all = all.merge(read.from_source(&source));
    }
    for problem in all.all_problems() {
        eprintln!("warning: {problem}");
    }
    Ok(all)
}

/// A file with logins.
struct Login {
    file: PathBuf,
    /// The user who runs sudo, if it is that user's file: programs that have the logins are run for that user.
    of: Option<User>,
}

/// The files that may exist, in the order in which they are used.
fn logins(variable: &impl Fn(&str) -> Option<String>, user: Option<&User>) -> Vec<Login> {
    let mut files: Vec<PathBuf> = Vec::new();
    files.extend(variable("REGISTRY_AUTH_FILE").map(PathBuf::from));
    let runtime = variable("XDG_RUNTIME_DIR").map(PathBuf::from);
    files.extend(runtime.map(|directory| directory.join("containers/auth.json")));
    let docker = variable("DOCKER_CONFIG").map(PathBuf::from);
    files.extend(docker.map(|directory| directory.join("config.json")));
    let home = variable("HOME").map(PathBuf::from);
    files.extend(
        home.iter()
            .flat_map(|home| IN_HOME.map(|file| home.join(file))),
    );
    let mut all: Vec<Login> = files
        .into_iter()
        .map(|file| Login { file, of: None })
        .collect();
    if let Some(user) = user {
        let runtime = PathBuf::from(format!("/run/user/{}/containers/auth.json", user.uid));
        let mut files = vec![runtime];
        files.extend(IN_HOME.map(|file| user.dir.join(file)));
        all.extend(files.into_iter().map(|file| Login {
            file,
            of: Some(user.clone()),
        }));
    }
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|login| seen.insert(login.file.clone()));
    all
}

/// What such a file says about programs that have the logins.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Helpers {
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}

/// What such a program answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

impl Login {
    fn credentials(&self, text: &[u8], registry: &str) -> anyhow::Result<Credentials> {
        let mut config: Value = serde_json::from_slice(text).context("it is not JSON")?;
        if let Some((helper, key)) = helper_of(&config, registry)
            && let Some(answer) = self.ask(&format!("docker-credential-{helper}"), &key)?
        {
            put(&mut config, &key, answer);
        }
        if config.get("auths").is_none() {
            return Ok(Credentials::anonymous());
        }
        Ok(Credentials::from_docker_config(
            config.to_string().as_bytes(),
        )?)
    }

    /// Asks a program. `None`: it has no login for the registry.
    fn ask(&self, program: &str, registry: &str) -> anyhow::Result<Option<Answer>> {
        let mut command = Command::new(program);
        if let Some(user) = &self.of {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
            command.env("HOME", &user.dir);
            command.env("XDG_RUNTIME_DIR", format!("/run/user/{}", user.uid));
        }
        let failed = || format!("{program}, which has the login, cannot be run");
        let mut child = command
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read its input says with its exit code what that means.
            let _sent = writeln!(stdin, "{registry}");
        }
        let output = child.wait_with_output().with_context(failed)?;
        if !output.status.success() {
            return Ok(None);
        }
        // The error could have a part of the answer.
        let answer = serde_json::from_slice(&output.stdout)
            .map_err(|_| anyhow!("{program} did not answer with a login"))?;
        Ok(Some(answer))
    }
}

/// The program that has the login for a registry, and the name that it knows the registry by.
fn helper_of(config: &Value, registry: &str) -> Option<(String, String)> {
    let helpers = Helpers::deserialize(config).unwrap_or_default();
    let hub = ["docker.io", "index.docker.io", "registry-1.docker.io"];
    let is_hub = hub.contains(&registry);
    let key = if is_hub { DOCKER_HUB } else { registry };
    let of_registry = [key, registry]
        .into_iter()
        .find_map(|name| helpers.cred_helpers.get(name).cloned());
    let helper = of_registry.unwrap_or(helpers.creds_store);
    (!helper.is_empty()).then(|| (helper, key.to_owned()))
}

/// Puts a login in the place of the empty entry that docker writes when a program has it.
fn put(config: &mut Value, key: &str, answer: Answer) {
    let Answer { username, secret } = answer;
    let login = match username.as_str() {
        "<token>" => json!({ "identitytoken": secret }),
        _ => json!({ "username": username, "password": secret }),
    };
    if !config["auths"].is_object() {
        config["auths"] = json!({});
    }
    config["auths"][key] = login;
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use nix::unistd::Uid;

    use super::*;

    #[test]
    fn files_of_both_users_are_read_each_once() {
        let variables = BTreeMap::from([
            ("DOCKER_CONFIG", "/d"),
            ("REGISTRY_AUTH_FILE", "/auth.json"),
            ("HOME", "/root"),
        ]);
        let variable = |name: &str| variables.get(name).map(ToString::to_string);
        let mut root = User::from_uid(Uid::from_raw(0)).unwrap().unwrap();
        root.dir = "/root".into();
        let files: Vec<String> = logins(&variable, Some(&root))
            .into_iter()
            .map(|login| login.file.display().to_string())
            .collect();
        let want = [
            "/auth.json",
            "/d/config.json",
            "/root/.docker/config.json",
            "/root/.config/containers/auth.json",
            "/run/user/0/containers/auth.json",
        ];
        assert_eq!(files, want);
    }

    #[test]
    fn the_program_of_the_registry_comes_before_that_of_all() {
        let both = json!({ "credsStore": "all", "credHelpers": { "r.example": "one", "https://index.docker.io/v1/": "hub" } });
        let one = json!({ "credHelpers": { "r.example": "one" } });
        for (config, registry, want) in [
            (&both, "r.example", Some(("one", "r.example"))),
            (&both, "other.example", Some(("all", "other.example"))),
            (&both, "docker.io", Some(("hub", DOCKER_HUB))),
            (&one, "other.example", None),
            (&json!({}), "r.example", None),
        ] {
            let want = want.map(|(helper, key)| (helper.to_owned(), key.to_owned()));
            assert_eq!(helper_of(config, registry), want, "{registry}");
        }
    }

    #[test]
    fn a_login_takes_the_place_of_an_empty_entry() {
        let answer = |username: &str| Answer {
            username: username.to_owned(),
            secret: "s".to_owned(),
        };
        let mut config = json!({ "auths": { "r.example": {}, "other.example": { "auth": "x" } } });
        put(&mut config, "r.example", answer("u"));
        let want = json!({ "auths": {
            "r.example": { "username": "u", "password": "s" }, "other.example": { "auth": "x" },
        } });
        assert_eq!(config, want);
        let mut config = json!({});
        put(&mut config, "r.example", answer("<token>"));
        let want = json!({ "auths": { "r.example": { "identitytoken": "s" } } });
        assert_eq!(config, want);
    }

    #[test]
    fn a_program_is_asked_for_a_login() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("docker-credential-x");
        let script = "#!/bin/sh\n[ $1 = get ] || exit 2\nread registry\n[ $registry = none.example ] && exit 1\n\
                      [ $registry = odd.example ] && echo '{\"Username\": secret' && exit 0\n\
                      echo '{\"ServerURL\":\"x\",\"Username\":\"u\",\"Secret\":\"of '$registry'\"}'\n";
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let ask = |program: &Path, registry: &str| {
            let login = Login {
                file: PathBuf::new(),
                of: None,
            };
            let answer = login.ask(&program.display().to_string(), registry);
            let answer = answer.map_err(|error| format!("{error:#}"))?;
            Ok(answer.map(|answer| (answer.username, answer.secret)))
        };
        let login = ("u".to_owned(), "of r.example".to_owned());
        assert_eq!(ask(&program, "r.example"), Ok::<_, String>(Some(login)));
        assert_eq!(ask(&program, "none.example"), Ok(None));
        let odd = ask(&program, "odd.example").unwrap_err();
        assert!(odd.ends_with("did not answer with a login"), "{odd}");
        let missing = ask(&directory.path().join("missing"), "r.example").unwrap_err();
        assert!(
            missing.contains("missing, which has the login, cannot be run: "),
            "{missing}"
        );
    }
}
