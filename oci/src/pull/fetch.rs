//! Downloads blobs into the store. Several blobs are downloaded at the same time. A blob is downloaded only once,
//! even if several pulls need it at the same time. When a connection breaks, the download continues after the last
//! byte that was received. A download that is too slow fails.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout_at};

use super::retry::Retry;
use super::{Failure, Run};
use crate::config::Timeouts;
use crate::digest::Digest;
use crate::image::Manifest;
use crate::progress::{PullEvent, PullProgress};
use crate::registry::{BlobBody, RegistryError, Session};
use crate::store::{Store, StoreError};

/// How many chunks may wait for the thread that hashes and writes them.
const QUEUE: usize = 16;
/// If a connection delivers this many bytes before it breaks, the count of tries starts again.
const GOOD_PROGRESS: u64 = 1 << 20;

/// One lock for each blob that is being downloaded.
#[derive(Debug, Clone, Default)]
pub(super) struct Flights(Arc<Mutex<BTreeMap<Digest, Weak<tokio::sync::Mutex<()>>>>>);

impl Flights {
    fn of(&self, digest: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, flight| flight.strong_count() > 0);
        if let Some(flight) = flights.get(&digest).and_then(Weak::upgrade) {
            return flight;
        }
        let flight = Arc::new(tokio::sync::Mutex::new(()));
        flights.insert(digest, Arc::downgrade(&flight));
        flight
    }
}

impl Run<'_> {
    /// Downloads the config and every layer that the store does not have. Returns how many bytes of layers
    /// were downloaded.
    pub(super) async fn fetch(&self, manifest: &Manifest) -> Result<u64, Failure> {
        let mut wanted: BTreeMap<Digest, u64> = BTreeMap::new();
        for layer in &manifest.layers {
            wanted.insert(layer.digest, layer.size);
        }
        let (config, config_size) = manifest.config;
        wanted.insert(config, config_size);
        self.look_for_room(&wanted)?;
        let slots = Arc::new(Semaphore::new(self.puller.config.parallel_layers.max(1)));
        let mut tasks = JoinSet::new();
        for (digest, size) in wanted {
            let blob = Blob {
                digest,
                size,
                store: self.puller.store.clone(),
                session: Arc::clone(&self.session),
                timeouts: self.puller.config.timeouts.clone(),
                progress: self.progress.clone(),
            };
            let (flight, slots) = (self.puller.flights.of(digest), Arc::clone(&slots));
            tasks.spawn(async move {
                let _only = flight.lock_owned().await;
                if blob.is_present() {
                    blob.progress.say(PullEvent::LayerPresent {
                        digest,
                        bytes: size,
                    });
                    return Ok((digest, 0));
                }
                let _slot = slots
                    .acquire()
                    .await
                    .expect("the semaphore is never closed");
                blob.fetch().await.map(|()| (digest, size))
            });
        }
        let mut fetched = 0;
        while let Some(result) = tasks.join_next().await {
            match result {
                Ok(result) => match result? {
                    (digest, _) if digest == config => {}
                    (_, size) => fetched += size,
                },
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        Ok(fetched)
    }
}

impl Run<'_> {
    /// Fails if the missing blobs do not fit on the disk, because a full disk would harm more than this pull.
    fn look_for_room(&self, wanted: &BTreeMap<Digest, u64>) -> Result<(), Failure> {
        let store = &self.puller.store;
        let missing = wanted
            .iter()
            .filter(|(digest, size)| !store.contains(digest, **size))
            .map(|(_, size)| size)
            .sum();
        Ok(store.has_room_for(missing, self.leave)?)
    }
}

/// One blob to download.
struct Blob {
    digest: Digest,
    size: u64,
    store: Store,
    session: Arc<Session>,
    timeouts: Timeouts,
    progress: PullProgress,
}

/// Why a body is not complete, and how to continue.
enum Broken {
    /// The connection broke: ask the same host for the rest.
    Resume(RegistryError),
    /// The host is at fault: throw away what it sent, and ask another host first.
    Restart(RegistryError),
}

impl Blob {
    /// Whether the store has the blob. A small document is hashed here; a layer is hashed when it is unpacked.
    fn is_present(&self) -> bool {
        self.store.contains(&self.digest, self.size)
            && (self.size > 64 << 10 || self.store.document(&self.digest).is_ok())
    }

    async fn fetch(&self) -> Result<(), Failure> {
        let (digest, size) = (self.digest, self.size);
        self.progress.say(PullEvent::LayerStarted {
            digest,
            bytes: size,
        });
        let mut retry = Retry::new(
            &self.timeouts,
            format!("blob {digest}"),
            self.progress.clone(),
        );
        let mut sink = Sink::open(&self.store, digest, size)?;
        let mut first_host = 0;
        loop {
            let error = match self.session.blob(&digest, sink.received, first_host).await {
                Err(error) => error,
                Ok(body) => {
                    first_host = body.host_index;
                    let (host, before) = (body.host.clone(), sink.received);
                    match self.receive(body, &mut sink).await? {
                        Ok(()) => match sink.commit(&host).await? {
                            Ok(()) => {
                                self.progress.say(PullEvent::LayerDone { digest });
                                return Ok(());
                            }
                            Err(error) => {
                                first_host += 1;
                                sink = Sink::open(&self.store, digest, size)?;
                                error
                            }
                        },
                        Err(Broken::Resume(error)) if sink.received > before => {
                            if sink.received - before >= GOOD_PROGRESS {
                                retry.start_over();
                            }
                            error
                        }
                        Err(Broken::Resume(error) | Broken::Restart(error)) => {
                            first_host += 1;
                            sink.discard().await;
                            sink = Sink::open(&self.store, digest, size)?;
                            error
                        }
                    }
                }
            };
            if let Err(error) = retry.after(error).await {
                sink.discard().await;
                return Err(error.into());
            }
        }
    }

