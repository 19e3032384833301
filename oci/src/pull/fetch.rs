//! Downloads blobs into the store. Several blobs are downloaded at the same time. A blob is downloaded only
//! once from a registry, even if several pulls need it at the same time. When a connection breaks, the download
//! continues after the last byte that was received. A download that is too slow fails.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout_at};

use super::retry::Retry;
use super::{Failure, Run, answered};
use crate::config::Timeouts;
use crate::digest::Digest;
use crate::image::{ImageError, Manifest};
use crate::progress::{PullEvent, PullProgress};
use crate::registry::{BlobBody, RegistryError, Session};
use crate::store::{BlobWriter, Store, StoreError, blocking};

/// How many chunks may wait for the thread that hashes and writes them.
const QUEUE: usize = 16;
/// If a blob has grown by this many bytes before its connection breaks, the count of tries starts again.
const GOOD_PROGRESS: u64 = 1 << 20;

/// One lock for each blob that is being downloaded from a registry. A registry that is slow does not keep pulls from
/// another one waiting: they download the blob themselves.
#[derive(Debug, Clone, Default)]
pub(super) struct Flights(Arc<Mutex<BTreeMap<(Digest, String), Flight>>>);

type Flight = Weak<tokio::sync::Mutex<()>>;

impl Flights {
    fn of(&self, digest: Digest, registry: &str) -> Arc<tokio::sync::Mutex<()>> {
        let key = (digest, registry.to_owned());
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, flight| flight.strong_count() > 0);
        if let Some(flight) = flights.get(&key).and_then(Weak::upgrade) {
            return flight;
        }
        let flight = Arc::new(tokio::sync::Mutex::new(()));
        flights.insert(key, Arc::downgrade(&flight));
        flight
    }
}

impl Run<'_> {
    /// Downloads the config and every layer that the store does not have. Returns how many bytes of layers
    /// were downloaded.
    pub(super) async fn fetch(&self, manifest: &Manifest) -> Result<u64, Failure> {
        self.keep_embedded(manifest).await?;
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
            let blob = self.blob(digest, size);
            let (flight, slots) = (self.flight(digest), Arc::clone(&slots));
            tasks.spawn(async move {
                let fetched = blob.fetch_once(&flight, &slots).await;
                (digest, fetched)
            });
        }
        let mut fetched = 0;
        while let Some(result) = tasks.join_next().await {
            match result {
                Ok((digest, Ok(_))) if digest == config => {}
                Ok((_, Ok(bytes))) => fetched += bytes,
                Ok((digest, Err(error))) => return Err(foreign(manifest, digest, error)),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        Ok(fetched)
    }

    /// Downloads the config alone, to see which platform the image is for.
    pub(super) async fn fetch_config(&self, manifest: &Manifest) -> Result<(), Failure> {
        self.keep_embedded(manifest).await?;
        let (digest, size) = manifest.config;
        let flight = self.flight(digest);
        let blob = self.blob(digest, size);
        blob.fetch_once(&flight, &Semaphore::new(1)).await?;
        Ok(())
    }

    /// Puts the blobs into the store that the manifest itself contains.
    async fn keep_embedded(&self, manifest: &Manifest) -> Result<(), Failure> {
        for (digest, bytes) in manifest.embedded.clone() {
            let store = self.puller.store.clone();
            blocking(move || store.put_document(&digest, &bytes)).await?;
        }
        Ok(())
    }

    fn flight(&self, digest: Digest) -> Arc<tokio::sync::Mutex<()>> {
        self.puller.flights.of(digest, self.session.registry())
    }

    fn blob(&self, digest: Digest, size: u64) -> Blob {
        Blob {
            digest,
            size,
            store: self.puller.store.clone(),
            session: Arc::clone(&self.session),
            timeouts: self.puller.config.timeouts.clone(),
            progress: self.progress.clone(),
        }
    }
}

/// The error of a layer that may be missing from its registry, because its manifest names another place for it.
fn foreign(manifest: &Manifest, digest: Digest, error: Failure) -> Failure {
    let mut layers = manifest.layers.iter().enumerate();
    match (layers.find(|(_, layer)| layer.digest == digest), error) {
        (Some((index, layer)), Failure::Registry(RegistryError::NotFound { .. }))
            if !layer.urls.is_empty() =>
        {
            Failure::Image(ImageError::Foreign {
                index,
                digest,
                url: layer.urls[0].clone(),
            })
        }
        (_, error) => error,
    }
}

