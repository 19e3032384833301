//! Which redirects are followed. No I/O.

use reqwest::Url;

/// Why a redirect from one URL to another is not followed. `None` if it is.
pub(super) fn problem(from: &Url, to: &Url) -> Option<&'static str> {
    if !matches!(to.scheme(), "http" | "https") {
        return Some("to a URL that is neither http nor https");
    }
    (from.scheme() == "https" && to.scheme() == "http").then_some(
        "from https to http: the registry does not know that its proxy speaks TLS, so set X-Forwarded-Proto there",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_never_leads_away_from_tls() {
        for (from, to, want) in [
            ("https://r/v2", "https://cdn/x", None),
            ("http://r/v2", "https://cdn/x", None),
            ("http://r/v2", "http://cdn/x", None),
            ("https://r/v2", "http://r/v2/x", Some("X-Forwarded-Proto")),
            ("https://r/v2", "ftp://r/x", Some("neither http nor https")),
        ] {
            let url = |text: &str| text.parse::<Url>().unwrap();
            let problem = problem(&url(from), &url(to));
            let says = |want: &str| problem.is_some_and(|problem| problem.contains(want));
            assert!(
                want.map_or(problem.is_none(), says),
                "{from} {to}: {problem:?}"
            );
        }
    }
}
