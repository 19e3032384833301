//! An HTTP server in the process of the test. It sends whatever answer a test wants, and records all requests. There
//! is one thread and one request per connection.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request that the server received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// The path with the query.
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The first byte of the requested range.
    pub(crate) fn range(&self) -> usize {
        let range = self
            .header("range")
            .and_then(|text| text.strip_prefix("bytes="));
        range
            .and_then(|text| text.strip_suffix('-'))
            .map_or(0, |from| from.parse().unwrap())
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Body {
    Whole(Vec<u8>),
    /// Only `bytes` are sent, although the announced length is larger.
    Cut {
        announced: usize,
        bytes: Vec<u8>,
    },
    /// Only `bytes` are sent, and then nothing happens any more.
    Stuck {
        announced: usize,
        bytes: Vec<u8>,
    },
    /// A piece at a time, with this pause after each one.
    Paced {
        bytes: Vec<u8>,
        piece: usize,
        pause: Duration,
    },
    /// The bytes are sent again and again, without a length, until the client closes the connection.
    Endless(Vec<u8>),
    /// One byte at a time, with this pause after each byte.
    Trickle {
        bytes: Vec<u8>,
        pause: Duration,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Body,
}

impl Answer {
    pub(crate) fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Body::Whole(Vec::new()),
        }
    }

    pub(crate) fn ok(bytes: impl Into<Vec<u8>>) -> Self {
        Self::new(200).body(Body::Whole(bytes.into()))
    }

    /// The body, if it is sent whole.
    pub(crate) fn whole(&self) -> Option<Vec<u8>> {
        match &self.body {
            Body::Whole(bytes) => Some(bytes.clone()),
            Body::Cut { .. }
            | Body::Stuck { .. }
            | Body::Paced { .. }
            | Body::Endless(_)
            | Body::Trickle { .. } => None,
        }
    }

    pub(crate) fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

type Handler = dyn Fn(&Request) -> Answer + Send + Sync;

/// The server. Its thread runs and its port stays open until the process ends.
pub(crate) struct Liar {
    pub(crate) port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Liar {
    pub(crate) fn start(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, handler): (_, Arc<Handler>) = (Arc::clone(&requests), Arc::new(handler));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (seen, handler) = (Arc::clone(&seen), Arc::clone(&handler));
                std::thread::spawn(move || serve(stream, &seen, handler.as_ref()));
            }
        });
        Self { port, requests }
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The number of requests whose path contains `part`.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.requests()
            .iter()
            .filter(|request| request.path.contains(part))
            .count()
    }
}

fn serve(stream: TcpStream, seen: &Mutex<Vec<Request>>, handler: &Handler) {
    if let Some(request) = read(&stream) {
        seen.lock().unwrap().push(request.clone());
        // In many tests the client closes the connection early, so a write error is ignored.
        write(&stream, &handler(&request)).ok();
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    lines.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        lines.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut request = Request {
        method,
        path,
        headers,
        body: String::new(),
    };
    if let Some(length) = request.header("content-length") {
        let mut body = vec![0; length.parse().ok()?];
        std::io::Read::read_exact(&mut lines, &mut body).ok()?;
        request.body = String::from_utf8(body).ok()?;
    }
    Some(request)
}

fn write(mut stream: &TcpStream, answer: &Answer) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Lie\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let announced = match &answer.body {
        Body::Whole(bytes) | Body::Trickle { bytes, .. } | Body::Paced { bytes, .. } => {
            Some(bytes.len())
        }
        Body::Cut { announced, .. } | Body::Stuck { announced, .. } => Some(*announced),
        Body::Endless(_) => None,
    };
    if let Some(announced) = announced {
        head += &format!("Content-Length: {announced}\r\n");
    }
    stream.write_all(head.as_bytes())?;
    stream.write_all(b"\r\n")?;
    match &answer.body {
        Body::Whole(bytes) | Body::Cut { bytes, .. } => stream.write_all(bytes),
        Body::Stuck { bytes, .. } => {
            stream.write_all(bytes)?;
            // Until the client closes the connection.
            std::io::Read::read(&mut stream, &mut [0]).map(drop)
        }
        Body::Paced {
            bytes,
            piece,
            pause,
        } => {
            for piece in bytes.chunks(*piece) {
                stream.write_all(piece)?;
                std::thread::sleep(*pause);
            }
            Ok(())
        }
        Body::Endless(bytes) => loop {
            stream.write_all(bytes)?;
        },
        Body::Trickle { bytes, pause } => {
            for byte in bytes {
                stream.write_all(&[*byte])?;
                std::thread::sleep(*pause);
            }
            Ok(())
        }
    }
}
