//! Which proxy a request goes through, by the environment variables `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and
//! `NO_PROXY`, as the programs of a node understand them, which are written in Go. No I/O.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use reqwest::Url;

/// The variables, each in upper and in lower case. The first one that is not empty counts.
const HTTP: [&str; 2] = ["HTTP_PROXY", "http_proxy"];
const HTTPS: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];
const ALL: [&str; 2] = ["ALL_PROXY", "all_proxy"];
const NO: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// The proxies of an environment. A URL of a proxy may have a password, which is never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Proxies {
    http: Option<Url>,
    https: Option<Url>,
    no: NoProxy,
    /// What is wrong with the variables, without their values.
    pub(crate) problems: Vec<String>,
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |url: &Option<Url>| url.as_ref().map(|_| "***");
        f.debug_struct("Proxies")
            .field("http", &shown(&self.http))
            .field("https", &shown(&self.https))
            .field("no", &self.no.rules.len())
            .finish_non_exhaustive()
    }
}

/// The value of `NO_PROXY`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct NoProxy {
    everything: bool,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    Network(IpNet),
    Address {
        address: IpAddr,
        port: Option<String>,
    },
    /// All names that end with `suffix`, which has a dot at its beginning. With `itself`, also the name after the dot.
    Domain {
        suffix: String,
        itself: bool,
        port: Option<String>,
    },
}

impl Proxies {
    /// The proxies of the environment in which `get` finds a variable. `None` if no variable names a proxy: `NO_PROXY`
    /// alone says nothing.
    pub(crate) fn of(get: impl Fn(&str) -> Option<String>) -> Option<Self> {
        Self::read(&[HTTP, HTTPS, ALL], get)
    }

    /// The proxies of the environment of a program that is written in Go. It does not know `ALL_PROXY`.
    pub(crate) fn of_go(get: impl Fn(&str) -> Option<String>) -> Option<Self> {
        Self::read(&[HTTP, HTTPS], get)
    }

    fn read(known: &[[&str; 2]], get: impl Fn(&str) -> Option<String>) -> Option<Self> {
        if !known.as_flattened().iter().any(|name| get(name).is_some()) {
            return None;
        }
        let mut problems = Vec::new();
        let mut proxy = |names: [&str; 2]| {
            let (name, value) = first(&get, names)?;
            let url = url(&value);
            if url.is_none() {
                problems.push(format!("{name} is not the URL of a proxy, and is not used"));
            }
            url
        };
        let all = if known.contains(&ALL) {
            proxy(ALL)
        } else {
            None
        };
        Some(Self {
            http: proxy(HTTP).or_else(|| all.clone()),
            https: proxy(HTTPS).or(all),
            no: NoProxy::parse(&first(&get, NO).map_or_else(String::new, |(_, value)| value)),
            problems,
        })
    }

    /// The proxy for a request. The machine itself is never reached through a proxy.
    pub(crate) fn for_url(&self, url: &Url) -> Option<Url> {
        let proxy = match url.scheme() {
            "http" => self.http.as_ref(),
            "https" => self.https.as_ref(),
            _ => None,
        }?;
        let host = url.host_str()?;
        let port = url.port_or_known_default().unwrap_or_default();
        (!self.no.bypasses(host, &port.to_string())).then(|| proxy.clone())
    }
}

fn first<'a>(
    get: &impl Fn(&str) -> Option<String>,
    names: [&'a str; 2],
) -> Option<(&'a str, String)> {
    names.into_iter().find_map(|name| {
        let value = get(name).filter(|value| !value.is_empty())?;
        Some((name, value))
    })
}

/// Reads the URL of a proxy, which may be written without `http://`. As in Go, a SOCKS proxy also resolves the names of
/// servers.
fn url(text: &str) -> Option<Url> {
    let text = text.trim();
    let mut url = Url::parse(text)
        .ok()
        .filter(Url::has_host)
        .or_else(|| Url::parse(&format!("http://{text}")).ok())?;
    if url.scheme() == "socks5" {
        url.set_scheme("socks5h").ok()?;
    }
    let is_known = matches!(url.scheme(), "http" | "https" | "socks5" | "socks5h");
    (is_known && url.has_host()).then_some(url)
}

