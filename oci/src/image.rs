//! Image manifests, indexes and configs as data: decoding, checks, and the choice of a platform.
//! No I/O.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::digest::{Digest, DigestError};
use crate::limits::{Limit, LimitExceeded, Limits};

mod platform;

pub use platform::Platform;

/// The media types that are requested and understood.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    pub digest: Digest,
    /// Bytes as the registry sends them.
    pub size: u64,
    /// Where else the layer can be downloaded. Only a foreign layer has such URLs: the registry need not have it.
    pub urls: Vec<String>,
}

/// A decoded image manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: (Digest, u64),
    pub(crate) layers: Vec<Layer>,
    /// Blobs that the manifest itself contains.
    pub(crate) embedded: BTreeMap<Digest, Vec<u8>>,
    /// What the manifest is, if it says that it is something else than a container image.
    artifact: Option<String>,
}

/// The document that a registry sends for a manifest request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Document {
    Index(Vec<Candidate>),
    Image(Manifest),
}

/// One image of an index.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Candidate {
    position: usize,
    /// It is checked when the candidate is chosen: whatever is wrong with an image for another platform, and however
    /// an artifact is described, does no harm.
    descriptor: Descriptor,
    /// `None` if the index does not name a platform. Then the image's config does.
    pub(crate) platform: Option<Platform>,
    /// The entry is an image, and not an attestation, a signature or another artifact.
    is_image: bool,
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
        "it is a Docker manifest of schema 1, which container runtimes do not take any more: build and push the image with a current program"
    )]
    Schema1,
    #[error(
        "layer {index} has media type {media_type:?}, which is not a tar, tar+gzip or tar+zstd layer"
    )]
    LayerType { index: usize, media_type: String },
    #[error(
        "layer {index} is encrypted, which is not supported: push the image without encryption"
    )]
    Encrypted { index: usize },
    #[error(
        "layer {index} ({digest}) is a foreign layer: its registry does not have it, and it is not downloaded from {url}. Push the image with all of its layers (docker: allow-nondistributable-artifacts)"
    )]
    Foreign {
        index: usize,
        digest: Digest,
        url: String,
    },
    #[error("it is not a container image, but an artifact of type {0:?}")]
    Artifact(String),
    #[error("the manifest names no config")]
    NoConfig,
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
    #[error("more than {0} indexes inside each other")]
    NestedIndex(usize),
}

impl ImageError {
    /// A short name of the error, for queries in logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Json { .. } => "image_json",
            Self::MediaType(_)
            | Self::Schema1
            | Self::LayerType { .. }
            | Self::Encrypted { .. }
            | Self::Artifact(_) => "media_type",
            Self::Foreign { .. } => "foreign_layer",
            Self::Digest { .. } | Self::Size { .. } | Self::NoConfig => "descriptor",
            Self::NoPlatform { .. } | Self::WrongPlatform { .. } => "no_platform",
            Self::DiffIds { .. } => "diff_id",
            Self::Limit { .. } => "limit",
            Self::NestedIndex(_) => "nested_index",
        }
    }
}

/// A descriptor in a manifest or index. A field that is missing or null is `None`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: Option<String>,
    digest: Option<String>,
    size: Option<i64>,
    urls: Option<Vec<String>>,
    annotations: Option<BTreeMap<String, IgnoredAny>>,
    data: Option<String>,
    platform: Option<PlatformFields>,
    artifact_type: Option<String>,
}

/// The platform in a descriptor or in an image config.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct PlatformFields {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

impl PlatformFields {
    /// `None` if the architecture is not named.
    fn platform(self) -> Option<Platform> {
        let architecture = self.architecture.filter(|text| !text.trim().is_empty())?;
        let os = self.os.filter(|text| !text.trim().is_empty());
        let os = os.as_deref().unwrap_or("linux");
        Some(Platform::new(os, &architecture, self.variant.as_deref()))
    }
}

/// Decodes a manifest or an index. `content_type` is the header that the registry sent. If the document has a
/// `mediaType`, that is used instead. If neither is known, the fields of the document decide.
pub(crate) fn decode(
    bytes: &[u8],
    content_type: Option<&str>,
    limits: &Limits,
) -> Result<Document, ImageError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Probe {
        media_type: Option<String>,
        manifests: Option<IgnoredAny>,
        layers: Option<IgnoredAny>,
        config: Option<IgnoredAny>,
        fs_layers: Option<IgnoredAny>,
    }
    let probe: Probe = json("the manifest", bytes)?;
    if probe.fs_layers.is_some() {
        return Err(ImageError::Schema1);
    }
    let has_image = probe.layers.is_some() || probe.config.is_some();
    let written = content_type.map(|text| text.split(';').next().unwrap_or(text).trim());
    let is_index = |media_type: &str| match media_type {
        text if is_index_type(text) => Ok(true),
        text if is_manifest_type(text) => Ok(false),
        other => Err(ImageError::MediaType(other.to_owned())),
    };
    let is_index = match probe.media_type.as_deref() {
        Some(named) if !named.is_empty() => is_index(named)?,
        // Some registries send a wrong header, so the fields are looked at first.
        _ => match (probe.manifests.is_some(), has_image) {
            (true, false) => true,
            (false, true) => false,
            (true, true) | (false, false) => is_index(written.unwrap_or_default())?,
        },
    };
    match is_index {
        true => index(bytes).map(Document::Index),
        false => image(bytes, limits).map(Document::Image),
    }
}