    /// Writes a body to the sink. The outer error comes from the store, the inner error from the server.
    async fn receive(
        &self,
        body: BlobBody,
        sink: &mut Sink,
    ) -> Result<Result<(), Broken>, Failure> {
        let BlobBody {
            mut response, host, ..
        } = body;
        let what = || format!("blob {}", self.digest);
        if sink.received > 0 && !continues(&response, sink.received) {
            let fresh = Sink::open(&self.store, self.digest, self.size)?;
            std::mem::replace(sink, fresh).discard().await;
        }
        let Timeouts {
            slow_window,
            slow_bytes,
            ..
        } = self.timeouts;
        let mut window = (Instant::now() + slow_window, sink.received);
        loop {
            let chunk = match timeout_at(window.0, response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                // A body that breaks after its last byte is whole: asking for the rest would be answered with 416.
                Ok(Ok(None) | Err(_)) if sink.received == self.size => return Ok(Ok(())),
                Ok(Ok(None)) => {
                    let (want, got) = (self.size, sink.received);
                    let error = RegistryError::WrongSize {
                        what: what(),
                        host,
                        want,
                        got,
                    };
                    return Ok(Err(Broken::Resume(error)));
                }
                Ok(Err(source)) => {
                    let source = source.without_url();
                    let error = RegistryError::Http {
                        what: what(),
                        host,
                        source,
                    };
                    return Ok(Err(Broken::Resume(error)));
                }
                Err(_) if sink.received - window.1 >= slow_bytes => {
                    window = (Instant::now() + slow_window, sink.received);
                    continue;
                }
                Err(_) => {
                    let (what, bytes, window) = (what(), slow_bytes, slow_window);
                    let error = RegistryError::Slow {
                        what,
                        host,
                        bytes,
                        window,
                    };
                    return Ok(Err(Broken::Resume(error)));
                }
            };
            let got = sink.received + chunk.len() as u64;
            if got > self.size {
                let error = RegistryError::WrongSize {
                    what: what(),
                    host,
                    want: self.size,
                    got,
                };
                // There is no other host to ask, so the bytes that were received are kept.
                return Ok(Err(match self.session.has_one_host() {
                    true => Broken::Resume(error),
                    false => Broken::Restart(error),
                }));
            }
            sink.push(chunk).await?;
            self.progress.say(PullEvent::LayerProgress {
                digest: self.digest,
                received: got,
            });
        }
    }
}

/// Whether the response begins at this byte.
fn continues(response: &reqwest::Response, from: u64) -> bool {
    let range = response
        .headers()
        .get(CONTENT_RANGE)
        .and_then(|value| value.to_str().ok());
    let start = range
        .and_then(|text| text.strip_prefix("bytes "))
        .and_then(|text| text.split_once('-'))
        .and_then(|(start, _)| start.parse().ok());
    response.status() == StatusCode::PARTIAL_CONTENT && start == Some(from)
}

/// A blob that is being downloaded. A thread hashes and writes its chunks while the next ones are received.
struct Sink {
    received: u64,
    chunks: mpsc::Sender<Bytes>,
    writer: JoinHandle<Result<crate::store::BlobWriter, StoreError>>,
}

impl Sink {
    fn open(store: &Store, digest: Digest, size: u64) -> Result<Self, StoreError> {
        let mut writer = store.writer(digest, size)?;
        let (chunks, mut queue) = mpsc::channel::<Bytes>(QUEUE);
        let writer = tokio::task::spawn_blocking(move || {
            while let Some(chunk) = queue.blocking_recv() {
                writer.write(&chunk)?;
            }
            Ok(writer)
        });
        Ok(Self {
            received: 0,
            chunks,
            writer,
        })
    }

    async fn push(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        let count = chunk.len() as u64;
        if self.chunks.send(chunk).await.is_ok() {
            self.received += count;
            return Ok(());
        }
        // The thread ends early only with an error.
        match (&mut self.writer).await {
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) => unreachable!("the thread ends well only after the last chunk"),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Drops the blob, and waits until its temporary file is removed.
    async fn discard(self) {
        let Self { chunks, writer, .. } = self;
        drop(chunks);
        drop(writer.await);
    }

    /// Checks the digest of the blob and gives it its name. The inner error means that the host sent other content.
    async fn commit(self, host: &str) -> Result<Result<(), RegistryError>, StoreError> {
        let Self { chunks, writer, .. } = self;
        drop(chunks);
        let result = match writer.await {
            Ok(Ok(writer)) => crate::store::blocking(move || writer.commit()).await,
            Ok(Err(error)) => Err(error),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        match result {
            Ok(()) => Ok(Ok(())),
            Err(StoreError::WrongDigest { want, got }) => Ok(Err(RegistryError::WrongDigest {
                host: host.to_owned(),
                want,
                got,
            })),
            Err(error) => Err(error),
        }
    }
}
