//! A registry on loopback, as unkind as they come, and what is fetched from it.

use super::{RemoteName, pull};
use job::image::cache::Cache;
use job::image::digest::Digest;
use job::image::error::Result;
use job::image::oci::Image;
use job::image::progress::Unseen;
use job::image::testing::{Archive, Image as Layout, gzip};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

/// What a registry has and how it behaves.
#[derive(Default)]
struct Behaviour {
    /// Manifests by tag or digest, blobs by digest.
    manifests: BTreeMap<String, Vec<u8>>,
    blobs: BTreeMap<String, Vec<u8>>,
    /// Wants a token.
    token: bool,
    /// Breaks off each blob after so many bytes.
    breaks: Option<usize>,
    /// Sends other bytes than it should.
    lies: bool,
    /// What was asked for, and from which byte.
    log: Vec<String>,
}

struct Registry {
    host: String,
    behaviour: Arc<Mutex<Behaviour>>,
}

impl Registry {
    fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let behaviour = Arc::new(Mutex::new(behaviour));
        let registry = Self { host, behaviour: behaviour.clone() };
        let host = registry.host.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = answer(stream, &host, &mut behaviour.lock().unwrap());
            }
        });
        registry
    }

    fn pull(&self, rest: &str, cache: &Cache) -> Result<Image> {
        let name = RemoteName::parse(&format!("{}/{rest}", self.host)).unwrap();
        pull(&name, cache, false, &mut Unseen)
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.behaviour.lock().unwrap().log)
    }
}

