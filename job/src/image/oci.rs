//! OCI images (image-spec 1.1): from an index to the manifest for this
//! processor, to the configuration and the layers; and the archives of
//! `docker save`, which have a list of their own.
//!
//! ```text
//!  index.json ─► manifest ─► config   (entrypoint, user, …, diff_ids)
//!             └► index ─►  └► layers   (tar, gzip, zstd)
//! ```
//!
//! Every blob is what its descriptor says, by size and digest, before it is
//! used; every layer is what the configuration says, decompressed.

use super::blobs::{Blob, Blobs};
use super::config::{Config, LayerDescription};
use super::digest::Digest;
use super::error::{Error, Result};
use super::layer::shown;
use super::limits;
use super::reference::Archive;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

/// The processor that images have to be for, in OCI's names.
pub const ARCHITECTURE: &str = "amd64";
/// What names an image in an index.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A reference to a blob.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: String,
    /// Its length in bytes.
    pub size: u64,
    platform: Option<Platform>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

/// An index, or a manifest: which of them, its fields tell.
#[derive(Debug, Clone, Deserialize)]
pub struct Manifest {
    /// Of an index, its manifests.
    pub manifests: Option<Vec<Descriptor>>,
    /// Of a manifest, its configuration.
    pub config: Option<Descriptor>,
    /// Of a manifest, its layers.
    #[serde(default)]
    pub layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Document {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<DocumentConfig>,
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DocumentConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

/// An element of `docker save`'s list.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// A layer, where it is.
#[derive(Debug)]
pub struct LayerBlob {
    /// What describes it.
    pub description: LayerDescription,
    /// Its bytes.
    pub blob: Blob,
    /// Its digest, unless the archive has none: then only what it is
    /// decompressed has to fit.
    pub digest: Option<Digest>,
    /// The digest of what it is when it is decompressed.
    pub content: Digest,
}

/// An image, of which only the documents have been read.
#[derive(Debug)]
pub struct Image {
    /// What it came in: `oci` or `docker`.
    pub source: &'static str,
    /// The digest of its manifest, or of the configuration if there is none.
    pub digest: Digest,
    /// The processor that it is for.
    pub architecture: String,
    /// How to run it.
    pub config: Config,
    /// Its layers, the lowest first.
    pub layers: Vec<LayerBlob>,
}

/// Finds an image in a layout.
pub fn open_layout(blobs: &Blobs, wanted: &Archive) -> Result<Image> {
    let index: Manifest = parse(blobs, "index.json", &blobs.get("index.json")?.read()?)?;
    let all = index.manifests.ok_or_else(|| {
        Error::malformed(blobs.path().display(), "its index.json lists no manifests")
    })?;
    let mut found = choose(blobs, all, wanted.tag.as_deref())?;
    for _ in 0..limits::INDEXES {
        let digest = Digest::parse(&found.digest)?;
        let manifest: Manifest = parse(blobs, &found.digest, &document(blobs, &found)?)?;
        match manifest.manifests {
            Some(all) => found = choose(blobs, all, None)?,
            None => return open_manifest(blobs, manifest, digest),
        }
    }
    Err(Error::malformed(blobs.path().display(), "has too many indexes within each other"))
}

/// The manifest that is meant, of an index: by its name, and for this processor.
pub fn choose(blobs: &Blobs, all: Vec<Descriptor>, tag: Option<&str>) -> Result<Descriptor> {
    let object = || blobs.path().display();
    let name = |descriptor: &Descriptor| -> Option<String> {
        descriptor.annotations.as_ref()?.get(REF_NAME).cloned()
    };
    let names: Vec<String> = all.iter().filter_map(name).collect();
    let named =
        all.into_iter().filter(|one| tag.is_none_or(|tag| name(one).as_deref() == Some(tag)));
    let named: Vec<Descriptor> = named.collect();
    let list = || match names.len() {
        0 => "none has a name".to_owned(),
        1..20 => shown(names.join(", ").as_bytes()),
        many => format!("there are {many}"),
    };
    if let (Some(tag), true) = (tag, named.is_empty()) {
        let reason = format!("has no image {}: {}", shown(tag.as_bytes()), list());
        return Err(Error::malformed(object(), reason));
    }
    // What has no platform is for any; attestations are for `unknown`.
    let fits = |one: &Descriptor| match &one.platform {
        Some(platform) => platform.os == "linux" && platform.architecture == ARCHITECTURE,
        None => true,
    };
    let count = named.len();
    let mut fitting: Vec<Descriptor> = named.into_iter().filter(fits).collect();
    match (count, fitting.len()) {
        (_, 1) => Ok(fitting.remove(0)),
        (0, _) => Err(Error::malformed(object(), "has no image")),
        (_, 0) => {
            let reason = format!("has no image for linux on {ARCHITECTURE}");
            Err(Error::unsupported(object(), reason))
        }
        _ if tag.is_some() => Ok(fitting.remove(0)),
        _ => {
            let reason = format!("has more than one image: name one after a colon: {}", list());
            Err(Error::unsupported(object(), reason))
        }
    }
}

/// A document that a descriptor leads to, when it is what that says.
fn document(blobs: &Blobs, descriptor: &Descriptor) -> Result<Vec<u8>> {
    let digest = Digest::parse(&descriptor.digest)?;
    let blob = find(blobs, descriptor, digest)?;
    let bytes = blob.read()?;
    if Digest::of(&bytes) != digest {
        let reason = format!("the document {digest} is another: the image is damaged");
        return Err(Error::malformed(blobs.path().display(), reason));
    }
    Ok(bytes)
}

fn find(blobs: &Blobs, descriptor: &Descriptor, digest: Digest) -> Result<Blob> {
    let blob = blobs.get(&format!("blobs/sha256/{}", digest.hex()))?;
    if blob.size != descriptor.size {
        let reason = format!(
            "{digest} has {} bytes and should have {}: the image is damaged",
            blob.size, descriptor.size
        );
        return Err(Error::malformed(blobs.path().display(), reason));
    }
    Ok(blob)
}

fn parse<T: DeserializeOwned>(blobs: &Blobs, name: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        let name = shown(name.as_bytes());
        Error::malformed(blobs.path().display(), format!("{name} is no document: {error}"))
    })
}