fn json<'a, T: Deserialize<'a>>(what: &'static str, bytes: &'a [u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|source| ImageError::Json { what, source })
}

fn is_index_type(media_type: &str) -> bool {
    matches!(
        media_type,
        OCI_IMAGE_INDEX_MEDIA_TYPE | IMAGE_MANIFEST_LIST_MEDIA_TYPE
    )
}

fn is_manifest_type(media_type: &str) -> bool {
    matches!(media_type, OCI_IMAGE_MEDIA_TYPE | IMAGE_MANIFEST_MEDIA_TYPE)
}

fn index(bytes: &[u8]) -> Result<Vec<Candidate>, ImageError> {
    #[derive(Deserialize)]
    struct Index {
        manifests: Option<Vec<Descriptor>>,
    }
    let index: Index = json("the index", bytes)?;
    let entries = index.manifests.unwrap_or_default().into_iter();
    Ok(entries.enumerate().map(Candidate::new).collect())
}

impl Candidate {
    fn new((position, mut entry): (usize, Descriptor)) -> Self {
        let media_type = entry.media_type.as_deref().unwrap_or_default();
        let is_known =
            media_type.is_empty() || is_manifest_type(media_type) || is_index_type(media_type);
        let is_attestation = entry
            .annotations
            .as_ref()
            .is_some_and(|map| map.contains_key("vnd.docker.reference.type"));
        let is_artifact = entry
            .artifact_type
            .as_ref()
            .is_some_and(|it| !it.is_empty());
        Self {
            position,
            platform: entry.platform.take().and_then(PlatformFields::platform),
            is_image: is_known && !is_attestation && !is_artifact,
            descriptor: entry,
        }
    }

    /// The digest of the image's manifest, and the manifest if the index itself contains it.
    pub(crate) fn manifest(
        &self,
        limits: &Limits,
    ) -> Result<(Digest, Option<Vec<u8>>), ImageError> {
        let what = format!("image {} of the index", self.position);
        let (digest, size) = blob(&what, &self.descriptor)?;
        let what = "a manifest in the index";
        limits
            .check(Limit::ManifestBytes, size)
            .map_err(|source| ImageError::Limit { what, source })?;
        Ok((digest, embedded(&self.descriptor, digest, size)))
    }
}

fn image(bytes: &[u8], limits: &Limits) -> Result<Manifest, ImageError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Image {
        config: Option<Descriptor>,
        layers: Option<Vec<Descriptor>>,
        artifact_type: Option<String>,
    }
    let manifest: Image = json("the manifest", bytes)?;
    let limit = |what| move |source| ImageError::Limit { what, source };
    let config = manifest.config.ok_or(ImageError::NoConfig)?;
    let descriptors = manifest.layers.unwrap_or_default();
    let (config_digest, config_size) = blob("the image config", &config)?;
    limits
        .check(Limit::ManifestBytes, config_size)
        .map_err(limit("the image config"))?;
    limits
        .check(Limit::Layers, descriptors.len() as u64)
        .map_err(limit("the manifest"))?;
    let mut inline = BTreeMap::new();
    if let Some(bytes) = embedded(&config, config_digest, config_size) {
        inline.insert(config_digest, bytes);
    }
    let artifact = [manifest.artifact_type, config.media_type];
    let artifact = artifact.into_iter().flatten().find(|it| !it.is_empty());
    let artifact = artifact.filter(|it| !CONFIGS.contains(&it.as_str()));
    let mut total = 0u64;
    let mut layers = Vec::with_capacity(descriptors.len());
    for (index, descriptor) in descriptors.into_iter().enumerate() {
        let (digest, size) = blob(&format!("layer {index}"), &descriptor)?;
        total = total.saturating_add(size);
        limits
            .check(Limit::ImageBytes, total)
            .map_err(limit("the layers"))?;
        check_layer_type(index, descriptor.media_type.as_deref(), artifact.as_deref())?;
        if let Some(bytes) = embedded(&descriptor, digest, size) {
            inline.insert(digest, bytes);
        }
        layers.push(Layer {
            digest,
            size,
            urls: descriptor.urls.unwrap_or_default(),
        });
    }
    Ok(Manifest {
        config: (config_digest, config_size),
        layers,
        embedded: inline,
        artifact,
    })
}

/// The media types of the configs of container images.
const CONFIGS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];

