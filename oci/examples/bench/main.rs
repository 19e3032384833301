//! `make bench-oci` compares our pull and unpack with skopeo + umoci, and with `gzip -dc | tar x` as the lower bound.
//! All of them use the same images from one docker-registry on the loopback address. Each run is a new process with
//! empty directories, and the result is the median of the runs. At the end it breaks off a pull, and counts the bytes
//! that the next one downloads again.

#![expect(clippy::disallowed_methods, reason = "a benchmark is all shell")]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use skyhook_oci::{
    Credentials, Platform, Puller, PullerConfig, Reference, Store, StoreConfig, Target,
    UnpackOptions,
};

mod resume;

#[expect(dead_code, reason = "the benchmark needs a part of what the tests do")]
#[path = "../../tests/support.rs"]
mod support;

use support::{Layout, Registry, file, tools};

const MIXED_BYTES: u64 = 200 << 20;
const LAYERS: usize = 6;
const SMALL_FILES: usize = 20_000;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.as_slice() {
        [mode, reference, dir] if mode == "--ours" => ours(reference, Path::new(dir)),
        [mode] if mode == "resume" => resume::bench(),
        [] => bench(5),
        [runs] => bench(runs.parse().context("the argument is the number of runs")?),
        _ => anyhow::bail!("usage: bench [RUNS | resume]"),
    }
}

/// Does the same as the agent, with its defaults: pulls an image into a store, and unpacks it.
fn ours(reference: &str, dir: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let started = Instant::now();
        let store = Store::open(dir.join("store"), StoreConfig::default())?;
        let platform = Platform::new("linux", "amd64", None);
        let puller = Puller::new(
            store.clone(),
            PullerConfig {
                platform,
                ..PullerConfig::default()
            },
        );
        let reference: Reference = reference.parse()?;
        let pulled = puller.pull(&reference, &Credentials::anonymous()).await?;
        let after_pull = started.elapsed();
        let target = Target::path(dir.join("out"));
        store
            .unpack(&pulled.manifest_digest, &target, UnpackOptions::default())
            .await?;
        if std::env::var_os("BENCH_VERBOSE").is_some() {
            eprintln!("pull {after_pull:?} all {:?}", started.elapsed());
        }
        Ok(())
    })
}

/// The median time of several runs, and the highest memory use of all runs.
struct Measured {
    seconds: f64,
    peak_mib: f64,
}

fn measure(runs: usize, mut run: impl FnMut(&Path) -> Result<u64>) -> Result<Measured> {
    let mut seconds = Vec::new();
    let mut peak_kib = 0;
    for _ in 0..runs {
        let dir = tempfile::tempdir()?;
        let started = Instant::now();
        peak_kib = peak_kib.max(run(dir.path())?);
        seconds.push(started.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(Measured {
        seconds: seconds[seconds.len() / 2],
        peak_mib: peak_kib as f64 / 1024.0,
    })
}

/// Runs a program until it ends. Returns its peak memory in KiB.
fn child(program: &Path, args: &[&str]) -> Result<u64> {
    let child = Command::new(program)
        .args(args)
        .stdout(Stdio::null())
        .spawn()?;
    let pid = i32::try_from(child.id())?;
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    #[expect(
        unsafe_code,
        reason = "the standard library has no wait that tells the peak memory"
    )]
    let usage = unsafe {
        ensure!(
            libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) == pid,
            "wait4 failed"
        );
        usage.assume_init()
    };
    let status = std::process::ExitStatus::from_raw(status);
    ensure!(status.success(), "{} {args:?}: {status}", program.display());
    Ok(u64::try_from(usage.ru_maxrss)?)
}

struct Row {
    name: &'static str,
    ours: Measured,
    theirs: Measured,
    floor: Measured,
}

fn bench(runs: usize) -> Result<()> {
    ensure!(
        tools(&["docker-registry", "skopeo", "umoci", "gzip", "zstd", "tar"]),
        "the benchmark needs these programs"
    );
    let (registry, layout) = (Registry::plain(), Layout::new());
    eprintln!("making the images…");
    mixed_image(&layout)?;
    small_image(&layout);
    let push = |tag: &str, to: &str, format: &str| {
        let to = format!("{}/bench:{to}", registry.host());
        layout.push_decompressed(tag, &to, &["--dest-compress-format", format]);
    };
    push("mixed", "gzip", "gzip");
    push("mixed", "zstd", "zstd");
    push("small", "small", "gzip");
    let mut rows = Vec::new();
    for (name, unpacker) in [
        ("gzip", "gzip -dc"),
        ("zstd", "zstd -dc"),
        ("small", "gzip -dc"),
    ] {
        eprintln!("{name}…");
        let reference = format!("{}/bench:{name}", registry.host());
        let me = std::env::current_exe()?;
        let ours = measure(runs, |dir| child(&me, &["--ours", &reference, text(dir)?]))?;
        let theirs = measure(runs, |dir| skopeo_umoci(&reference, dir))?;
        let layers = blobs(&registry, name)?;
        let floor = measure(runs, |dir| floor(unpacker, &layers, dir))?;
        rows.push(Row {
            name,
            ours,
            theirs,
            floor,
        });
    }
    report(&rows, runs);
    resume::bench()
}

