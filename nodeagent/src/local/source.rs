//! Fetches the files of the package: from a directory, or from an image.
use std::fs;
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::Context as _;
use skyhook_oci::{Reference, Root};

use super::{LocalRun, credentials, layout, skyhook};
use crate::config::LocalRunArgs;
use crate::image::{ImageArgs, Images, Registries};
use crate::prepare;

impl LocalRun {
    /// Fetches the package's files. Those of a directory are copied to the package's copy directory at once.
    pub(super) async fn fetch(&mut self, args: &LocalRunArgs, source: &str) -> anyhow::Result<()> {
        let staged = self.scratch.join("package");
        if Path::new(source).is_dir() {
            fs::create_dir(&staged)?;
            prepare::files::copy_tree(Path::new(source), Root::open(&staged)?.as_fd())
                .with_context(|| format!("{source} cannot be copied"))?;
        } else {
            let reference: Reference = source
                .parse()
                .with_context(|| format!("{source} is neither a directory nor an image"))?;
            self.pull(args, &reference, &staged).await?;
        }
        let (config, _) =
            skyhook_oci::package_config::load(&Root::open(&staged)?)?.into_result()?;
        let package = &mut self.package;
        if package.name.is_empty() {
            package.name = config.package_name.replace('_', "-");
            package.version = config.package_version;
            package.image = source.to_owned();
        }
        // An image is unpacked into the copy directory later, when its first stage is prepared.
        if self.digest.is_none() && !args.dry_run {
            let copy = prepare::copy_dir(&layout(), &skyhook(), &self.package);
            let copy = self.host.files.create_dirs(copy)?;
            prepare::files::copy_tree(&staged, copy.as_fd())?;
        }
        Ok(())
    }

    async fn pull(
        &mut self,
        args: &LocalRunArgs,
        reference: &Reference,
        staged: &Path,
    ) -> anyhow::Result<()> {
        let registries = Registries {
            insecure: args.insecure_registries.clone(),
            as_node: true,
            ..Registries::default()
        };
        let store = self.scratch.join("images");
        let limits = ImageArgs::default();
        let images = Images::open(&store, &Root::open("/")?, registries, &limits)?;
        let credentials = credentials::of(args.docker_config.as_deref(), reference.registry())?;
        let errors = std::io::stderr();
        let is_terminal = errors.is_terminal();
        let progress = skyhook_oci::progress::show(errors, is_terminal);
        let digest = images
            .pull_reference(reference, &credentials, &progress)
            .await?;
        let target = skyhook_oci::Target::path(staged);
        images
            .store
            .unpack_with(
                &digest,
                &target,
                skyhook_oci::UnpackOptions::default(),
                &progress,
            )
            .await?;
        self.digest = Some(digest);
        self.store = Some(images.store);
        Ok(())
    }
}
