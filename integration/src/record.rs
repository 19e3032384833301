//! A record of how the objects of one kind change, moment by moment, as the API server's one ordered stream tells it.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, bail};
use futures::{StreamExt, TryStreamExt};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

/// What is kept of the changes.
pub trait Record: Default + Send + 'static {
    type Object: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + 'static;

    /// The object was made or changed, or was there at the beginning.
    fn is(&mut self, object: Self::Object);

    fn is_gone(&mut self, object: Self::Object);
}

/// Records for as long as it lives.
#[derive(Debug)]
pub struct Recorder<R> {
    state: Arc<Mutex<State<R>>>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State<R> {
    record: R,
    gap: Option<String>,
}

impl<R: Record> Recorder<R> {
    /// Returns once the watch delivers.
    pub async fn start(client: kube::Client) -> Result<Self> {
        let api = Api::<R::Object>::all(client);
        let mut events = watcher::watcher(api, watcher::Config::default()).boxed();
        let mut state = State::<R>::default();
        // The list ends with InitDone: from there on nothing is missed.
        while let Some(event) = events.try_next().await? {
            match event {
                Event::InitApply(object) => state.record.is(object),
                Event::InitDone => break,
                Event::Init | Event::Apply(_) | Event::Delete(_) => {}
            }
        }
        let state = Arc::new(Mutex::new(state));
        let kept = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                locked(&kept).take(event);
            }
        });
        Ok(Self { state, task })
    }

    /// Reads it. There may have been a gap.
    pub fn look<T>(&self, read: impl FnOnce(&R) -> T) -> T {
        read(&locked(&self.state).record)
    }

    /// Reads it; fails if the stream had a gap.
    pub fn whole<T>(&self, read: impl FnOnce(&R) -> T) -> Result<T> {
        let state = locked(&self.state);
        match &state.gap {
            None => Ok(read(&state.record)),
            Some(why) => bail!("the record of {} has a gap: {why}", R::Object::plural(&())),
        }
    }
}

impl<R> Drop for Recorder<R> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<R: Record> State<R> {
    fn take(&mut self, event: watcher::Result<Event<R::Object>>) {
        match event {
            Ok(Event::Apply(object)) => self.record.is(object),
            Ok(Event::Delete(object)) => self.record.is_gone(object),
            Ok(Event::Init | Event::InitApply(_) | Event::InitDone) => {
                self.gap = Some("the list was read again".to_owned());
            }
            // It is started again from the version that was seen last. Where that is too old, the list is read again.
            Err(watcher::Error::WatchStartFailed(_)) => {}
            Err(error) => self.gap = Some(error.to_string()),
        }
    }
}

fn locked<R>(state: &Mutex<State<R>>) -> MutexGuard<'_, State<R>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use kube::runtime::watcher::Error;
    use skyhook_crds::InterruptionLease;

    use super::*;

    #[derive(Debug, Default)]
    struct Nothing;

    impl Record for Nothing {
        type Object = InterruptionLease;

        fn is(&mut self, _: InterruptionLease) {}

        fn is_gone(&mut self, _: InterruptionLease) {}
    }

    #[test]
    fn a_watch_that_has_to_be_started_again_is_no_gap() {
        let error = || kube::Error::LinesCodecMaxLineLengthExceeded;
        for (event, is_gap) in [
            (Err(Error::WatchStartFailed(error())), false),
            (Err(Error::WatchFailed(error())), true),
            (Ok(Event::Init), true),
        ] {
            let what = format!("{event:?}");
            let mut state = State::<Nothing>::default();
            state.take(event);
            assert_eq!(state.gap.is_some(), is_gap, "{what}");
        }
    }
}
