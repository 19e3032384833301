//! Package folders as an OCI image layout: a layer each, an image for each architecture, one index.
//! The same folder always gives the same digest.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::process::output;

const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Writes the layout into `dir` under `tag` and returns the index's digest.
pub(super) async fn write_layout(folders: &[&Path], dir: &Path, tag: &str) -> Result<String> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    for folder in folders {
        let (descriptor, diff_id) = write_layer(folder, dir, &blobs).await?;
        layers.push(descriptor);
        diff_ids.push(diff_id);
    }
    let mut manifests = Vec::new();
    for architecture in ARCHITECTURES {
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": put(&blobs, CONFIG, &serde_json::to_vec(&config)?)?,
            "layers": layers,
        });
        let mut descriptor = put(&blobs, MANIFEST, &serde_json::to_vec(&manifest)?)?;
        descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
        manifests.push(descriptor);
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    let mut descriptor = put(&blobs, INDEX, &serde_json::to_vec(&index)?)?;
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    let top = json!({"schemaVersion": 2, "manifests": [descriptor]});
    fs::write(dir.join("index.json"), serde_json::to_vec(&top)?)?;
    fs::write(dir.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}")?;
    Ok(digest(&serde_json::to_vec(&index)?))
}

/// Stores a folder as a layer and returns its descriptor and diff ID.
async fn write_layer(folder: &Path, dir: &Path, blobs: &Path) -> Result<(Value, String)> {
    let tar = dir.join("layer.tar");
    let mut command = Command::new("tar");
    // Links keep their targets: only names in the archive move below /skyhook-package.
    command.args([
        "--sort=name",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--mtime=@0",
    ]);
    command.args(["--transform=s,^\\.,skyhook-package,S", "-cf"]);
    command.arg(&tar).arg("-C").arg(folder).arg(".");
    output(command).await?;
    let diff_id = digest(&fs::read(&tar)?);
    let mut gzip = Command::new("gzip");
    gzip.args(["-n", "-9"]).arg(&tar);
    output(gzip).await?;
    let layer = dir.join("layer.tar.gz");
    let descriptor = put(blobs, LAYER, &fs::read(&layer)?)?;
    fs::remove_file(layer)?;
    Ok((descriptor, diff_id))
}

/// Stores a blob and returns its descriptor.
fn put(blobs: &Path, media_type: &str, content: &[u8]) -> Result<Value> {
    let digest = digest(content);
    fs::write(blobs.join(digest.trim_start_matches("sha256:")), content)?;
    Ok(json!({"mediaType": media_type, "digest": digest, "size": content.len()}))
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(content)))
}