fn blob(what: &str, descriptor: &Descriptor) -> Result<(Digest, u64), ImageError> {
    let text = descriptor.digest.as_deref().unwrap_or_default();
    let digest = text.parse().map_err(|source| ImageError::Digest {
        what: what.to_owned(),
        source,
    })?;
    let size = descriptor.size.unwrap_or(-1);
    let checked = u64::try_from(size).map_err(|_| ImageError::Size {
        what: what.to_owned(),
        size,
    })?;
    Ok((digest, checked))
}

/// The content of a blob, if its descriptor contains it. Wrong content is ignored: the registry has the right one.
fn embedded(descriptor: &Descriptor, digest: Digest, size: u64) -> Option<Vec<u8>> {
    let bytes = STANDARD.decode(descriptor.data.as_deref()?).ok()?;
    (bytes.len() as u64 == size && digest.is_of(&bytes)).then_some(bytes)
}

/// Fails if a layer is something else than an archive. Its first bytes tell later how it is compressed: builders and
/// registries mix the types of both families, and some name none.
fn check_layer_type(
    index: usize,
    media_type: Option<&str>,
    artifact: Option<&str>,
) -> Result<(), ImageError> {
    let text = media_type.unwrap_or_default();
    let kind = text.split(';').next().unwrap_or(text).trim();
    if kind.ends_with("+encrypted") {
        return Err(ImageError::Encrypted { index });
    }
    let compression = LAYERS.iter().find_map(|layer| kind.strip_prefix(layer));
    let is_layer = kind.is_empty()
        || compression.is_some_and(|it| matches!(it, "" | "+gzip" | "+zstd" | ".gzip" | ".zstd"));
    match (is_layer, artifact) {
        (true, _) => Ok(()),
        (false, Some(artifact)) => Err(ImageError::Artifact(artifact.to_owned())),
        (false, None) => Err(ImageError::LayerType {
            index,
            media_type: text.to_owned(),
        }),
    }
}

/// How the media types of layers start.
const LAYERS: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];

impl Manifest {
    /// The diff IDs in the image config, one per layer.
    pub(crate) fn diff_ids(&self, config: &[u8]) -> Result<Vec<Digest>, ImageError> {
        match (diff_ids(config, self.layers.len()), &self.artifact) {
            (Err(ImageError::DiffIds { .. }), Some(artifact)) => {
                Err(ImageError::Artifact(artifact.clone()))
            }
            (result, _) => result,
        }
    }
}

/// The images of an index that may run on `wanted`, the best one first. At the end are those whose platform the index
/// does not name: their configs do.
pub(crate) fn select<'a>(
    candidates: &'a [Candidate],
    wanted: &Platform,
) -> Result<Vec<&'a Candidate>, ImageError> {
    let images = || candidates.iter().filter(|candidate| candidate.is_image);
    let fit = |candidate: &Candidate| match &candidate.platform {
        Some(platform) => wanted.fit(platform),
        None => Some(usize::MAX),
    };
    let mut fitting: Vec<_> = images()
        .filter_map(|candidate| Some((fit(candidate)?, candidate)))
        .collect();
    if !fitting.is_empty() {
        // Of two images for the same platform, the first one is taken.
        fitting.sort_by_key(|(fit, _)| *fit);
        return Ok(fitting
            .into_iter()
            .map(|(_, candidate)| candidate)
            .collect());
    }
    let mut names: Vec<_> = images()
        .filter_map(|candidate| candidate.platform.as_ref())
        .filter(|platform| platform.os != "unknown")
        .map(Platform::to_string)
        .collect();
    names.sort();
    names.dedup();
    let present = if names.is_empty() {
        "nothing".to_owned()
    } else {
        names.join(", ")
    };
    Err(ImageError::NoPlatform {
        wanted: wanted.to_string(),
        present,
    })
}

/// Fails if an image config is for a platform whose images do not run on `wanted`. A config that names no architecture,
/// as somebody may write it by hand, is accepted.
pub(crate) fn check_platform(config: &[u8], wanted: &Platform) -> Result<(), ImageError> {
    let fields: PlatformFields = json("the image config", config)?;
    match fields.platform() {
        Some(is) if wanted.fit(&is).is_none() => Err(ImageError::WrongPlatform {
            wanted: wanted.to_string(),
            is: is.to_string(),
        }),
        Some(_) | None => Ok(()),
    }
}

/// The diff IDs in an image config, one per layer.
fn diff_ids(config: &[u8], layers: usize) -> Result<Vec<Digest>, ImageError> {
    #[derive(Deserialize)]
    struct RootFs {
        diff_ids: Option<Vec<Digest>>,
    }
    #[derive(Deserialize)]
    struct Config {
        rootfs: Option<RootFs>,
    }
    let config: Config = json("the image config", config)?;
    let diff_ids = config.rootfs.and_then(|rootfs| rootfs.diff_ids);
    let diff_ids = diff_ids.unwrap_or_default();
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
