//! Image manifests, indexes and configs as data: decoding, checks, and the choice of a platform.
//! No I/O.

use std::fmt;

use oci_client::manifest::{
    IMAGE_DOCKER_LAYER_GZIP_MEDIA_TYPE, IMAGE_DOCKER_LAYER_TAR_MEDIA_TYPE,
    IMAGE_LAYER_GZIP_MEDIA_TYPE, IMAGE_LAYER_MEDIA_TYPE,
    IMAGE_LAYER_NONDISTRIBUTABLE_GZIP_MEDIA_TYPE, IMAGE_LAYER_NONDISTRIBUTABLE_MEDIA_TYPE,
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, ImageIndexEntry,
    OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageIndex,
    OciImageManifest,
};
use serde::Deserialize;

use crate::digest::{Digest, DigestError};
use crate::limits::{Limit, LimitExceeded, Limits};

/// The media types that are requested and understood.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    pub digest: Digest,
    /// Bytes as the registry sends them.
    pub size: u64,
    pub compression: Compression,
}

/// A decoded image manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: (Digest, u64),
    pub(crate) layers: Vec<Layer>,
}

/// The document that a registry sends for a manifest request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Document {
    Index(Vec<Candidate>),
    Image(Manifest),
}

/// One image of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// `None` if the index does not name a platform: the entry is an attestation, or an image for every platform.
    pub(crate) platform: Option<Platform>,
    attestation: bool,
}

/// Operating system, architecture and variant, in the names that Go and OCI use.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: Option<String>,
}

/// Why the manifest, the index or the config of an image is refused. Another try does not help, because the document
/// would be the same.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("{what} is not the JSON document that it should be")]
    Json {
        what: &'static str,
        source: serde_json::Error,
    },
    #[error("media type {0:?} is not an image manifest or index")]
    MediaType(String),
    #[error(
        "layer {index} has media type {media_type:?}, which is not a tar, tar+gzip or tar+zstd layer"
    )]
    LayerType { index: usize, media_type: String },
    #[error("{what} has a bad digest")]
    Digest { what: String, source: DigestError },
    #[error("{what} has the invalid size {size}")]
    Size { what: String, size: i64 },
    #[error("no image for {wanted}; the index has: {present}")]
    NoPlatform { wanted: String, present: String },
    #[error("the image is for {is}, this host is {wanted}")]
    WrongPlatform { wanted: String, is: String },
    #[error("the manifest has {layers} layers, its config {diff_ids} diff IDs")]
    DiffIds { layers: usize, diff_ids: usize },
    #[error("{what}")]
    Limit {
        what: &'static str,
        source: LimitExceeded,
    },
    #[error("an index inside an index is not supported")]
    NestedIndex,
}

impl ImageError {
    /// A short name of the error, for queries in logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Json { .. } => "image_json",
            Self::MediaType(_) | Self::LayerType { .. } => "media_type",
            Self::Digest { .. } | Self::Size { .. } => "descriptor",
            Self::NoPlatform { .. } | Self::WrongPlatform { .. } => "no_platform",
            Self::DiffIds { .. } => "diff_id",
            Self::Limit { .. } => "limit",
            Self::NestedIndex => "nested_index",
        }
    }
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
            other => Self::new("linux", other, None),
        }
    }

    /// How well an image for `other` fits this platform. `None` if it does not run here, else a number: a lower
    /// number fits better.
    fn fit(&self, other: &Self) -> Option<u32> {
        if (&self.os, &self.architecture) != (&other.os, &other.architecture) {
            return None;
        }
        let level = |platform: &Self| {
            let default = match platform.architecture.as_str() {
                "arm64" => 8,
                "arm" => 7,
                _ => 1,
            };
            match &platform.variant {
                None => Some(default),
                Some(variant) => variant.trim_start_matches('v').parse::<u32>().ok(),
            }
        };
        match (level(self), level(other)) {
            (Some(here), Some(there)) => here.checked_sub(there),
            _ => (self.variant == other.variant).then_some(0),
        }
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

/// Decodes a manifest or an index. `content_type` is the header that the registry sent. If the document has a
/// `mediaType`, that is used instead.
pub(crate) fn decode(
    bytes: &[u8],
    content_type: Option<&str>,
    limits: &Limits,
) -> Result<Document, ImageError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Probe {
        media_type: Option<String>,
        #[serde(default)]
        manifests: Option<serde::de::IgnoredAny>,
    }
    let json = |what| move |source| ImageError::Json { what, source };
    let probe: Probe = serde_json::from_slice(bytes).map_err(json("the manifest"))?;
    let written = content_type.map(|text| text.split(';').next().unwrap_or(text).trim());
    let media_type = probe.media_type.as_deref().or(written).unwrap_or_default();
    match media_type {
        OCI_IMAGE_INDEX_MEDIA_TYPE | IMAGE_MANIFEST_LIST_MEDIA_TYPE => {
            index(bytes, limits).map(Document::Index)
        }
        OCI_IMAGE_MEDIA_TYPE | IMAGE_MANIFEST_MEDIA_TYPE => {
            image(bytes, limits).map(Document::Image)
        }
        // Some registries send a generic type. Then the fields of the document decide.
        "" | "application/json" | "text/plain" | "application/octet-stream" => {
            match probe.manifests {
                Some(_) => index(bytes, limits).map(Document::Index),
                None => image(bytes, limits).map(Document::Image),
            }
        }
        other => Err(ImageError::MediaType(other.to_owned())),
    }
}

