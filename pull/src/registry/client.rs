//! Requests to a registry, one after the other.

use super::RemoteName;
use super::auth::{Challenge, Token, credentials};
use job::image::digest::Digest;
use job::image::error::{Error, Result};
use job::image::limits;
use job::image::progress::Progress;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use ureq::http::{Response, StatusCode, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

/// How often what broke off is taken up again.
const ATTEMPTS: u32 = 5;
/// How long we wait before that, the first time.
const PAUSE: Duration = Duration::from_millis(300);
/// Bytes of the document that a token comes in.
const TOKEN: u64 = 1 << 20;
/// How long a registry may be silent.
const SILENCE: Duration = Duration::from_secs(60);
/// Manifests and indexes, as OCI and Docker name them.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// One repository of one registry.
pub struct Client {
    agent: Agent,
    /// What errors are about.
    object: String,
    host: String,
    /// `https://HOST/v2/NAME`
    base: String,
    secure: bool,
    authorization: Option<String>,
}

impl Client {
    /// Nothing is sent yet.
    pub fn new(name: &RemoteName, plain_http: bool) -> Result<Self> {
        let secure = !plain_http && !name.is_loopback();
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("microvm/", env!("CARGO_PKG_VERSION")))
            .https_only(secure)
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE));
        if secure {
            config = config.tls_config(tls(name)?);
        }
        let scheme = if secure { "https" } else { "http" };
        Ok(Self {
            agent: config.build().new_agent(),
            object: name.to_string(),
            host: name.host.clone(),
            base: format!("{scheme}://{}/v2/{}", name.host, name.name),
            secure,
            authorization: None,
        })
    }

    fn failed(&self, reason: impl ToString) -> Error {
        Error::Registry { object: self.object.clone(), reason: reason.to_string() }
    }

    /// A manifest or index.
    pub fn manifest(&mut self, reference: &str) -> Result<Vec<u8>> {
        let url = format!("{}/manifests/{reference}", self.base);
        let mut response = self.get(&url, 0)?;
        self.expect(&response)?;
        let mut bytes = Vec::new();
        let reader = response.body_mut().as_reader();
        reader
            .take(limits::DOCUMENT + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| self.failed(error))?;
        if bytes.len() as u64 > limits::DOCUMENT {
            return Err(self.failed("its manifest is larger than 4 MiB"));
        }
        Ok(bytes)
    }

    /// Fetches a blob, or what is missing of it, to a file.
    pub fn blob(
        &mut self,
        digest: Digest,
        size: u64,
        path: &Path,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let partial = path.with_extension("partial");
        let host = |error: io::Error| Error::host(&partial)(error);
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&partial).map_err(host)?;
        // Another who fetches the same has it; when he is done, so are we.
        flock(&file, FlockOperation::LockExclusive).map_err(|error| host(error.into()))?;
        if fs::metadata(path).is_ok_and(|found| found.len() == size) {
            progress.advance(size);
            return Ok(());
        }
        let have = file.metadata().map_err(host)?.len().min(size);
        let mut partly = Partly { file, path: &partial, have, size, shown: have };
        progress.advance(have);
        let mut failures = 0;
        while partly.have < size {
            let before = partly.have;
            let broke = self.fetch(digest, &mut partly, progress)?;
            failures = if partly.have > before { 0 } else { failures + 1 };
            if failures >= ATTEMPTS {
                return Err(broke.unwrap_or_else(|| self.failed("sends less than it should")));
            }
            thread::sleep(PAUSE * failures);
        }
        let mut file = partly.file;
        file.seek(SeekFrom::Start(0)).map_err(host)?;
        let sum = Digest::of_all(&mut file, &mut |_| ()).map_err(host)?;
        if sum != digest {
            drop(fs::remove_file(&partial));
            return Err(self.failed(format!("the registry sent {sum} for {digest}")));
        }
        fs::rename(&partial, path).map_err(host)
    }

    /// Asks for what is missing of a blob. What broke off can be tried again;
    /// what the registry refuses, or the host can't write, can't.
    fn fetch(
        &mut self,
        digest: Digest,
        partly: &mut Partly,
        progress: &mut dyn Progress,
    ) -> Result<Option<Error>> {
        let url = format!("{}/blobs/{digest}", self.base);
        let mut response = match self.get(&url, partly.have) {
            Ok(response) => response,
            Err(error) => return Ok(Some(error)),
        };
        match response.status() {
            StatusCode::PARTIAL_CONTENT if continues(&response, partly.have) => {}
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                partly.restart()?;
                return Ok(Some(self.failed("does not continue where it was asked to")));
            }
            _ => {
                self.expect(&response)?;
                partly.restart()?;
            }
        }
        partly
            .take(&mut response.body_mut().as_reader(), progress)
            .map(|broke| broke.map(|error| self.failed(error)))
    }

    /// Sends a request, with what the registry wants to know of us; `from` is
    /// the first byte that is wanted.
    fn get(&mut self, url: &str, from: u64) -> Result<Response<Body>> {
        let mut asked = false;
        loop {
            let mut request = self.agent.get(url).header(header::ACCEPT, ACCEPT);
            if let Some(authorization) = &self.authorization {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            let response = request.call().map_err(|error| self.failed(error))?;
            if response.status() != StatusCode::UNAUTHORIZED || asked {
                return Ok(response);
            }
            asked = true;
            let challenge = response.headers().get(header::WWW_AUTHENTICATE);
            let challenge = challenge.and_then(|header| Challenge::parse(header.to_str().ok()?));
            self.authorization = Some(self.authorize(challenge)?);
        }
    }

    fn authorize(&self, challenge: Option<Challenge>) -> Result<String> {
        let known = credentials(&self.host).map(|known| format!("Basic {known}"));
        let unknown = || self.failed("wants a login: see podman login or docker login");
        let (realm, service, scope) = match challenge {
            Some(Challenge::Bearer { realm, service, scope }) => (realm, service, scope),
            Some(Challenge::Basic) => return known.ok_or_else(unknown),
            None => return Err(self.failed("wants a kind of login that we don't have")),
        };
        // A password must not go over a wire that anyone reads.
        if self.secure && !realm.starts_with("https://") {
            return Err(self.failed("wants a login without TLS"));
        }
        let mut request = self.agent.get(&realm);
        for (name, value) in [("service", service), ("scope", scope)] {
            if let Some(value) = value {
                request = request.query(name, value);
            }
        }
        if let Some(known) = &known {
            request = request.header(header::AUTHORIZATION, known);
        }
        let mut response = request.call().map_err(|error| self.failed(error))?;
        if response.status() == StatusCode::UNAUTHORIZED && known.is_none() {
            return Err(unknown());
        }
        self.expect(&response)?;
        let mut bytes = Vec::new();
        let reader = response.body_mut().as_reader();
        reader.take(TOKEN).read_to_end(&mut bytes).map_err(|error| self.failed(error))?;
        let token: Option<Token> = serde_json::from_slice(&bytes).ok();
        let token = token.and_then(Token::into_text);
        let token = token.ok_or_else(|| self.failed("gives no token to who asks for one"))?;
        Ok(format!("Bearer {token}"))
    }

    /// Success, or what the registry's status means.
    fn expect(&self, response: &Response<Body>) -> Result<()> {
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        Err(self.failed(match status {
            StatusCode::NOT_FOUND => "the registry does not have it".to_owned(),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                "the registry does not let us have it: see podman login or docker login".to_owned()
            }
            StatusCode::TOO_MANY_REQUESTS => {
                "the registry has had too many requests from here: wait, or log in".to_owned()
            }
            _ => format!("the registry answers {status}"),
        }))
    }
}

