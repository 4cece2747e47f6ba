//! A proxy before a registry that changes answers by a rule of the test and records the requests.
//! One connection is one request.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// A request's first line and headers.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Tells whether it requests a blob's content.
    pub(crate) fn is_blob(&self) -> bool {
        self.method == "GET" && self.path.contains("/blobs/sha256:")
    }
}

/// The handling of a request.
pub(crate) enum Act {
    /// Passes the registry's answer on.
    Pass,
    /// Ends the body of the registry's answer after so many bytes.
    Cut(usize),
    /// Like `Cut`, but the connection stays open until the other side closes it.
    Stall(usize),
    /// Flips one bit of the body.
    Flip(usize),
    /// Sends the request to the registry without its Range header.
    NoRange,
    /// Closes the connection without an answer.
    HangUp,
    /// Makes the Location of an upload relative, with `..` in it.
    RelativeUpload,
    /// Sends this answer instead of the registry's: status line and headers, body.
    Answer(String, String),
    /// Like `Answer`, but the registry gets the request.
    Instead(String, String),
}

type Rule = dyn Fn(&Asked) -> Act + Send + Sync;

pub(crate) struct Proxy {
    pub(crate) port: u16,
    log: Arc<Mutex<Vec<Asked>>>,
}

impl Proxy {
    /// Starts the proxy. The threads end with the test's process.
    pub(crate) fn start(to: u16, rule: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (rule, kept): (Arc<Rule>, _) = (Arc::new(rule), log.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (rule, log) = (rule.clone(), kept.clone());
                // The test itself notices a broken connection.
                thread::spawn(move || serve(stream, to, &*rule, &log).ok());
            }
        });
        Self { port, log }
    }

    pub(crate) fn name(&self, rest: &str) -> String {
        format!("127.0.0.1:{}/{rest}", self.port)
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.log.lock().unwrap().clone()
    }

    /// Returns the requests for blobs.
    pub(crate) fn blobs(&self) -> Vec<Asked> {
        self.asked().into_iter().filter(Asked::is_blob).collect()
    }

    pub(crate) fn forget(&self) {
        self.log.lock().unwrap().clear();
    }
}

fn serve(
    mut client: TcpStream,
    to: u16,
    rule: &Rule,
    log: &Mutex<Vec<Asked>>,
) -> std::io::Result<()> {
    let Some((asked, raw_body)) = request(&mut client)? else {
        // The client tries TLS: this is the answer of Go's server.
        client.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent TLS\n")?;
        return client.shutdown(Shutdown::Both);
    };
    log.lock().unwrap().push(asked.clone());
    let act = rule(&asked);
    if let Act::Answer(head, body) = &act {
        return answer(&mut client, head, body);
    }
    if matches!(act, Act::HangUp) {
        return client.shutdown(Shutdown::Both);
    }
    let mut upstream = TcpStream::connect(("127.0.0.1", to))?;
    write!(upstream, "{} {} HTTP/1.1\r\n", asked.method, asked.path)?;
    for (name, value) in &asked.headers {
        let dropped = name == "connection" || (name == "range" && matches!(act, Act::NoRange));
        if !dropped {
            write!(upstream, "{name}: {value}\r\n")?;
        }
    }
    upstream.write_all(b"connection: close\r\n\r\n")?;
    upstream.write_all(&raw_body)?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer)?;
    let body = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    match act {
        Act::Cut(at) | Act::Stall(at) => {
            client.write_all(&answer[..(body + at).min(answer.len())])?;
            client.flush()?;
            if matches!(act, Act::Stall(_)) {
                let _ = client.read(&mut [0]);
            }
        }
        Act::Flip(at) => {
            answer[body + at] ^= 1;
            client.write_all(&answer)?;
        }
        Act::RelativeUpload => {
            let text = String::from_utf8(answer).unwrap();
            let (before, place) = text.split_once("Location: ").unwrap();
            let (_, rest) = place.split_once("/blobs/uploads/").unwrap();
            write!(client, "{before}Location: ../x/../uploads/./{rest}")?;
        }
        Act::Instead(head, body) => return self::answer(&mut client, &head, &body),
        _ => client.write_all(&answer)?,
    }
    client.shutdown(Shutdown::Both)
}

fn answer(client: &mut TcpStream, head: &str, body: &str) -> std::io::Result<()> {
    let length = body.len();
    write!(
        client,
        "HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    client.shutdown(Shutdown::Write)
}

/// Reads a request. `None` if there is none.
fn request(client: &mut TcpStream) -> std::io::Result<Option<(Asked, Vec<u8>)>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
        if head[0] == 0x16 {
            return Ok(None);
        }
    }
    let text = String::from_utf8(head).unwrap();
    let mut lines = text.lines();
    let mut first = lines.next().unwrap().split(' ').map(str::to_owned);
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let mut asked = Asked {
        method: first.next().unwrap(),
        path: first.next().unwrap(),
        headers,
        body: String::new(),
    };
    let length = asked
        .header("content-length")
        .map_or(0, |l| l.parse().unwrap());
    let mut body = vec![0; length];
    client.read_exact(&mut body)?;
    asked.body = String::from_utf8_lossy(&body).into_owned();
    Ok(Some((asked, body)))
}