/// One request and its answer; then the connection ends.
fn answer(stream: TcpStream, host: &str, behaviour: &mut Behaviour) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let path = lines[0].split(' ').nth(1).unwrap().to_owned();
    let field = |name: &str| {
        lines.iter().find_map(|line| line.to_lowercase().strip_prefix(name).map(str::to_owned))
    };
    let from = field("range: bytes=").map(|range| range.trim_end_matches('-').to_owned());
    behaviour.log.push(format!("{path} {}", from.as_deref().unwrap_or("0")));
    let mut out = stream;
    let authorized = field("authorization: ").is_some_and(|value| value == "bearer t0ken");
    if path.starts_with("/token?") {
        return send(&mut out, "200 OK", "", br#"{"token":"t0ken"}"#);
    }
    if behaviour.token && !authorized {
        let header = format!(
            "WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"s\",\
             scope=\"repository:app:pull\"\r\n"
        );
        return send(&mut out, "401 Unauthorized", &header, b"");
    }
    if let Some(wanted) = path.strip_prefix("/v2/app/manifests/") {
        return match behaviour.manifests.get(wanted) {
            Some(bytes) => send(&mut out, "200 OK", "", bytes),
            None => send(&mut out, "404 Not Found", "", b"{}"),
        };
    }
    let blob = path.strip_prefix("/v2/app/blobs/").and_then(|name| behaviour.blobs.get(name));
    let Some(blob) = blob else { return send(&mut out, "404 Not Found", "", b"") };
    let mut blob = blob.clone();
    if behaviour.lies {
        blob.fill(b'x');
    }
    let start: usize = from.map_or(0, |from| from.parse().unwrap());
    let rest = &blob[start..];
    let status = if start > 0 { "206 Partial Content" } else { "200 OK" };
    let range = format!("Content-Range: bytes {start}-{}/{}\r\n", blob.len() - 1, blob.len());
    write!(out, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{range}\r\n", rest.len())?;
    out.write_all(&rest[..behaviour.breaks.unwrap_or(usize::MAX).min(rest.len())])
}

fn send(out: &mut TcpStream, status: &str, header: &str, body: &[u8]) -> std::io::Result<()> {
    let length = body.len();
    write!(
        out,
        "HTTP/1.1 {status}\r\n{header}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    out.write_all(body)
}

/// A registry with an image, as an index under the tag `1`.
fn registry() -> (Behaviour, Digest) {
    let mut layout = Layout::default();
    let archive = Archive::default().file("f", &[7; 5000]).finish();
    layout.layer(&archive, &archive);
    let other = Archive::default().file("g", b"1").finish();
    layout.layer(&other, &gzip(&other));
    let manifest = layout.manifest("amd64", json!({ "Cmd": ["/f"] }));
    let digest = manifest["digest"].as_str().unwrap().to_owned();
    let mut fitting = manifest.clone();
    fitting["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    let mut wrong = manifest;
    wrong["platform"] = json!({ "os": "linux", "architecture": "arm64" });
    let index = json!({ "manifests": [wrong, fitting] }).to_string().into_bytes();
    let bytes = layout.blobs.remove(&digest).unwrap();
    let manifests = BTreeMap::from([("1".to_owned(), index), (digest.clone(), bytes)]);
    let behaviour = Behaviour { manifests, blobs: layout.blobs, ..Behaviour::default() };
    (behaviour, Digest::parse(&digest).unwrap())
}

fn cache() -> (TempDir, Cache) {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::new(directory.path().join("cache"), 1 << 30);
    (directory, cache)
}

#[test]
fn an_image_is_fetched_once() {
    let (behaviour, digest) = registry();
    let registry = Registry::start(Behaviour { token: true, ..behaviour });
    let (_directory, cache) = cache();
    let image = registry.pull("app:1", &cache).unwrap();
    assert_eq!((image.digest, image.layers.len()), (digest, 2));
    assert_eq!(image.config.cmd, ["/f"]);
    let log = registry.log();
    assert!(log.iter().any(|line| line.starts_with("/token?service=s&scope=")), "{log:?}");
    assert_eq!(log.iter().filter(|line| line.contains("/blobs/")).count(), 3, "{log:?}");
    let path = cache.prepare(image, &mut Unseen).unwrap();
    assert!(path.exists());
    // By its digest, and nothing but the manifest is asked for.
    registry.pull(&format!("app@{digest}"), &cache).unwrap();
    let log = registry.log();
    assert!(log.iter().all(|line| !line.contains("/blobs/")), "{log:?}");
}

#[test]
fn what_breaks_off_is_taken_up_again() {
    let (behaviour, _) = registry();
    let registry = Registry::start(Behaviour { breaks: Some(1000), ..behaviour });
    let (_directory, cache) = cache();
    let image = registry.pull("app:1", &cache).unwrap();
    cache.prepare(image, &mut Unseen).unwrap();
    let log = registry.log();
    let starts: Vec<_> = log.iter().filter_map(|line| line.split(' ').nth(1)).collect();
    assert!(starts.contains(&"1000") && starts.contains(&"5000"), "{log:?}");
}

#[test]
fn what_was_fetched_in_part_is_kept_for_the_next_time() {
    let (behaviour, _) = registry();
    let large = behaviour.blobs.iter().find(|(_, blob)| blob.len() > 5000).unwrap();
    let (digest, bytes) = (Digest::parse(large.0).unwrap(), large.1.clone());
    let registry = Registry::start(behaviour);
    let (_directory, cache) = cache();
    let blobs = cache.blobs().join("sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(format!("{}.partial", digest.hex())), &bytes[..3000]).unwrap();
    registry.pull("app:1", &cache).unwrap();
    assert_eq!(std::fs::read(blobs.join(digest.hex())).unwrap(), bytes);
    assert!(registry.log().contains(&format!("/v2/app/blobs/{digest} 3000")));
}

#[test]
fn a_registry_that_lies_or_refuses_is_told_of() {
    let (behaviour, digest) = registry();
    let other = Digest::of(b"another");
    let lying = Registry::start(Behaviour { lies: true, ..behaviour });
    let swapped = lying.behaviour.lock().unwrap().manifests["1"].clone();
    lying.behaviour.lock().unwrap().manifests.insert(other.to_string(), swapped);
    let (_directory, cache) = cache();
    for (rest, part) in [
        ("app:1", "the registry sent sha256:"),
        (&format!("app@{other}"), "the registry sent sha256:"),
        ("app:absent", "does not have it"),
        ("other:1", "does not have it"),
    ] {
        let said = lying.pull(rest, &cache).unwrap_err().to_string();
        assert!(said.contains(part) && said.starts_with(&lying.host), "{said}");
    }
    let left = std::fs::read_dir(cache.blobs().join("sha256")).unwrap().count();
    assert_eq!(left, 0, "nothing of it is kept");
    let _ = digest;
    let nobody = RemoteName::parse("127.0.0.1:1/app").unwrap();
    let said = pull(&nobody, &cache, false, &mut Unseen).unwrap_err().to_string();
    assert!(said.contains("127.0.0.1:1/app:latest: ") && said.lines().count() == 1, "{said}");
}