/// The image of a manifest, whose blobs are there.
pub fn open_manifest(blobs: &Blobs, manifest: Manifest, digest: Digest) -> Result<Image> {
    let object = || blobs.path().display();
    let config = manifest.config.ok_or_else(|| {
        Error::malformed(object(), "its manifest has neither a configuration nor manifests")
    })?;
    if !config.media_type.is_empty() && !is_config(&config.media_type) {
        let what = shown(config.media_type.as_bytes());
        return Err(Error::unsupported(object(), format!("is no image, but holds {what}")));
    }
    let document: Document = parse(blobs, &config.digest, &document(blobs, &config)?)?;
    let contents = check(blobs, &document, manifest.layers.len())?;
    let mut layers = Vec::new();
    for (layer, content) in manifest.layers.into_iter().zip(contents) {
        if !is_layer(&layer.media_type) {
            let what = shown(layer.media_type.as_bytes());
            let reason = format!("has a layer of a kind that we can't read: {what}");
            return Err(Error::unsupported(object(), reason));
        }
        let digest = Digest::parse(&layer.digest)?;
        let blob = find(blobs, &layer, digest)?;
        let Descriptor { media_type, digest: name, size, .. } = layer;
        let description = LayerDescription { digest: name, size, media_type };
        layers.push(LayerBlob { description, blob, digest: Some(digest), content });
    }
    Ok(image("oci", digest, document, layers))
}