fn index(bytes: &[u8], limits: &Limits) -> Result<Vec<Candidate>, ImageError> {
    let index: OciImageIndex =
        serde_json::from_slice(bytes).map_err(|source| ImageError::Json {
            what: "the index",
            source,
        })?;
    index
        .manifests
        .into_iter()
        .enumerate()
        .map(|(position, entry)| candidate(position, entry, limits))
        .collect()
}

fn candidate(
    position: usize,
    entry: ImageIndexEntry,
    limits: &Limits,
) -> Result<Candidate, ImageError> {
    let what = format!("image {position} of the index");
    let size = checked_size(&what, entry.size)?;
    limits
        .check(Limit::ManifestBytes, size)
        .map_err(|source| ImageError::Limit {
            what: "a manifest in the index",
            source,
        })?;
    let digest = entry
        .digest
        .parse()
        .map_err(|source| ImageError::Digest { what, source })?;
    let attestation = entry
        .annotations
        .is_some_and(|map| map.contains_key("vnd.docker.reference.type"));
    let platform = entry.platform.map(|platform| {
        let (os, architecture) = (platform.os.to_string(), platform.architecture.to_string());
        Platform::new(&os, &architecture, platform.variant.as_deref())
    });
    Ok(Candidate {
        digest,
        size,
        platform,
        attestation,
    })
}

fn image(bytes: &[u8], limits: &Limits) -> Result<Manifest, ImageError> {
    let manifest: OciImageManifest =
        serde_json::from_slice(bytes).map_err(|source| ImageError::Json {
            what: "the manifest",
            source,
        })?;
    let limit = |what| move |source| ImageError::Limit { what, source };
    let (config, config_size) = blob("the image config", &manifest.config)?;
    limits
        .check(Limit::ManifestBytes, config_size)
        .map_err(limit("the image config"))?;
    limits
        .check(Limit::Layers, manifest.layers.len() as u64)
        .map_err(limit("the manifest"))?;
    let mut total = 0u64;
    let mut layers = Vec::with_capacity(manifest.layers.len());
    for (index, descriptor) in manifest.layers.iter().enumerate() {
        let (digest, size) = blob(&format!("layer {index}"), descriptor)?;
        total = total.saturating_add(size);
        limits
            .check(Limit::ImageBytes, total)
            .map_err(limit("the layers"))?;
        let compression =
            compression(&descriptor.media_type).ok_or_else(|| ImageError::LayerType {
                index,
                media_type: descriptor.media_type.clone(),
            })?;
        layers.push(Layer {
            digest,
            size,
            compression,
        });
    }
    Ok(Manifest {
        config: (config, config_size),
        layers,
    })
}

