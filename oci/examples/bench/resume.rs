//! A pull of 200 MB is broken off at 90 %, with the agent, and started again. What counts is bytes, not seconds.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::support::{Layout, Registry, file};

const LAYERS: u64 = 4;
const LAYER_BYTES: u64 = 50 << 20;

/// The pause after each piece that the proxy passes on. It makes the link slower than the disk, as it is where pulls
/// break off. Else bytes that nobody has read yet would count as received.
const PAUSE: Duration = Duration::from_millis(2);

/// Passes connections on to a registry. Counts the bytes that the registry sends.
struct Proxy {
    port: u16,
    sent: Arc<AtomicU64>,
}

impl Proxy {
    fn start(registry: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let sent = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&sent);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let counter = Arc::clone(&counter);
                // A broken connection is what this proxy is for.
                std::thread::spawn(move || pass_on(client, registry, &counter).ok());
            }
        });
        Ok(Self { port, sent })
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }
}

fn pass_on(mut client: TcpStream, registry: u16, sent: &AtomicU64) -> std::io::Result<()> {
    let mut server = TcpStream::connect(("127.0.0.1", registry))?;
    let (mut requests, mut to_server) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || {
        std::io::copy(&mut requests, &mut to_server).ok();
        to_server.shutdown(Shutdown::Write).ok();
    });
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = server.read(&mut buffer)?;
        if count == 0 {
            return client.shutdown(Shutdown::Both);
        }
        client.write_all(&buffer[..count])?;
        sent.fetch_add(count as u64, Ordering::SeqCst);
        std::thread::sleep(PAUSE);
    }
}

/// Prints the part of the bytes received before the break that the second pull does not download again.
pub(super) fn bench() -> Result<()> {
    let (registry, layout) = (Registry::plain(), Layout::new());
    eprintln!("breaking a pull off…");
    layout.new_image("large", "amd64");
    for layer in 0..LAYERS {
        layout.layer("large", |root| {
            let noise = noise(layer);
            file(root, &format!("skyhook-package/{layer}"), &noise, 0o644);
        });
    }
    layout.push("large", &format!("{}/bench:large", registry.host()), &[]);
    let proxy = Proxy::start(registry.port)?;
    let reference = format!("127.0.0.1:{}/bench:large", proxy.port);
    let dir = tempfile::tempdir()?;
    let agent = || {
        let me = std::env::current_exe()?;
        let dir = dir.path().to_str().context("paths are UTF-8 here")?;
        let mut command = Command::new(me);
        command.args(["--ours", &reference, dir]);
        command.stdout(Stdio::null()).spawn().context("the pull")
    };
    let manifest: serde_json::Value = serde_json::from_slice(&registry.manifest("bench", "large"))?;
    let layers = manifest["layers"].as_array().context("layers")?;
    let total: u64 = layers
        .iter()
        .filter_map(|layer| layer["size"].as_u64())
        .sum();
    let mut broken = agent()?;
    while proxy.sent() < total / 10 * 9 {
        ensure!(broken.try_wait()?.is_none(), "the pull ended too early");
        std::thread::sleep(Duration::from_millis(1));
    }
    broken.kill()?;
    broken.wait()?;
    // The proxy notices that the connection is gone.
    std::thread::sleep(Duration::from_millis(200));
    let first = proxy.sent();
    ensure!(agent()?.wait()?.success(), "the second pull failed");
    let all = proxy.sent();
    let again = all.saturating_sub(total);
    eprintln!(
        "{total} bytes, {first} before the break, {} after it",
        all - first
    );
    println!(
        "bench resume_saved_percent {:.1}",
        100.0 - again as f64 * 100.0 / first as f64
    );
    Ok(())
}

/// Text that hardly compresses.
fn noise(seed: u64) -> String {
    let mut state = seed + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut text = String::new();
    while (text.len() as u64) < LAYER_BYTES {
        let word = next();
        // Each character carries six bits of noise.
        text.extend((0..10).map(|at| char::from(b'0' + (word >> (6 * at) & 63) as u8)));
    }
    text
}