impl NoProxy {
    fn parse(text: &str) -> Self {
        let entries = text.split(',').map(|entry| entry.trim().to_lowercase());
        let mut no = Self::default();
        for entry in entries.filter(|entry| !entry.is_empty()) {
            if entry == "*" {
                no.everything = true;
            } else if let Some(rule) = rule(&entry) {
                no.rules.push(rule);
            }
        }
        no
    }

    fn bypasses(&self, host: &str, port: &str) -> bool {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let host = host.to_lowercase();
        let address = host.parse::<IpAddr>().ok().map(|it| it.to_canonical());
        host == "localhost"
            || address.is_some_and(|address| address.is_loopback())
            || self.everything
            || self
                .rules
                .iter()
                .any(|rule| rule.matches(&host, port, address))
    }
}

/// Reads one entry in lower case. `None` if it has no host.
fn rule(entry: &str) -> Option<Rule> {
    if let Ok(network) = entry.parse() {
        return Some(Rule::Network(network));
    }
    let (host, port) = match entry.rsplit_once(':') {
        // More than one colon without brackets: an IPv6 address.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
        _ => (entry, None),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = port.filter(|port| !port.is_empty()).map(str::to_owned);
    if let Ok(address) = host.parse::<IpAddr>() {
        let address = address.to_canonical();
        return Some(Rule::Address { address, port });
    }
    let host = host
        .strip_prefix('*')
        .filter(|it| it.starts_with('.'))
        .unwrap_or(host);
    match host {
        "" => None,
        host if host.starts_with('.') => Some(Rule::Domain {
            suffix: host.to_owned(),
            itself: false,
            port,
        }),
        host => Some(Rule::Domain {
            suffix: format!(".{host}"),
            itself: true,
            port,
        }),
    }
}

impl Rule {
    fn matches(&self, host: &str, port: &str, ip: Option<IpAddr>) -> bool {
        let is_port = |wanted: &Option<String>| wanted.as_ref().is_none_or(|it| it == port);
        match self {
            Self::Network(network) => ip.is_some_and(|ip| network.contains(&ip)),
            Self::Address { address, port } => ip == Some(*address) && is_port(port),
            Self::Domain {
                suffix,
                itself,
                port,
            } => {
                let is_host = host.ends_with(suffix.as_str()) || (*itself && host == &suffix[1..]);
                ip.is_none() && is_host && is_port(port)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Option<Proxies> {
        Proxies::of(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn no_proxy_is_understood_as_go_understands_it() {
        let table = [
            // Names: the name and everything below it, or with a dot only what is below it.
            ("foo.com", "http://foo.com", true),
            ("foo.com", "http://bar.foo.com", true),
            ("foo.com", "http://notfoo.com", false),
            ("FOO.com ", "http://foo.COM", true),
            (".foo.com", "http://bar.foo.com", true),
            (".foo.com", "http://foo.com", false),
            ("*.foo.com", "http://bar.foo.com", true),
            ("*.foo.com", "http://foo.com", false),
            ("*foo.com", "http://foo.com", false),
            // Ports.
            ("registry.local:5000", "http://registry.local:5000", true),
            ("registry.local:5000", "http://registry.local:5001", false),
            ("registry.local:443", "https://registry.local", true),
            ("registry.local:80", "http://registry.local", true),
            ("registry.local:80", "https://registry.local", false),
            (".local:5000", "http://registry.local:5000", true),
            // Addresses and networks.
            ("10.1.2.3", "http://10.1.2.3:5000", true),
            ("10.1.2.3:5000", "http://10.1.2.3:5000", true),
            ("10.1.2.3:5000", "http://10.1.2.3:5001", false),
            ("10.0.0.0/8", "https://10.1.2.3:5000", true),
            ("10.0.0.0/8", "http://11.1.2.3", false),
            ("10.0.0.0/8", "http://ten.example", false),
            ("fd00::/8", "http://[fd00::1]:5000", true),
            ("fd00::1", "http://[fd00::1]:5000", true),
            ("[fd00::1]:5000", "http://[fd00::1]:5000", true),
            ("[fd00::1]:5000", "http://[fd00::1]:5001", false),
            ("2.3", "http://10.1.2.3", false),
            // Lists.
            (" a.com , b.com,,c.com", "http://b.com", true),
            ("a.com b.com", "http://b.com", false),
            ("*", "http://any.example", true),
            ("a.com,*", "http://10.1.2.3", true),
            // Entries without a host.
            (":80", "http://any.example", false),
            ("", "http://any.example", false),
            // The machine itself.
            ("", "http://localhost:5000", true),
            ("", "http://127.0.0.1:5000", true),
            ("", "http://127.1.2.3", true),
            ("", "http://[::1]:5000", true),
            ("", "http://localhost.example", false),
        ];
        for (no, url, direct) in table {
            let variables = [
                ("HTTP_PROXY", "http://proxy:3128"),
                ("HTTPS_PROXY", "http://proxy:3128"),
                ("NO_PROXY", no),
            ];
            let proxies = proxies(&variables).unwrap();
            let proxy = proxies.for_url(&url.parse().unwrap());
            assert_eq!(proxy.is_none(), direct, "NO_PROXY={no} {url}");
        }
    }

    #[test]
    fn the_variable_for_the_scheme_counts_in_either_case() {
        let http = ("HTTP_PROXY", "http://one:1");
        type Variables<'a> = &'a [(&'a str, &'a str)];
        let table: [(Variables<'_>, &str, Option<&str>); 12] = [
            (&[http], "http://r.io", Some("http://one:1/")),
            (&[http], "https://r.io", None),
            (
                &[("https_proxy", "http://two:2")],
                "https://r.io",
                Some("http://two:2/"),
            ),
            (
                &[("HTTPS_PROXY", ""), ("https_proxy", "http://two:2")],
                "https://r.io",
                Some("http://two:2/"),
            ),
            (
                &[http, ("http_proxy", "http://two:2")],
                "http://r.io",
                Some("http://one:1/"),
            ),
            // As people write them.
            (
                &[("HTTP_PROXY", "proxy:3128")],
                "http://r.io",
                Some("http://proxy:3128/"),
            ),
            (
                &[("HTTP_PROXY", "10.0.0.1:3128")],
                "http://r.io",
                Some("http://10.0.0.1:3128/"),
            ),
            (
                &[("HTTP_PROXY", "http://u:p%40@proxy:1/")],
                "http://r.io",
                Some("http://u:p%40@proxy:1/"),
            ),
            (
                &[("HTTPS_PROXY", "socks5://proxy:1080")],
                "https://r.io",
                Some("socks5h://proxy:1080"),
            ),
            (
                &[("ALL_PROXY", "http://all:1")],
                "https://r.io",
                Some("http://all:1/"),
            ),
            (&[("HTTP_PROXY", "ftp://x")], "http://r.io", None),
            (
                &[("HTTP_PROXY", ""), ("NO_PROXY", "x")],
                "http://r.io",
                None,
            ),
        ];
        for (variables, url, want) in table {
            let proxy = proxies(variables).unwrap().for_url(&url.parse().unwrap());
            assert_eq!(proxy.as_ref().map(Url::as_str), want, "{variables:?} {url}");
        }
        for (name, is_own, is_go) in [
            ("PATH", false, false),
            // It must not hide the proxies of another environment.
            ("NO_PROXY", false, false),
            ("ALL_PROXY", true, false),
            ("http_proxy", true, true),
        ] {
            let get = |key: &str| (key == name).then(|| "http://all:1".to_owned());
            assert_eq!(Proxies::of(get).is_some(), is_own, "{name}");
            assert_eq!(Proxies::of_go(get).is_some(), is_go, "{name}");
        }
        let both = |key: &str| {
            let is_set = ["ALL_PROXY", "HTTP_PROXY"].contains(&key);
            is_set.then(|| "http://all:1".to_owned())
        };
        let url = "https://r.io".parse().unwrap();
        assert!(Proxies::of(both).unwrap().for_url(&url).is_some());
        assert!(Proxies::of_go(both).unwrap().for_url(&url).is_none());
    }

    #[test]
    fn a_password_is_never_printed() {
        for value in [
            "http://user:hunter2@proxy:1",
            "ftp://user:hunter2@proxy:1",
            "user:hunter2@:x",
        ] {
            let proxies = proxies(&[("HTTPS_PROXY", value)]).unwrap();
            let text = format!("{proxies:?} {:?}", proxies.problems);
            assert!(!text.contains("hunter2"), "{text}");
        }
        let wrong = proxies(&[("HTTPS_PROXY", "ftp://x")]).unwrap();
        assert_eq!(
            wrong.problems,
            ["HTTPS_PROXY is not the URL of a proxy, and is not used"]
        );
    }
}