fn blob(what: &str, descriptor: &OciDescriptor) -> Result<(Digest, u64), ImageError> {
    let digest = descriptor
        .digest
        .parse()
        .map_err(|source| ImageError::Digest {
            what: what.to_owned(),
            source,
        })?;
    Ok((digest, checked_size(what, descriptor.size)?))
}

fn checked_size(what: &str, size: i64) -> Result<u64, ImageError> {
    u64::try_from(size).map_err(|_| ImageError::Size {
        what: what.to_owned(),
        size,
    })
}

fn compression(media_type: &str) -> Option<Compression> {
    match media_type {
        IMAGE_LAYER_MEDIA_TYPE
        | IMAGE_LAYER_NONDISTRIBUTABLE_MEDIA_TYPE
        | IMAGE_DOCKER_LAYER_TAR_MEDIA_TYPE => Some(Compression::None),
        IMAGE_LAYER_GZIP_MEDIA_TYPE
        | IMAGE_LAYER_NONDISTRIBUTABLE_GZIP_MEDIA_TYPE
        | IMAGE_DOCKER_LAYER_GZIP_MEDIA_TYPE => Some(Compression::Gzip),
        // The crate oci-client has no constants for these media types.
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Some(Compression::Zstd),
        _ => None,
    }
}

/// The image in an index that fits `wanted` best. An attestation is never chosen. An entry without a platform is
/// chosen only if no other entry fits, and if it is the only one without a platform.
pub(crate) fn select<'a>(
    candidates: &'a [Candidate],
    wanted: &Platform,
) -> Result<&'a Candidate, ImageError> {
    let known = |candidate: &&Candidate| {
        !candidate.attestation
            && candidate
                .platform
                .as_ref()
                .is_some_and(|platform| platform.os != "unknown")
    };
    let fit = |candidate: &&Candidate| {
        candidate
            .platform
            .as_ref()
            .and_then(|platform| wanted.fit(platform))
    };
    let fits = |candidate: &&Candidate| fit(candidate).is_some();
    // The platform of such an image is in its config, which is checked later.
    let mut nameless = candidates
        .iter()
        .filter(|candidate| !candidate.attestation && candidate.platform.is_none());
    let only_nameless = nameless.next().filter(|_| nameless.next().is_none());
    candidates
        .iter()
        .filter(known)
        .filter(fits)
        .min_by_key(fit)
        .or(only_nameless)
        .ok_or_else(|| {
            let mut names: Vec<_> = candidates
                .iter()
                .filter(known)
                .filter_map(|candidate| candidate.platform.as_ref().map(Platform::to_string))
                .collect();
            names.sort();
            names.dedup();
            let present = if names.is_empty() {
                "nothing".to_owned()
            } else {
                names.join(", ")
            };
            ImageError::NoPlatform {
                wanted: wanted.to_string(),
                present,
            }
        })
}

/// The diff IDs in an image config, one per layer. If `wanted` is given, a config for another platform is an error.
pub(crate) fn diff_ids(
    config: &[u8],
    layers: usize,
    wanted: Option<&Platform>,
) -> Result<Vec<Digest>, ImageError> {
    #[derive(Deserialize)]
    struct RootFs {
        #[serde(default)]
        diff_ids: Vec<Digest>,
    }
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        os: String,
        #[serde(default)]
        architecture: String,
        variant: Option<String>,
        rootfs: RootFs,
    }
    let config: Config = serde_json::from_slice(config).map_err(|source| ImageError::Json {
        what: "the image config",
        source,
    })?;
    let is = Platform::new(&config.os, &config.architecture, config.variant.as_deref());
    // Some images have none of these fields, for example images that were made by hand. They are accepted.
    if let Some(wanted) = wanted
        && !config.os.is_empty()
        && !config.architecture.is_empty()
        && wanted.fit(&is).is_none()
    {
        return Err(ImageError::WrongPlatform {
            wanted: wanted.to_string(),
            is: is.to_string(),
        });
    }
    let diff_ids = config.rootfs.diff_ids;
    if diff_ids.len() == layers {
        Ok(diff_ids)
    } else {
        Err(ImageError::DiffIds {
            layers,
            diff_ids: diff_ids.len(),
        })
    }
}

#[cfg(test)]
mod tests;
