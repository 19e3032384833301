//! An API server in memory, with the semantics that the protocol of the lease leans on: one resource version for all
//! objects, preconditions, generations, subresources, finalizers, merge patches, and a log per kind that watches follow.

mod patch;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

/// A request as it comes over the wire.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: BTreeMap<String, String>,
    pub content_type: String,
    pub body: Value,
}

/// What the server says.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    pub code: u16,
    pub body: Value,
}

impl Response {
    /// A refusal.
    #[must_use]
    pub fn failure(code: u16, reason: &str, message: &str) -> Self {
        let body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "reason": reason, "message": message, "code": code,
        });
        Self { code, body }
    }

    /// A refusal that asks for patience.
    #[must_use]
    pub fn too_many_requests(seconds: u64) -> Self {
        let mut response = Self::failure(429, "TooManyRequests", "slow down");
        response.body["details"] = json!({ "retryAfterSeconds": seconds });
        response
    }

    /// What a PodDisruptionBudget says against an eviction.
    #[must_use]
    pub fn budget_refuses() -> Self {
        let message = "Cannot evict pod as it would violate the pod's disruption budget.";
        let mut response = Self::failure(429, "TooManyRequests", message);
        let why = "The disruption budget all needs 1 healthy pods and has 1 currently";
        let cause = json!({ "reason": "DisruptionBudget", "message": why });
        response.body["details"] = json!({ "causes": [cause] });
        response
    }

    fn object(object: &Value) -> Self {
        Self {
            code: 200,
            body: object.clone(),
        }
    }

    /// True when the server did what was asked.
    #[must_use]
    pub const fn is_success(&self) -> bool {
        self.code < 300
    }
}

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Entry {
    /// When, in milliseconds.
    pub at: u64,
    /// The object before; `None` when it was created.
    pub before: Option<Arc<Value>>,
    /// The object after; `None` when it is gone.
    pub after: Option<Arc<Value>>,
    pub key: String,
}

type Store = BTreeMap<String, Arc<Value>>;

/// The server.
#[derive(Debug, Default)]
pub struct Api {
    /// Milliseconds since the world began.
    pub now: u64,
    /// How far the watch cache is behind, in milliseconds: lists with `resourceVersion=0` come from there.
    pub cache_lag: u64,
    version: u64,
    uids: u64,
    stores: BTreeMap<String, Store>,
    logs: BTreeMap<String, Vec<Entry>>,
}

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
struct Route {
    plural: String,
    namespace: Option<String>,
    name: Option<String>,
    subresource: Option<String>,
}

impl Route {
    fn parse(path: &str) -> Option<Self> {
        let mut parts = path.split('/').filter(|part| !part.is_empty());
        match parts.next()? {
            "api" => parts.next()?,
            "apis" => parts.nth(1)?,
            _ => return None,
        };
        let mut plural = parts.next()?.to_owned();
        let mut namespace = None;
        if plural == "namespaces" {
            namespace = Some(parts.next()?.to_owned());
            plural = parts.next()?.to_owned();
        }
        Some(Self {
            plural,
            namespace,
            name: parts.next().map(str::to_owned),
            subresource: parts.next().map(str::to_owned),
        })
    }

    fn key(&self, name: &str) -> String {
        self.namespace
            .as_ref()
            .map_or_else(|| name.to_owned(), |ns| format!("{ns}/{name}"))
    }
}

const NODES: &str = "nodes";
const RFC_START: i64 = 1_800_000_000;

impl Api {
    /// Wall-clock time, RFC 3339.
    #[must_use]
    pub fn wall(&self) -> k8s_openapi::jiff::Timestamp {
        let now = i64::try_from(self.now).unwrap_or_default();
        k8s_openapi::jiff::Timestamp::from_millisecond(RFC_START * 1000 + now).unwrap_or_default()
    }

    /// The same, to the second, as it is written.
    #[must_use]
    pub fn stamp(&self) -> String {
        let wall = self.wall().as_second();
        k8s_openapi::jiff::Timestamp::from_second(wall)
            .unwrap_or_default()
            .to_string()
    }

    /// An object.
    #[must_use]
    pub fn get(&self, plural: &str, key: &str) -> Option<&Arc<Value>> {
        self.stores.get(plural)?.get(key)
    }

    /// All objects of a kind, by key.
    pub fn list(&self, plural: &str) -> impl Iterator<Item = (&String, &Arc<Value>)> {
        self.stores.get(plural).into_iter().flatten()
    }

    /// The log of a kind, from an index on.
    #[must_use]
    pub fn log(&self, plural: &str, from: usize) -> &[Entry] {
        self.logs
            .get(plural)
            .and_then(|log| log.get(from..))
            .unwrap_or_default()
    }

    /// Where the log of a kind ends.
    #[must_use]
    pub fn end(&self, plural: &str) -> usize {
        self.logs.get(plural).map_or(0, Vec::len)
    }

