//! A client that dies at its n-th write: before the request leaves, or after the server has carried it out and before the
//! answer is read. From then on nothing it is asked to do ever ends, as in a process that was killed.

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use http::{Method, Request, Response};
use kube::Client;
use kube::client::{Body, ClientBuilder};
use tokio::sync::Notify;
use tower::{BoxError, Layer, Service};

/// Where in a write the client dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Before,
    After,
}

/// The plan of a death, and whether it has come.
#[derive(Debug)]
pub struct Crash {
    at: usize,
    moment: Moment,
    writes: AtomicUsize,
    dead: AtomicBool,
    died: Notify,
}

impl Crash {
    /// To die at write number `at`, counted from one. Events do not count: they change nothing.
    #[must_use]
    pub fn at(at: usize, moment: Moment) -> Arc<Self> {
        Arc::new(Self {
            at,
            moment,
            writes: AtomicUsize::new(0),
            dead: AtomicBool::new(false),
            died: Notify::new(),
        })
    }

    /// Waits for the death.
    pub async fn died(&self) {
        while !self.dead.load(Ordering::SeqCst) {
            self.died.notified().await;
        }
    }

    fn die(&self) {
        self.dead.store(true, Ordering::SeqCst);
        self.died.notify_one();
    }
}

/// A client with the death in it.
pub fn client(config: kube::Config, crash: &Arc<Crash>) -> anyhow::Result<Client> {
    Ok(ClientBuilder::try_from(config)?
        .with_layer(&CrashLayer(Arc::clone(crash)))
        .build())
}

struct CrashLayer(Arc<Crash>);

impl<S> Layer<S> for CrashLayer {
    type Service = CrashService<S>;

    fn layer(&self, inner: S) -> CrashService<S> {
        CrashService {
            inner,
            crash: Arc::clone(&self.0),
        }
    }
}

#[derive(Clone)]
struct CrashService<S> {
    inner: S,
    crash: Arc<Crash>,
}

type Answer<B> = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

impl<S, B> Service<Request<Body>> for CrashService<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Answer<B>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let crash = Arc::clone(&self.crash);
        if crash.dead.load(Ordering::SeqCst) {
            return Box::pin(pending());
        }
        let counts =
            request.method() != Method::GET && !request.uri().path().contains("events.k8s.io");
        let due = counts && crash.writes.fetch_add(1, Ordering::SeqCst) + 1 == crash.at;
        if due && crash.moment == Moment::Before {
            crash.die();
            return Box::pin(pending());
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await.map_err(Into::into);
            if due {
                crash.die();
            }
            if crash.dead.load(Ordering::SeqCst) {
                return pending().await;
            }
            answer
        })
    }
}
