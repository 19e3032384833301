//! Platforms of images, and which of them run on a host. The rules are those of containerd.

use std::fmt;

/// Operating system, architecture and variant, in the names that Go and OCI use.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: Option<String>,
}

impl Platform {
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let variant = variant
            .filter(|variant| !variant.is_empty())
            .map(str::to_owned);
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant,
        }
    }

    /// The platform this program was built for.
    pub fn host() -> Self {
        match std::env::consts::ARCH {
            "x86_64" => Self::new("linux", "amd64", None),
            "x86" => Self::new("linux", "386", None),
            "aarch64" => Self::new("linux", "arm64", Some("v8")),
            "arm" => Self::new("linux", "arm", Some("v7")),
            "powerpc64" => Self::new("linux", "ppc64le", None),
            "loongarch64" => Self::new("linux", "loong64", None),
            other => Self::new("linux", other, None),
        }
    }

    /// The platform with the names that all of its spellings stand for.
    fn normal(&self) -> Self {
        let lower = |text: &str| text.trim().to_ascii_lowercase();
        let (os, architecture) = (lower(&self.os), lower(&self.architecture));
        let variant = lower(self.variant.as_deref().unwrap_or_default());
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
            ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
            ("aarch64" | "arm64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "8") => ("arm", "v8"),
            (other, variant) => (other, variant),
        };
        let os = if os.is_empty() { "linux" } else { &os };
        Self::new(os, architecture, Some(variant))
    }

    /// The platforms whose images run here, the best one first.
    fn runs(&self) -> Vec<Self> {
        let here = self.normal();
        let of = |architecture, variant: &str| Self::new(&here.os, architecture, Some(variant));
        let number = |variant: &str| variant.trim_start_matches('v').parse::<u32>().ok();
        let variant = here.variant.clone().unwrap_or_default();
        match here.architecture.as_str() {
            "amd64" => {
                let level = number(&variant).unwrap_or(1);
                let lower = (1..level.min(8)).rev();
                let lower = lower.map(|level| of("amd64", &format!("v{level}")).normal());
                let mut all = vec![here.clone()];
                all.extend(lower);
                all.push(of("386", ""));
                all
            }
            "arm" => {
                let version = number(&variant).unwrap_or(7);
                let lower = (5..version.min(9)).rev();
                let lower = lower.map(|version| of("arm", &format!("v{version}")));
                [vec![here.clone()], lower.collect()].concat()
            }
            "arm64" => {
                let (major, minor) = variant.split_once('.').unwrap_or((&variant, "0"));
                let minor = minor.parse::<u32>().unwrap_or(0).min(9);
                // A processor of version 9.n runs what one of version 8.(n+5) runs.
                let versions = match number(major) {
                    None | Some(8) => vec![(8, minor)],
                    Some(9) => vec![(9, minor), (8, (minor + 5).min(9))],
                    Some(_) => Vec::new(),
                };
                let mut all = vec![here.clone()];
                for (major, minor) in versions {
                    let minors = (0..=minor).rev();
                    all.extend(minors.map(|minor| match minor {
                        0 => of("arm64", &format!("v{major}")).normal(),
                        _ => of("arm64", &format!("v{major}.{minor}")),
                    }));
                }
                all.extend([8, 7, 6, 5].map(|version| of("arm", &format!("v{version}"))));
                all
            }
            _ => vec![here],
        }
    }

    /// How well an image for `other` fits this platform. `None` if it does not run here, else a number: a lower
    /// number fits better.
    pub(crate) fn fit(&self, other: &Self) -> Option<usize> {
        let other = other.normal();
        self.runs().iter().position(|platform| *platform == other)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/');
        let (os, architecture) = (parts.next().unwrap(), parts.next().unwrap());
        Platform::new(os, architecture, parts.next())
    }

    /// Each row has a host, and the platforms in the order in which containerd prefers them there.
    #[test]
    fn a_host_runs_what_containerd_runs_there() {
        let table = [
            ("linux/amd64", "linux/amd64 linux/386"),
            (
                "linux/amd64/v3",
                "linux/amd64/v3 linux/amd64/v2 linux/amd64/v1 linux/386",
            ),
            (
                "linux/arm64/v8",
                "linux/arm64 linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5",
            ),
            (
                "linux/arm64",
                "linux/arm64/v8 linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5",
            ),
            (
                "linux/arm64/v8.2",
                "linux/arm64/v8.2 linux/arm64/v8.1 linux/arm64/v8 linux/arm/v8",
            ),
            (
                "linux/arm64/v9",
                "linux/arm64/v9 linux/arm64/v8.5 linux/arm64/v8.1 linux/arm64 linux/arm/v8",
            ),
            ("linux/arm/v7", "linux/arm/v7 linux/arm/v6 linux/arm/v5"),
            ("linux/arm/v5", "linux/arm/v5"),
            ("linux/riscv64", "linux/riscv64"),
            ("linux/386", "linux/386"),
        ];
        for (host, want) in table {
            let host = platform(host);
            let ranks: Vec<_> = want
                .split(' ')
                .map(|other| host.fit(&platform(other)).unwrap_or(usize::MAX))
                .collect();
            assert!(ranks.is_sorted() && ranks[0] == 0, "{host}: {ranks:?}");
            assert!(!ranks.contains(&usize::MAX), "{host}: {ranks:?}");
        }
        for (host, other) in [
            ("linux/amd64", "linux/amd64/v2"),
            ("linux/amd64/v2", "linux/amd64/v3"),
            ("linux/amd64", "linux/arm64"),
            ("linux/amd64", "windows/amd64"),
            ("linux/amd64", "unknown/unknown"),
            ("linux/arm64", "linux/arm64/v9"),
            ("linux/arm64/v8.1", "linux/arm64/v8.2"),
            ("linux/arm/v6", "linux/arm/v7"),
            ("linux/386", "linux/amd64"),
        ] {
            assert_eq!(platform(host).fit(&platform(other)), None, "{host} {other}");
        }
    }

    #[test]
    fn a_platform_may_be_spelled_in_several_ways() {
        for (host, other) in [
            ("linux/amd64", "linux/x86_64"),
            ("linux/amd64", "Linux/AMD64"),
            ("linux/amd64", "linux/amd64/v1"),
            ("linux/amd64", "/amd64"),
            ("linux/arm64", "linux/aarch64"),
            ("linux/arm64", "linux/arm64/8"),
            ("linux/arm/v7", "linux/arm"),
            ("linux/arm/v7", "linux/armhf"),
            ("linux/386", "linux/i386"),
        ] {
            assert_eq!(platform(host).fit(&platform(other)), Some(0), "{other}");
        }
    }
}