fn report(rows: &[Row], runs: usize) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{runs} runs each, median seconds, {cores} cores");
    println!("| image | ours | skopeo + umoci | decompress and tar | our peak MiB |");
    println!("|---|---|---|---|---|");
    for Row {
        name,
        ours,
        theirs,
        floor,
    } in rows
    {
        let (ours, peak) = (ours.seconds, ours.peak_mib);
        println!(
            "| {name} | {ours:.2} | {:.2} | {:.2} | {peak:.0} |",
            theirs.seconds, floor.seconds
        );
    }
    for (row, name) in rows.iter().zip(["gzip", "zstd", "small_files"]) {
        println!(
            "bench speedup_{name} {:.2}",
            row.theirs.seconds / row.ours.seconds
        );
    }
    let gzip = &rows[0];
    println!(
        "bench floor_ratio_gzip {:.2}",
        gzip.ours.seconds / (gzip.floor.seconds / cores as f64)
    );
    let peak = rows.iter().map(|row| row.ours.peak_mib).fold(0.0, f64::max);
    println!("bench peak_mib {peak:.0}");
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("paths are UTF-8 here")
}

fn skopeo_umoci(reference: &str, dir: &Path) -> Result<u64> {
    let (layout, bundle) = (dir.join("oci"), dir.join("bundle"));
    let image = format!("{}:x", layout.display());
    let (from, to) = (format!("docker://{reference}"), format!("oci:{image}"));
    let skopeo = ["copy", "-q", "--src-tls-verify=false", &from, &to];
    let peak = child(Path::new("skopeo"), &skopeo)?;
    let mut umoci = vec!["unpack", "--image", &image];
    if !rustix::process::geteuid().is_root() {
        umoci.push("--rootless");
    }
    umoci.push(text(&bundle)?);
    Ok(peak.max(child(Path::new("umoci"), &umoci)?))
}

fn floor(unpacker: &str, layers: &[PathBuf], dir: &Path) -> Result<u64> {
    let mut peak = 0;
    for layer in layers {
        let line = format!(
            "set -o pipefail; {unpacker} < {} | tar -x -C {}",
            layer.display(),
            dir.display()
        );
        peak = peak.max(child(Path::new("bash"), &["-c", &line])?);
    }
    Ok(peak)
}

/// The files of the layers in the registry's own storage.
fn blobs(registry: &Registry, tag: &str) -> Result<Vec<PathBuf>> {
    let manifest: serde_json::Value = serde_json::from_slice(&registry.manifest("bench", tag))?;
    let layers = manifest["layers"]
        .as_array()
        .context("a manifest has layers")?;
    layers
        .iter()
        .map(|layer| {
            let digest = layer["digest"].as_str().context("a layer has a digest")?;
            let hex = digest.trim_start_matches("sha256:");
            let blobs = registry.data().join("docker/registry/v2/blobs/sha256");
            Ok(blobs.join(&hex[..2]).join(hex).join("data"))
        })
        .collect()
}

/// Makes an image from files of this machine, half text and half binaries, in layers of about the same size.
fn mixed_image(layout: &Layout) -> Result<()> {
    let (mut binaries, mut texts) = (Vec::new(), Vec::new());
    for dir in ["/usr/lib", "/usr/bin", "/usr/share", "/usr/include"] {
        collect(Path::new(dir), &mut binaries, &mut texts)?;
    }
    let mut files = Vec::new();
    for (kind, half) in [
        (&mut binaries, MIXED_BYTES / 2),
        (&mut texts, MIXED_BYTES / 2),
    ] {
        kind.sort();
        let mut total = 0;
        for (path, bytes) in kind.iter().cycle().take(kind.len() * 50) {
            if total < half {
                total += bytes;
                files.push((path.clone(), *bytes));
            }
        }
        ensure!(total >= half, "there are not enough files in /usr");
    }
    // The files go to the layers in turn, so every layer gets text and binaries.
    layout.new_image("mixed", "amd64");
    for layer in 0..LAYERS {
        let mut result = Ok(());
        layout.layer("mixed", |root| {
            let mut part = files
                .iter()
                .enumerate()
                .filter(|(number, _)| number % LAYERS == layer);
            result = part.try_for_each(|(number, (path, _))| copy(root, number, path));
        });
        result?;
    }
    Ok(())
}

/// Copies a file without the set-id bits that some files have.
fn copy(root: &Path, number: usize, from: &Path) -> Result<()> {
    let to = root.join(format!("skyhook-package/{}/{number}", number % 100));
    fs::create_dir_all(to.parent().context("a parent")?)?;
    fs::write(to, fs::read(from)?).context("a copy")
}

type Files = Vec<(PathBuf, u64)>;

fn collect(dir: &Path, binaries: &mut Files, texts: &mut Files) -> Result<()> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries {
        let (path, metadata) = {
            let entry = entry?;
            (entry.path(), entry.metadata()?)
        };
        if metadata.is_dir() {
            collect(&path, binaries, texts)?;
        } else if metadata.is_file() && (1 << 10..8 << 20).contains(&metadata.len()) {
            let mut magic = [0; 512];
            let read = fs::File::open(&path)
                .and_then(|mut file| std::io::Read::read(&mut file, &mut magic));
            let Ok(read) = read else { continue };
            let kind = if magic[..read].contains(&0) {
                &mut *binaries
            } else {
                &mut *texts
            };
            kind.push((path, metadata.len()));
        }
    }
    Ok(())
}

fn small_image(layout: &Layout) {
    layout.new_image("small", "amd64");
    layout.layer("small", |root| {
        for number in 0..SMALL_FILES {
            let name = format!("skyhook-package/{}/{number}.conf", number % 200);
            let line = format!("key{number} = {}\n", number * 7919);
            file(root, &name, &line.repeat(1 + number % 60), 0o644);
        }
    });
}