    /// Answers a request.
    pub fn serve(&mut self, request: &Request) -> Response {
        let Some(route) = Route::parse(&request.path) else {
            return Response::failure(404, "NotFound", "no such path");
        };
        match (request.method.as_str(), route.name.as_deref()) {
            ("GET", None) => self.list_response(&route, &request.query),
            ("GET", Some(name)) => match self.get(&route.plural, &route.key(name)) {
                Some(object) => Response::object(object),
                None => not_found(name),
            },
            ("POST", Some(name)) if route.subresource.as_deref() == Some("eviction") => {
                self.delete(&route, name, &request.body["deleteOptions"])
            }
            ("POST", None) => self.create(&route, &request.body),
            ("PATCH", Some(name)) if request.content_type.contains("apply-patch") => {
                if self.get(&route.plural, &route.key(name)).is_none() {
                    return self.create(&route, &request.body);
                }
                self.update(&route, name, &request.body, |there, body| {
                    patch::merge(there, body);
                })
            }
            ("PATCH", Some(name)) if request.content_type.contains("strategic") => {
                self.update(&route, name, &request.body, patch::strategic)
            }
            ("PATCH", Some(name)) => self.update(&route, name, &request.body, |there, body| {
                patch::merge(there, body);
            }),
            ("PUT", Some(name)) => self.update(&route, name, &request.body, patch::replace),
            ("DELETE", Some(name)) => self.delete(&route, name, &request.body),
            _ => Response::failure(405, "MethodNotAllowed", &request.method),
        }
    }

