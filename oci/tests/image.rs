//! Makes images byte by byte, so that a test can set any field to a wrong value.

use std::collections::BTreeMap;
use std::io::Write;

use serde_json::{Value, json};
use skyhook_oci::Digest;

use crate::liar::{Answer, Request};

/// A tar entry. A test can set each of its fields.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) mtime: u64,
    pub(crate) link: Vec<u8>,
    pub(crate) content: Vec<u8>,
    /// The size in the header: the length of the content, unless a test sets a wrong one.
    pub(crate) size: u64,
}

impl Entry {
    pub(crate) fn new(kind: u8, name: &str) -> Self {
        let mode = if kind == b'5' { 0o755 } else { 0o644 };
        let (name, link, content) = (name.into(), Vec::new(), Vec::new());
        Self {
            name,
            kind,
            mode,
            mtime: 1_600_000_000,
            link,
            content,
            size: 0,
        }
    }

    pub(crate) fn file(name: &str, content: impl Into<Vec<u8>>) -> Self {
        let content = content.into();
        Self {
            size: content.len() as u64,
            content,
            ..Self::new(b'0', name)
        }
    }

    pub(crate) fn dir(name: &str) -> Self {
        Self::new(b'5', name)
    }

    pub(crate) fn symlink(name: &str, target: &str) -> Self {
        Self {
            link: target.into(),
            mode: 0o777,
            ..Self::new(b'2', name)
        }
    }

    pub(crate) fn hardlink(name: &str, target: &str) -> Self {
        Self {
            link: target.into(),
            ..Self::new(b'1', name)
        }
    }

    pub(crate) fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// A PAX header with these records, for the entry that follows.
    pub(crate) fn pax(records: &[(&str, &str)]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = format!(" {key}={value}\n");
            let mut length = rest.len();
            while length != rest.len() + length.to_string().len() {
                length = rest.len() + length.to_string().len();
            }
            text.extend_from_slice(format!("{length}{rest}").as_bytes());
        }
        Self {
            kind: b'x',
            ..Self::file("PaxHeaders/x", text)
        }
    }

    fn write(&self, to: &mut Vec<u8>) {
        let mut header = [0u8; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, self.name.get(..100).unwrap_or(&self.name));
        put(100, format!("{:07o}\0", self.mode).as_bytes());
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        match self.size {
            size if size < 1 << 33 => put(124, format!("{size:011o}\0").as_bytes()),
            size => put(124, &[&[0x80, 0, 0, 0][..], &size.to_be_bytes()].concat()),
        }
        put(136, format!("{:011o}\0", self.mtime).as_bytes());
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, self.link.get(..100).unwrap_or(&self.link));
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        to.extend_from_slice(&header);
        to.extend_from_slice(&self.content);
        to.resize(to.len().next_multiple_of(512), 0);
    }
}

pub(crate) fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        entry.write(&mut bytes);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A layer as the registry sends it, and the digest of its decompressed content.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) media_type: &'static str,
    pub(crate) blob: Vec<u8>,
    pub(crate) diff_id: Digest,
}

impl Layer {
    pub(crate) fn gzip(tar: &[u8]) -> Self {
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        Self {
            media_type,
            blob: gzip(tar),
            diff_id: Digest::of(tar),
        }
    }

    pub(crate) fn plain(tar: &[u8]) -> Self {
        let media_type = "application/vnd.oci.image.layer.v1.tar";
        Self {
            media_type,
            blob: tar.to_vec(),
            diff_id: Digest::of(tar),
        }
    }

    pub(crate) fn zstd(tar: &[u8]) -> Self {
        let blob = zstd::encode_all(tar, 3).unwrap();
        Self::packed_as_zstd(tar, blob)
    }

    pub(crate) fn packed_as_zstd(tar: &[u8], blob: Vec<u8>) -> Self {
        let media_type = "application/vnd.oci.image.layer.v1.tar+zstd";
        Self {
            media_type,
            blob,
            diff_id: Digest::of(tar),
        }
    }
}

/// A whole image, and the answers of a registry that has it.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) manifest: Value,
    pub(crate) layers: Vec<Layer>,
    pub(crate) config: Vec<u8>,
}

impl Image {
    pub(crate) fn new(layers: Vec<Layer>) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
        let config = json!({"os": "linux", "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        Self::with_config(layers, config.to_string().into_bytes())
    }

    pub(crate) fn with_config(layers: Vec<Layer>, config: Vec<u8>) -> Self {
        let descriptors: Vec<_> = layers
            .iter()
            .map(|layer| {
                json!({"mediaType": layer.media_type, "size": layer.blob.len(),
                    "digest": Digest::of(&layer.blob)})
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(&config), "size": config.len()},
            "layers": descriptors,
        });
        Self {
            manifest,
            layers,
            config,
        }
    }

    /// An image with one layer, which has these entries.
    pub(crate) fn of(entries: &[Entry]) -> Self {
        Self::new(vec![Layer::gzip(&tar(entries))])
    }

    /// A package with a file of this size that does not compress.
    pub(crate) fn sized(bytes: usize) -> Self {
        let mut state = 1u64;
        let noise: Vec<u8> = (0..bytes)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        Self::of(&[
            Entry::dir("skyhook-package"),
            Entry::file("skyhook-package/noise", noise),
        ])
    }

    pub(crate) fn manifest_bytes(&self) -> Vec<u8> {
        self.manifest.to_string().into_bytes()
    }

    pub(crate) fn manifest_digest(&self) -> Digest {
        Digest::of(&self.manifest_bytes())
    }

    pub(crate) fn layer_digest(&self, index: usize) -> Digest {
        Digest::of(&self.layers[index].blob)
    }

    /// All blobs and the manifest, by digest.
    pub(crate) fn blobs(&self) -> BTreeMap<String, Vec<u8>> {
        let layers = self.layers.iter().map(|layer| layer.blob.clone());
        layers
            .chain([self.config.clone(), self.manifest_bytes()])
            .map(|bytes| (Digest::of(&bytes).to_string(), bytes))
            .collect()
    }

    /// The answer of a correct registry, which also supports ranges.
    pub(crate) fn answer(&self, request: &Request) -> Answer {
        let path = request.path.split('?').next().unwrap();
        let name = path.rsplit('/').next().unwrap();
        if path.contains("/manifests/") && !name.starts_with("sha256:") {
            return Answer::ok(self.manifest_bytes());
        }
        match (self.blobs().get(name), request.range()) {
            (None, _) => Answer::new(404),
            (Some(bytes), 0) => Answer::ok(bytes.clone()),
            (Some(bytes), from) => {
                let mut answer = Answer::ok(&bytes[from..]);
                answer.status = 206;
                let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                answer.header("Content-Range", range)
            }
        }
    }
}
