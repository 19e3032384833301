//! A real registry (distribution, as Debian packages it) that serves images of package folders.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::controlplane::free_port;
use crate::process::{Process, output};
use crate::run::Run;

mod image;

/// A running registry, plain HTTP, empty at first. It is gone when dropped.
#[derive(Debug)]
pub struct Registry {
    run: Arc<Run>,
    address: SocketAddr,
    process: Process,
}

/// An image in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// `host:port/repository`, as a package's `image` has it.
    pub repository: String,
    /// The tag, which is the package's version.
    pub version: String,
    /// Digest of the index that holds one manifest per architecture.
    pub digest: String,
}

impl Registry {
    /// Listens on a free port of `address`.
    pub async fn start(run: Arc<Run>, address: Ipv4Addr) -> Result<Self> {
        let port = free_port(address)?;
        Self::start_on(run, SocketAddr::from((address, port))).await
    }

    /// Listens there.
    pub async fn start_on(run: Arc<Run>, address: SocketAddr) -> Result<Self> {
        let dir = run.scratch().join(format!("registry-{}", address.port()));
        fs::create_dir_all(&dir)?;
        let config = dir.join("config.yml");
        let storage = dir.join("storage");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
                 http: {{addr: '{address}'}}\n",
                storage.display()
            ),
        )?;
        let mut command = Command::new("docker-registry");
        command
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none");
        let process = Process::spawn(&run, "registry", &command)?;
        process.wait_listening(address).await?;
        Ok(Self {
            run,
            address,
            process,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn log(&self) -> &Path {
        self.process.log()
    }

    /// Builds the package in `folder` (`config.json`, `skyhook_dir/`, …) into an image for amd64
    /// and arm64 named after the folder, and pushes it with the version from its `config.json`.
    pub async fn push_package(&self, folder: &Path) -> Result<Image> {
        let name = folder
            .file_name()
            .and_then(|name| name.to_str())
            .context("folder has no name")?;
        let config = fs::read_to_string(folder.join("config.json"))
            .with_context(|| format!("{} holds no package", folder.display()))?;
        let config: serde_json::Value = serde_json::from_str(&config)?;
        let version = config["package_version"]
            .as_str()
            .context("config.json: package_version")?;
        self.push_folder(folder, &format!("skyhook-packages/{name}"), version)
            .await
    }

    /// Like [`push_package`](Self::push_package), under a repository and tag of the caller's.
    pub async fn push_folder(&self, folder: &Path, repository: &str, tag: &str) -> Result<Image> {
        self.push_layers(&[folder], repository, tag).await
    }

    /// Like [`push_folder`](Self::push_folder), with a layer for each folder, the lowest first; `.wh.` files take away
    /// what is below.
    pub async fn push_layers(
        &self,
        folders: &[&Path],
        repository: &str,
        tag: &str,
    ) -> Result<Image> {
        let layout = tempfile::tempdir_in(self.run.scratch())?;
        let digest = image::write_layout(folders, layout.path(), tag).await?;
        let repository = format!("{}/{repository}", self.address);
        let mut copy = Command::new("skopeo");
        copy.args([
            "--insecure-policy",
            "copy",
            "--all",
            "--quiet",
            "--dest-tls-verify=false",
        ]);
        copy.arg("--preserve-digests");
        copy.arg(format!("oci:{}:{tag}", layout.path().display()));
        copy.arg(format!("docker://{repository}:{tag}"));
        output(copy).await?;
        Ok(Image {
            repository,
            version: tag.to_owned(),
            digest,
        })
    }
}