impl Run<'_> {
    /// Fails if the missing blobs do not fit on the disk, because a full disk would harm more than this pull.
    fn look_for_room(&self, wanted: &BTreeMap<Digest, u64>) -> Result<(), Failure> {
        let store = &self.puller.store;
        let missing = wanted
            .iter()
            .filter(|(digest, size)| !store.contains(digest, **size))
            .map(|(digest, size)| size.saturating_sub(store.partial_bytes(digest)))
            .fold(0, u64::saturating_add);
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
    /// The connection broke, or was too slow, after so many bytes: ask for the rest.
    Resume { error: RegistryError, got: u64 },
    /// The host is at fault: throw away what it sent, and ask another host first.
    Restart(RegistryError),
}

impl Blob {
    /// Whether the store has the blob. A small document is hashed here; a layer is hashed when it is unpacked.
    fn is_present(&self) -> bool {
        self.store.contains(&self.digest, self.size)
            && (self.size > 64 << 10 || self.store.document(&self.digest).is_ok())
    }

    /// Downloads the blob unless the store has it, or another pull downloads it now. Returns how many bytes were
    /// downloaded.
    async fn fetch_once(
        &self,
        flight: &tokio::sync::Mutex<()>,
        slots: &Semaphore,
    ) -> Result<u64, Failure> {
        let _only = flight.lock().await;
        let (digest, bytes) = (self.digest, self.size);
        if self.is_present() {
            self.progress.say(PullEvent::LayerPresent { digest, bytes });
            return Ok(0);
        }
        let _slot = slots
            .acquire()
            .await
            .expect("the semaphore is never closed");
        self.progress.say(PullEvent::LayerStarted { digest, bytes });
        let fetched = self.fetch().await?;
        self.progress.say(PullEvent::LayerDone { digest });
        Ok(fetched)
    }

    /// Downloads the blob, from where an earlier download has ended.
    async fn fetch(&self) -> Result<u64, Failure> {
        let what = format!("blob {}", self.digest);
        let mut retry = Retry::new(&self.timeouts, what.clone(), self.progress.clone());
        let mut sink = self.open().await?;
        let mut fetched = 0;
        let mut first_host = 0;
        // A download that begins anew again and again goes on only if it gets further than before.
        let mut furthest = sink.received;
        loop {
            if sink.is_resumed() && sink.received == self.size {
                // An earlier pull has received the last byte, and has not checked the digest.
                match sink.commit("an earlier pull").await? {
                    Ok(()) => return Ok(fetched),
                    Err(error) => tracing::warn!(%error, "a partial blob is downloaded anew"),
                }
                sink = self.open().await?;
            }
            let host = self.session.registry();
            let answer = self.session.blob(&self.digest, sink.received, first_host);
            let error = match answered(&self.timeouts, &what, host, answer).await {
                // The server has a shorter blob than the one that was begun, or cannot continue it.
                Err(RegistryError::Status { status, host, .. })
                    if sink.received > 0 && status == StatusCode::RANGE_NOT_SATISFIABLE =>
                {
                    let (want, got) = (self.size, sink.received);
                    sink.restart(&self.store, self.digest, self.size).await?;
                    let what = what.clone();
                    RegistryError::WrongSize {
                        what,
                        host,
                        want,
                        got,
                    }
                }
                Err(error) => error,
                Ok(body) => {
                    first_host = body.host_index;
                    let host = body.host.clone();
                    let received = self.receive(body, &mut sink).await?;
                    fetched += sink.take_new();
                    match received {
                        Ok(()) => {
                            let is_whole = sink.answers == 1 && !sink.is_resumed();
                            match sink.commit(&host).await? {
                                Ok(()) => return Ok(fetched),
                                Err(error) => {
                                    // If there were several answers, the wrong bytes may be in any of them.
                                    first_host += usize::from(is_whole);
                                    sink = self.open().await?;
                                    error
                                }
                            }
                        }
                        Err(Broken::Resume { error, got }) => {
                            if sink.received >= furthest.saturating_add(GOOD_PROGRESS) {
                                retry.start_over();
                                furthest = sink.received;
                            }
                            let is_short = matches!(error, RegistryError::WrongSize { .. });
                            first_host += usize::from(got == 0 || is_short);
                            error
                        }
                        Err(Broken::Restart(error)) => {
                            first_host += 1;
                            sink.restart(&self.store, self.digest, self.size).await?;
                            error
                        }
                    }
                }
            };
            if let Err(error) = retry.after(error).await {
                // What was received stays in the store for the next pull.
                sink.close().await;
                return Err(error.into());
            }
        }
    }