/// A blob of which some is there.
struct Partly<'p> {
    file: File,
    path: &'p Path,
    have: u64,
    size: u64,
    /// What has been told of it.
    shown: u64,
}

impl Partly<'_> {
    fn restart(&mut self) -> Result<()> {
        self.have = 0;
        self.file.set_len(0).map_err(Error::host(self.path))
    }

    /// Adds what comes, up to the blob's size; returns what broke it off.
    fn take(
        &mut self,
        input: &mut impl Read,
        progress: &mut dyn Progress,
    ) -> Result<Option<io::Error>> {
        let mut buffer = vec![0; 128 << 10];
        self.file.seek(SeekFrom::Start(self.have)).map_err(Error::host(self.path))?;
        while self.have < self.size {
            let rest = usize::try_from(self.size - self.have).unwrap_or(usize::MAX);
            let most = buffer.len().min(rest);
            let read = match input.read(&mut buffer[..most]) {
                Ok(0) => return Ok(None),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Some(error)),
            };
            self.file.write_all(&buffer[..read]).map_err(Error::host(self.path))?;
            self.have += read as u64;
            progress.advance(self.have.saturating_sub(self.shown));
            self.shown = self.shown.max(self.have);
        }
        Ok(None)
    }
}

/// Whether a part begins where it should: `bytes 5-9/10`.
fn continues(response: &Response<Body>, from: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE);
    let range = range.and_then(|range| range.to_str().ok()?.strip_prefix("bytes "));
    range.and_then(|range| range.split('-').next()?.parse().ok()) == Some(from)
}

/// Whom to trust, and what to encrypt with.
fn tls(name: &RemoteName) -> Result<TlsConfig> {
    if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("adx")) {
        let reason = "this processor lacks AVX2 or ADX, which TLS needs here: fetch it with \
                      skopeo copy docker://… oci:DIRECTORY";
        return Err(Error::unsupported(name, reason));
    }
    let path = roots()?;
    let text = fs::read(&path).map_err(Error::host(&path))?;
    let certificates: Vec<_> = parse_pem(&text)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(Error::malformed(path.display(), "has no certificate"));
    }
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(certificates)))
        .unversioned_rustls_crypto_provider(Arc::new(rustls_graviola::default_provider()))
        .build())
}

/// The certificates that the host trusts, where distributions have them.
fn roots() -> Result<PathBuf> {
    const PLACES: [&str; 4] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/ssl/cert.pem",
    ];
    if let Some(path) = std::env::var_os("SSL_CERT_FILE") {
        return Ok(path.into());
    }
    let found = PLACES.iter().map(PathBuf::from).find(|path| path.exists());
    found.ok_or_else(|| {
        let reason = "this host has none: install ca-certificates, or set SSL_CERT_FILE";
        Error::unsupported("certificates", reason)
    })
}
