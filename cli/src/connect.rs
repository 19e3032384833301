//! From kubectl's flags and the kubeconfig to a client.

use anyhow::{Context as _, Result};
use http::{HeaderName, HeaderValue};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::{Client, client::ClientBuilder};

use crate::args::Connection;

/// A client for the cluster that the flags name.
pub(crate) async fn client(flags: &Connection) -> Result<Client> {
    let config = config(flags)
        .await
        .context("initializing kubernetes client")?;
    let builder = ClientBuilder::try_from(config).context("initializing kubernetes client")?;
    Ok(builder.build())
}

async fn config(flags: &Connection) -> Result<Config> {
    let options = KubeConfigOptions {
        context: flags.context.clone(),
        cluster: flags.cluster.clone(),
        user: flags.user.clone(),
    };
    let chosen = [&flags.context, &flags.cluster, &flags.user];
    let is_chosen = chosen.into_iter().any(Option::is_some);
    let mut config = if let Some(path) = &flags.kubeconfig {
        Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?
    } else {
        match Config::from_kubeconfig(&options).await {
            Ok(config) => config,
            // As in a pod.
            Err(error) if is_chosen => return Err(error.into()),
            Err(error) => match (&flags.server, Config::incluster()) {
                (Some(server), Err(_)) => Config::new(server.parse().context("--server")?),
                (_, Ok(config)) => config,
                (None, Err(_)) => return Err(error.into()),
            },
        }
    };
    if let Some(server) = &flags.server {
        config.cluster_url = server.parse().context("--server")?;
    }
    if let Some(file) = &flags.certificate_authority {
        config.root_cert = None;
        config.root_cert_file = Some(file.clone());
    }
    if let Some(insecure) = flags.insecure_skip_tls_verify {
        config.accept_invalid_certs = insecure;
    }
    if flags.tls_server_name.is_some() {
        config.tls_server_name.clone_from(&flags.tls_server_name);
    }
    if let Some(timeout) = flags.request_timeout {
        config.read_timeout = Some(timeout).filter(|timeout| !timeout.is_zero());
    }
    authenticate(&mut config, flags);
    impersonate(&mut config, flags)?;
    Ok(config)
}

fn authenticate(config: &mut Config, flags: &Connection) {
    let auth = &mut config.auth_info;
    if let Some(token) = &flags.token {
        auth.token = Some(token.clone().into());
        auth.token_file = None;
        auth.exec = None;
        auth.auth_provider = None;
    }
    if let Some(file) = &flags.client_certificate {
        auth.client_certificate = Some(file.clone());
        auth.client_certificate_data = None;
    }
    if let Some(file) = &flags.client_key {
        auth.client_key = Some(file.clone());
        auth.client_key_data = None;
    }
}

/// The client itself sends no headers for `--as`, nor for the same fields of a kubeconfig.
fn impersonate(config: &mut Config, flags: &Connection) -> Result<()> {
    let auth = &config.auth_info;
    let user = flags.as_user.as_ref().or(auth.impersonate.as_ref());
    let uid = flags.as_uid.as_ref().or(auth.impersonate_uid.as_ref());
    let of_config = auth.impersonate_groups.clone().unwrap_or_default();
    let groups = if flags.as_group.is_empty() {
        of_config
    } else {
        flags.as_group.clone()
    };
    let all = user
        .map(|user| ("impersonate-user", user.clone()))
        .into_iter()
        .chain(uid.map(|uid| ("impersonate-uid", uid.clone())))
        .chain(groups.into_iter().map(|group| ("impersonate-group", group)));
    let headers: Vec<(HeaderName, HeaderValue)> = all
        .map(|(name, value)| {
            let value = HeaderValue::from_str(&value);
            let value =
                value.with_context(|| format!("{name} has characters that no header may have"))?;
            Ok((HeaderName::from_static(name), value))
        })
        .collect::<Result<_>>()?;
    config.headers.extend(headers);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_win_over_the_kubeconfig() {
        let mut config = Config::new("https://a.example".parse().unwrap());
        config.auth_info.impersonate = Some("of-the-file".into());
        config.auth_info.impersonate_groups = Some(vec!["g0".into()]);
        let sent = |config: &Config| -> Vec<String> {
            let headers = config.headers.iter();
            headers
                .map(|(name, value)| format!("{name}={}", value.to_str().unwrap()))
                .collect()
        };
        let mut of_file = config.clone();
        impersonate(&mut of_file, &Connection::default()).unwrap();
        let want = ["impersonate-user=of-the-file", "impersonate-group=g0"];
        assert_eq!(sent(&of_file), want);
        let flags = Connection {
            as_user: Some("me".into()),
            as_group: vec!["g1".into(), "g2".into()],
            ..Connection::default()
        };
        impersonate(&mut config, &flags).unwrap();
        let want = [
            "impersonate-user=me",
            "impersonate-group=g1",
            "impersonate-group=g2",
        ];
        assert_eq!(sent(&config), want);
    }
}