    async fn open(&self) -> Result<Sink, StoreError> {
        Sink::open(&self.store, self.digest, self.size).await
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
            // The server sends the whole blob.
            sink.restart(&self.store, self.digest, self.size).await?;
        }
        sink.answers += 1;
        let version = response.version();
        tracing::debug!(%host, ?version, digest = %self.digest, from = sink.received, "downloading a blob");
        let start = sink.received;
        let resume = |error, sink: &Sink| {
            let got = sink.received - start;
            Ok(Err(Broken::Resume { error, got }))
        };
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
                    return resume(error, sink);
                }
                Ok(Err(source)) => {
                    let source = source.without_url();
                    let error = RegistryError::Http {
                        what: what(),
                        host,
                        wants_certificate: false,
                        source,
                    };
                    return resume(error, sink);
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
                    return resume(error, sink);
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
                return Ok(Err(Broken::Restart(error)));
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
    response.status() == StatusCode::PARTIAL_CONTENT && range.and_then(range_start) == Some(from)
}

/// The first byte of a `Content-Range`, such as `bytes 10-99/100`.
pub(crate) fn range_start(text: &str) -> Option<u64> {
    let (unit, range) = text.trim().split_once(' ')?;
    let (start, _) = range.trim_start().split_once('-')?;
    unit.eq_ignore_ascii_case("bytes")
        .then(|| start.trim().parse().ok())?
}

/// A blob that is being downloaded. A thread hashes and writes its chunks while the next ones are received.
struct Sink {
    /// Bytes of the blob that are there.
    received: u64,
    /// Bytes that were there before this download.
    resumed: u64,
    /// Bytes that were received since they were counted last.
    new: u64,
    /// How many answers of servers its bytes are from, without those of earlier downloads.
    answers: u32,
    chunks: mpsc::Sender<Bytes>,
    writer: JoinHandle<Result<BlobWriter, StoreError>>,
}

impl Sink {
    async fn open(store: &Store, digest: Digest, size: u64) -> Result<Self, StoreError> {
        let store = store.clone();
        let mut writer = blocking(move || store.continued(digest, size)).await?;
        let resumed = writer.written();
        let (chunks, mut queue) = mpsc::channel::<Bytes>(QUEUE);
        let writer = tokio::task::spawn_blocking(move || {
            while let Some(chunk) = queue.blocking_recv() {
                writer.write(&chunk)?;
            }
            Ok(writer)
        });
        Ok(Self {
            received: resumed,
            resumed,
            new: 0,
            answers: 0,
            chunks,
            writer,
        })
    }

    /// Removes the bytes, and begins anew.
    async fn restart(
        &mut self,
        store: &Store,
        digest: Digest,
        size: u64,
    ) -> Result<(), StoreError> {
        let (chunks, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut self.chunks, chunks));
        if let Ok(Ok(mut writer)) = (&mut self.writer).await {
            blocking(move || writer.remove()).await;
        }
        *self = Self::open(store, digest, size).await?;
        Ok(())
    }

    fn is_resumed(&self) -> bool {
        self.resumed > 0
    }

    fn take_new(&mut self) -> u64 {
        std::mem::take(&mut self.new)
    }

    async fn push(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        let count = chunk.len() as u64;
        if self.chunks.send(chunk).await.is_ok() {
            self.received += count;
            self.new += count;
            return Ok(());
        }
        // The thread ends early only with an error.
        match (&mut self.writer).await {
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) => unreachable!("the thread ends well only after the last chunk"),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Waits until all bytes are written, and keeps them for the next download.
    async fn close(self) {
        let Self { chunks, writer, .. } = self;
        drop(chunks);
        drop(writer.await);
    }

    /// Checks the digest of the blob and gives it its name. The inner error means that the host sent other content.
    async fn commit(self, host: &str) -> Result<Result<(), RegistryError>, StoreError> {
        let Self { chunks, writer, .. } = self;
        drop(chunks);
        let result = match writer.await {
            Ok(Ok(writer)) => blocking(move || writer.commit()).await,
            Ok(Err(error)) => Err(error),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        match result {
            Ok(()) => Ok(Ok(())),
            Err(StoreError::WrongDigest(digests)) => Ok(Err(RegistryError::WrongDigest {
                host: host.to_owned(),
                digests,
            })),
            Err(error) => Err(error),
        }
    }
}
