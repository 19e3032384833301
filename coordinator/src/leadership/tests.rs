use std::convert::Infallible;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use kube::client::Body;
use serde_json::{Value, json};
use tower::service_fn;

use super::*;

/// An API server that holds one Lease.
#[derive(Clone, Debug, Default)]
struct Server(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    lease: Option<Value>,
    version: u64,
    writes: u64,
    /// The replicas that get no answer.
    cut_off: Vec<&'static str>,
}

impl Server {
    fn client(&self, who: &'static str) -> Client {
        let server = self.clone();
        let service = service_fn(move |request: http::Request<Body>| {
            let server = server.clone();
            async move {
                while server.0.lock().unwrap().cut_off.contains(&who) {
                    sleep(Duration::from_millis(100)).await;
                }
                let method = request.method().to_string();
                let body = request.into_body().collect_bytes().await.unwrap();
                let (code, body) = server.answer(&method, serde_json::from_slice(&body).ok());
                let body = Body::from(serde_json::to_vec(&body).unwrap());
                let response = http::Response::builder().status(code).body(body).unwrap();
                Ok::<_, Infallible>(response)
            }
        });
        Client::new(service, "skyhook")
    }

    fn answer(&self, method: &str, body: Option<Value>) -> (u16, Value) {
        let mut held = self.0.lock().unwrap();
        let refusal = |code, reason: &str| {
            let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": reason, "reason": reason, "code": code });
            (code, status)
        };
        match (method, &held.lease, body) {
            ("GET", Some(lease), _) => (200, lease.clone()),
            ("GET", None, _) => refusal(404, "NotFound"),
            ("POST", Some(_), _) => refusal(409, "AlreadyExists"),
            ("PUT", there, Some(body))
                if there.as_ref().map(|l| &l["metadata"]["resourceVersion"])
                    != Some(&body["metadata"]["resourceVersion"]) =>
            {
                refusal(409, "Conflict")
            }
            ("POST" | "PUT", _, Some(mut body)) => {
                held.version += 1;
                held.writes += 1;
                body["metadata"]["resourceVersion"] = json!(held.version.to_string());
                held.lease = Some(body.clone());
                (200, body)
            }
            _ => refusal(405, "MethodNotAllowed"),
        }
    }

    fn cut_off(&self, who: &[&'static str]) {
        self.0.lock().unwrap().cut_off = who.to_vec();
    }

    fn label(&self) {
        let mut held = self.0.lock().unwrap();
        held.version += 1;
        let version = held.version.to_string();
        if let Some(lease) = &mut held.lease {
            lease["metadata"]["labels"] = json!({ "by": "somebody" });
            lease["metadata"]["resourceVersion"] = json!(version);
        }
    }
}

const A: &str = "coordinator-a";
const B: &str = "coordinator-b";

/// A wall clock that advances by one second with each call.
fn right() -> Timestamp {
    static SECONDS: AtomicI64 = AtomicI64::new(1_800_000_000);
    Timestamp::from_second(SECONDS.fetch_add(1, Ordering::Relaxed)).unwrap()
}

fn an_hour_ahead() -> Timestamp {
    Timestamp::from_second(right().as_second() + 3600).unwrap()
}

fn stand(server: &Server, who: &'static str, clock: Clock) -> Leadership {
    Leadership::stand(server.client(who), "skyhook", who, clock)
}

/// Returns `A`, which leads, and `B`, which stands for election with the given clock.
async fn pair(server: &Server, clock: Clock) -> (Leadership, Leadership) {
    let mut first = stand(server, A, right);
    first.changed().await.unwrap();
    assert!(first.leads());
    let second = stand(server, B, clock);
    (first, second)
}

/// Waits for `milliseconds`. Returns after how many milliseconds `A` stopped leading and `B` began.
async fn watch(
    first: Option<&Leadership>,
    second: &Leadership,
    milliseconds: u64,
) -> (Option<u64>, Option<u64>) {
    let (mut lost, mut taken) = (None, None);
    for at in (0..milliseconds).step_by(50) {
        let leads = first.is_some_and(Leadership::leads);
        assert!(!(leads && second.leads()), "both lead after {at} ms");
        if !leads {
            lost = lost.or(Some(at));
        }
        if second.leads() {
            taken = taken.or(Some(at));
        }
        sleep(Duration::from_millis(50)).await;
    }
    (lost, taken)
}

#[tokio::test(start_paused = true)]
async fn a_replica_whose_clock_is_ahead_does_not_take_over() {
    let server = Server::default();
    let (first, second) = pair(&server, an_hour_ahead).await;
    assert_eq!(watch(Some(&first), &second, 120_000).await, (None, None));
    // A new replica does not take over either, while the leader's last renewal is some seconds old.
    server.cut_off(&[A]);
    sleep(Duration::from_secs(3)).await;
    let third = stand(&server, "coordinator-c", an_hour_ahead);
    assert_eq!(watch(Some(&first), &third, 3_000).await, (None, None));
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_three_seconds_moves_nothing() {
    let server = Server::default();
    let (first, second) = pair(&server, right).await;
    for (who, pause) in [(&[A, B][..], 3), (&[A][..], 3), (&[A][..], 7)] {
        server.cut_off(who);
        let pause = pause * 1000;
        assert_eq!(
            watch(Some(&first), &second, pause).await,
            (None, None),
            "{who:?}"
        );
        server.cut_off(&[]);
        assert_eq!(
            watch(Some(&first), &second, 30_000).await,
            (None, None),
            "{who:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_stops_before_another_one_begins() {
    let server = Server::default();
    let (mut first, second) = pair(&server, right).await;
    server.cut_off(&[A]);
    let (lost, taken) = watch(Some(&first), &second, 30_000).await;
    let (lost, taken) = (lost.unwrap(), taken.unwrap());
    assert!((7_900..=10_000).contains(&lost), "{lost} ms");
    assert!((12_900..=17_500).contains(&taken), "{taken} ms");
    first.changed().await.unwrap();
    assert!(!first.leads(), "and is told so");
    server.cut_off(&[]);
    sleep(Duration::from_secs(30)).await;
    assert!(second.leads() && !first.leads());
}

#[tokio::test(start_paused = true)]
async fn one_that_resigns_is_followed_at_the_next_look() {
    let server = Server::default();
    let (first, second) = pair(&server, right).await;
    sleep(Duration::from_secs(60)).await;
    first.resign().await;
    let (_, taken) = watch(None, &second, 30_000).await;
    assert!(taken.unwrap() <= 2_500, "{taken:?}");
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_comes_again_under_its_name_leads_at_once() {
    let server = Server::default();
    let (first, second) = pair(&server, right).await;
    // A crash: the Lease is not given up.
    first.election.as_ref().unwrap().1.abort();
    sleep(Duration::from_secs(5)).await;
    let crashed = Instant::now();
    let mut again = stand(&server, A, right);
    again.changed().await.unwrap();
    assert!(again.leads() && crashed.elapsed() < Duration::from_secs(1));
    assert!(!second.leads());
}

#[tokio::test(start_paused = true)]
async fn somebody_elses_label_costs_nothing_and_renewals_are_rare() {
    let server = Server::default();
    let (first, second) = pair(&server, right).await;
    server.label();
    assert_eq!(watch(Some(&first), &second, 60_000).await, (None, None));
    let writes = server.0.lock().unwrap().writes;
    assert!((28..=33).contains(&writes), "{writes} writes in a minute");
}
