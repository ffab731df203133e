//! `microvm pull`: an image from a registry (distribution-spec 1.1), into the
//! blobs of the cache, from where it is like any other.
//!
//! ```text
//!  HOST/NAME:TAG ─► manifest (of an index, the one for this processor)
//!                   └► configuration, layers ─► blobs/sha256/… ─► Image
//! ```
//!
//! Nothing is believed: every document and blob has to be what its digest says.
//! A blob that was fetched in part is kept, and the rest asked for next time.
//!
//! TLS is rustls with Graviola, whose assembly is part of its Rust source: no C
//! compiler or library is needed, at the price of a processor with AVX2 and ADX
//! (Intel since 2014, AMD since 2017). The certificates trusted are the host's.

mod auth;
mod client;
mod name;
#[cfg(test)]
mod test;

pub use name::RemoteName;

use client::Client;
use job::image::blobs::Blobs;
use job::image::cache::Cache;
use job::image::digest::Digest;
use job::image::error::{Error, Result};
use job::image::limits;
use job::image::oci::{Descriptor, Image, Manifest, choose, open_manifest};
use job::image::progress::Progress;
use std::fs;
use std::path::PathBuf;

/// Fetches what is missing of an image.
pub fn pull(
    name: &RemoteName,
    cache: &Cache,
    plain_http: bool,
    progress: &mut dyn Progress,
) -> Result<Image> {
    let blobs = cache.blobs().join("sha256");
    cache.create(&blobs)?;
    let mut puller = Puller {
        client: Client::new(name, plain_http)?,
        // Where an OCI layout has its blobs, the cache has them, too.
        layout: Blobs::Directory(cache.directory().to_owned()),
        blobs,
    };
    let (manifest, digest) = puller.manifest(name)?;
    puller.fetch_parts(&manifest, progress)?;
    open_manifest(&puller.layout, manifest, digest)
}

struct Puller {
    client: Client,
    layout: Blobs,
    blobs: PathBuf,
}

impl Puller {
    /// The manifest for this processor.
    fn manifest(&mut self, name: &RemoteName) -> Result<(Manifest, Digest)> {
        let mut wanted = name.digest;
        let mut reference = match wanted {
            Some(digest) => digest.to_string(),
            None => name.tag.clone(),
        };
        for _ in 0..limits::INDEXES {
            let bytes = self.client.manifest(&reference)?;
            let digest = Digest::of(&bytes);
            if wanted.is_some_and(|wanted| wanted != digest) {
                let reason = format!("the registry sent {digest} for {reference}");
                return Err(Error::malformed(name, reason));
            }
            let manifest: Manifest = serde_json::from_slice(&bytes)
                .map_err(|error| Error::malformed(name, format!("is no manifest: {error}")))?;
            let Some(all) = manifest.manifests else { return Ok((manifest, digest)) };
            let found = choose(&self.layout, all, None)
                .map_err(|error| Error::unsupported(name, error.reason()))?;
            wanted = Some(Digest::parse(&found.digest)?);
            reference = found.digest;
        }
        Err(Error::malformed(name, "has too many indexes within each other"))
    }

    fn fetch_parts(&mut self, manifest: &Manifest, progress: &mut dyn Progress) -> Result<()> {
        let parts: Vec<&Descriptor> = manifest.config.iter().chain(&manifest.layers).collect();
        if parts.len() > limits::LAYERS {
            return Err(Error::unsupported("manifest", "has too many layers"));
        }
        let mut total: u64 = 0;
        for part in &parts {
            total = total.saturating_add(part.size);
        }
        if total > limits::CONTENT {
            return Err(Error::unsupported("manifest", "has layers of more than 1 TiB"));
        }
        progress.begin("fetching", total);
        for part in parts {
            let digest = Digest::parse(&part.digest)?;
            let path = self.blobs.join(digest.hex());
            // What is in the cache was checked, and is checked again when used.
            if fs::metadata(&path).is_ok_and(|found| found.len() == part.size) {
                progress.advance(part.size);
                continue;
            }
            self.client.blob(digest, part.size, &path, progress)?;
        }
        Ok(())
    }
}