    fn list_response(&self, route: &Route, query: &BTreeMap<String, String>) -> Response {
        let selected = |object: &Value| {
            let fields = query.get("fieldSelector").map_or("", String::as_str);
            let fits = fields
                .split(',')
                .filter_map(|s| s.split_once('='))
                .all(|(path, want)| {
                    let pointer = format!("/{}", path.replace('.', "/"));
                    object.pointer(&pointer).and_then(Value::as_str) == Some(want)
                });
            let in_namespace = route.namespace.as_deref().is_none_or(|ns| {
                object
                    .pointer("/metadata/namespace")
                    .and_then(Value::as_str)
                    == Some(ns)
            });
            fits && in_namespace
        };
        let remembered = query.get("resourceVersion").is_some_and(|v| v == "0");
        let lag = if remembered { self.cache_lag } else { 0 };
        let store = self.as_it_was(&route.plural, lag);
        let items: Vec<&Value> = store
            .values()
            .map(|object| &**object)
            .filter(|object| selected(object))
            .collect();
        let metadata = json!({ "resourceVersion": self.version.to_string() });
        let body =
            json!({ "apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items });
        Response { code: 200, body }
    }

    /// All objects of a kind as they were so many milliseconds ago.
    fn as_it_was(&self, plural: &str, ago: u64) -> Store {
        let mut store = self.stores.get(plural).cloned().unwrap_or_default();
        let log = self.log(plural, 0).iter().rev();
        for entry in log.take_while(|entry| entry.at + ago > self.now) {
            match &entry.before {
                Some(before) => store.insert(entry.key.clone(), before.clone()),
                None => store.remove(&entry.key),
            };
        }
        store
    }

    fn create(&mut self, route: &Route, body: &Value) -> Response {
        let mut object = body.clone();
        let name = match object.pointer("/metadata/name").and_then(Value::as_str) {
            Some(name) => name.to_owned(),
            None => {
                let prefix = object.pointer("/metadata/generateName");
                let prefix = prefix.and_then(Value::as_str).unwrap_or("x-");
                format!("{prefix}{}", self.uids)
            }
        };
        let key = route.key(&name);
        if self.get(&route.plural, &key).is_some() {
            return Response::failure(409, "AlreadyExists", &format!("{key} exists"));
        }
        self.uids += 1;
        let metadata = &mut object["metadata"];
        metadata["name"] = json!(name);
        metadata["uid"] = json!(format!("{}-{}", route.plural, self.uids));
        metadata["generation"] = json!(1);
        metadata["creationTimestamp"] = json!(self.stamp());
        if let Some(namespace) = &route.namespace {
            metadata["namespace"] = json!(namespace);
        }
        if let Some(all) = metadata.as_object_mut() {
            all.remove("resourceVersion");
            all.remove("deletionTimestamp");
        }
        let stored = self.store(&route.plural, &key, object);
        Response {
            code: 201,
            body: (*stored).clone(),
        }
    }

    fn update(
        &mut self,
        route: &Route,
        name: &str,
        body: &Value,
        change: impl Fn(&mut Value, &Value),
    ) -> Response {
        let key = route.key(name);
        let Some(there) = self.get(&route.plural, &key).cloned() else {
            return not_found(name);
        };
        if let Err(refusal) = precondition(&there, &body["metadata"]) {
            return refusal;
        }
        let mut wanted = (*there).clone();
        let status_only = route.subresource.as_deref() == Some("status");
        change(&mut wanted, body);
        if status_only && route.plural == NODES {
            // A Node's labels and annotations may be written with its status.
            restore(&mut wanted, &there, "spec");
        } else if status_only {
            let status = wanted["status"].take();
            wanted = (*there).clone();
            wanted["status"] = status;
        } else if has_status(&route.plural) {
            restore(&mut wanted, &there, "status");
        }
        for field in [
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "generation",
            "resourceVersion",
            "name",
            "namespace",
        ] {
            restore(&mut wanted["metadata"], &there["metadata"], field);
        }
        let deleting = !there["metadata"]["deletionTimestamp"].is_null();
        if deleting && has_new_finalizer(&there, &wanted) {
            return Response::failure(
                422,
                "Invalid",
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted",
            );
        }
        if wanted == *there {
            return Response::object(&there);
        }
        if wanted["spec"] != there["spec"] {
            bump_generation(&mut wanted);
        }
        Response::object(&self.put(&route.plural, &key, wanted))
    }

    fn delete(&mut self, route: &Route, name: &str, options: &Value) -> Response {
        let key = route.key(name);
        let Some(there) = self.get(&route.plural, &key).cloned() else {
            return not_found(name);
        };
        if let Err(refusal) = precondition(&there, &options["preconditions"]) {
            return refusal;
        }
        if finalizers(&there).next().is_none() {
            self.remove(&route.plural, &key);
            let body = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" });
            return Response { code: 200, body };
        }
        if !there["metadata"]["deletionTimestamp"].is_null() {
            return Response::object(&there);
        }
        let mut wanted = (*there).clone();
        wanted["metadata"]["deletionTimestamp"] = json!(self.stamp());
        bump_generation(&mut wanted);
        Response::object(&self.store(&route.plural, &key, wanted))
    }

    /// Changes an object as somebody would who asks no questions.
    pub fn edit(&mut self, plural: &str, key: &str, change: impl Fn(&mut Value)) {
        let Some(there) = self.get(plural, key).cloned() else {
            return;
        };
        let mut wanted = (*there).clone();
        change(&mut wanted);
        if wanted == *there {
            return;
        }
        if wanted["spec"] != there["spec"] {
            bump_generation(&mut wanted);
        }
        self.put(plural, key, wanted);
    }

    /// Stores an object, unless it was only waiting for its last finalizer to go.
    fn put(&mut self, plural: &str, key: &str, object: Value) -> Arc<Value> {
        let deleting = !object["metadata"]["deletionTimestamp"].is_null();
        if deleting && finalizers(&object).next().is_none() {
            self.remove(plural, key);
            return Arc::new(object);
        }
        self.store(plural, key, object)
    }

    fn store(&mut self, plural: &str, key: &str, mut object: Value) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let object = Arc::new(object);
        let store = self.stores.entry(plural.to_owned()).or_default();
        let before = store.insert(key.to_owned(), object.clone());
        self.note(plural, key, before, Some(object.clone()));
        object
    }

    fn remove(&mut self, plural: &str, key: &str) {
        self.version += 1;
        let store = self.stores.entry(plural.to_owned()).or_default();
        if let Some(before) = store.remove(key) {
            self.note(plural, key, Some(before), None);
        }
    }

    fn note(
        &mut self,
        plural: &str,
        key: &str,
        before: Option<Arc<Value>>,
        after: Option<Arc<Value>>,
    ) {
        let entry = Entry {
            at: self.now,
            before,
            after,
            key: key.to_owned(),
        };
        self.logs.entry(plural.to_owned()).or_default().push(entry);
    }
}

fn not_found(name: &str) -> Response {
    Response::failure(404, "NotFound", &format!("{name} not found"))
}

fn has_status(plural: &str) -> bool {
    matches!(plural, "nodes" | "pods" | "skyhooks" | "interruptionleases")
}

fn precondition(there: &Value, wanted: &Value) -> Result<(), Response> {
    for field in ["uid", "resourceVersion"] {
        let want = &wanted[field];
        if !want.is_null() && *want != there["metadata"][field] {
            let message = format!(
                "precondition failed: {field} is {}, not {want}",
                there["metadata"][field]
            );
            return Err(Response::failure(409, "Conflict", &message));
        }
    }
    Ok(())
}

fn restore(wanted: &mut Value, there: &Value, field: &str) {
    match there.get(field) {
        Some(value) => wanted[field] = value.clone(),
        None => {
            if let Some(all) = wanted.as_object_mut() {
                all.remove(field);
            }
        }
    }
}

fn bump_generation(object: &mut Value) {
    let generation = object["metadata"]["generation"]
        .as_i64()
        .unwrap_or_default();
    object["metadata"]["generation"] = json!(generation + 1);
}

/// The finalizers of an object.
pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    object["metadata"]["finalizers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

fn has_new_finalizer(there: &Value, wanted: &Value) -> bool {
    finalizers(wanted).any(|finalizer| finalizers(there).all(|old| old != finalizer))
}

#[cfg(test)]
mod tests;