/// Finds an image in what `docker save` wrote.
pub fn open_saved(blobs: &Blobs, wanted: &Archive) -> Result<Image> {
    let object = || blobs.path().display();
    let list = blobs.get("manifest.json")?;
    let all: Vec<Saved> = parse(blobs, "manifest.json", &list.read()?)?;
    let has = |saved: &Saved, tag: &str| {
        let tags = saved.repo_tags.as_deref().unwrap_or_default();
        let full = if tag.contains(':') { tag.to_owned() } else { format!("{tag}:latest") };
        tags.iter().any(|known| *known == full || known.ends_with(&format!("/{full}")))
    };
    let names: Vec<&String> =
        all.iter().filter_map(|saved| saved.repo_tags.as_ref()).flatten().collect();
    let names = shown(format!("{names:?}").as_bytes());
    let fits = |saved: &Saved| wanted.tag.as_deref().is_none_or(|tag| has(saved, tag));
    let mut fitting: Vec<Saved> = all.into_iter().filter(fits).collect();
    let saved = match (fitting.len(), &wanted.tag) {
        (1, _) => fitting.remove(0),
        (0, Some(tag)) => {
            let reason = format!("has no image {}: it has {names}", shown(tag.as_bytes()));
            return Err(Error::malformed(object(), reason));
        }
        (0, None) => return Err(Error::malformed(object(), "has no image")),
        _ => {
            let reason = format!("has more than one image: name one after a colon: {names}");
            return Err(Error::unsupported(object(), reason));
        }
    };
    let bytes = blobs.get(&saved.config)?.read()?;
    let document: Document = parse(blobs, &saved.config, &bytes)?;
    let contents = check(blobs, &document, saved.layers.len())?;
    let mut layers = Vec::new();
    for (name, content) in saved.layers.iter().zip(contents) {
        let blob = blobs.get(name)?;
        let media_type = "application/vnd.docker.image.rootfs.diff.tar".to_owned();
        let description =
            LayerDescription { digest: content.to_string(), size: blob.size, media_type };
        layers.push(LayerBlob { description, blob, digest: None, content });
    }
    Ok(image("docker", Digest::of(&bytes), document, layers))
}

/// What the layers have to be, if the image is for us.
fn check(blobs: &Blobs, document: &Document, layers: usize) -> Result<Vec<Digest>> {
    let object = || blobs.path().display();
    let (os, architecture) = (&document.os, &document.architecture);
    if (!os.is_empty() && os != "linux")
        || (!architecture.is_empty() && architecture != ARCHITECTURE)
    {
        let what = shown(format!("{os} on {architecture}").as_bytes());
        let reason = format!("is for {what}: this host runs linux on {ARCHITECTURE}");
        return Err(Error::unsupported(object(), reason));
    }
    let ids = document.rootfs.diff_ids.as_deref().unwrap_or_default();
    if ids.len() != layers || layers > limits::LAYERS {
        let reason = format!("has {layers} layers, and {} by its configuration", ids.len());
        return Err(Error::malformed(object(), reason));
    }
    ids.iter().map(|id| Digest::parse(id)).collect()
}

fn image(
    source: &'static str,
    digest: Digest,
    document: Document,
    layers: Vec<LayerBlob>,
) -> Image {
    let config = document.config.unwrap_or_default();
    let config = Config {
        entrypoint: config.entrypoint.unwrap_or_default(),
        cmd: config.cmd.unwrap_or_default(),
        env: config.env.unwrap_or_default(),
        user: config.user.unwrap_or_default(),
        working_directory: config.working_dir.unwrap_or_default(),
        stop_signal: config.stop_signal.unwrap_or_default(),
        labels: config.labels.unwrap_or_default(),
    };
    Image { source, digest, architecture: document.architecture, config, layers }
}

fn is_config(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
    )
}

/// Whatever it says of compression, the content tells.
fn is_layer(media_type: &str) -> bool {
    const KINDS: [&str; 4] = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    let kind = media_type.split(['+']).next().unwrap_or_default();
    let kind = kind.strip_suffix(".gzip").or_else(|| kind.strip_suffix(".zstd")).unwrap_or(kind);
    KINDS.contains(&kind) && !media_type.ends_with("+encrypted")
}

/// Parses what may be anything, for a fuzzer.
#[cfg(any(test, feature = "testing"))]
pub fn hostile(bytes: &[u8]) {
    let blobs = Blobs::Directory("layout".into());
    if let Ok(manifest) = parse::<Manifest>(&blobs, "index.json", bytes)
        && let Some(all) = manifest.manifests
    {
        let _ = choose(&blobs, all, None);
    }
    let _ = parse::<Vec<Saved>>(&blobs, "manifest.json", bytes);
    if let Ok(document) = parse::<Document>(&blobs, "config", bytes) {
        let _ = check(&blobs, &document, 1);
        image("oci", Digest::of(bytes), document, Vec::new());
    }
}
