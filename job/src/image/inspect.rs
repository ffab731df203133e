//! `microvm inspect`: what an image is, without starting or unpacking it.

use super::built;
use super::config::{Description, FORMAT};
use super::error::Result;
use super::probe::{Kind, probe};
use super::reference::Reference;
use super::sif;
use super::source::find;
use serde::Serialize;
use std::path::Path;

/// What an image is.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// In a word or two.
    pub kind: &'static str,
    /// The file system in it, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_system: Option<&'static str>,
    /// Where that begins in the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Bytes: of the file system, of the file, or of all layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// What is known of it.
    #[serde(skip_serializing_if = "Option::is_none", flatten)]
    pub description: Option<Description>,
}

/// Looks at an image.
pub fn inspect(reference: &Reference) -> Result<Report> {
    match reference {
        Reference::Host => Ok(Report { kind: "this host's root", ..Report::default() }),
        Reference::Path(path) => inspect_path(path),
        _ => {
            let image = find(reference)?;
            let kind = if image.source == "oci" { "OCI image" } else { "Docker image" };
            let size = image.layers.iter().map(|layer| layer.blob.size).sum();
            let layers = image.layers.into_iter().map(|layer| layer.description).collect();
            let description = Description {
                format: FORMAT,
                source: image.source.to_owned(),
                digest: Some(image.digest.to_string()),
                architecture: Some(image.architecture),
                config: image.config,
                identity: None,
                layers,
            };
            let description = Some(description);
            Ok(Report { kind, size: Some(size), description, ..Report::default() })
        }
    }
}

fn inspect_path(path: &Path) -> Result<Report> {
    let probed = probe(path)?;
    let size = Some(probed.size);
    Ok(match probed.kind {
        Kind::Directory => Report { kind: "directory", ..Report::default() },
        Kind::FileSystem(file_system, size) => {
            let description = built::read(&probed.file, path)?;
            let kind = if description.is_some() { "microvm image" } else { "disk image" };
            let file_system = Some(file_system.name());
            Report { kind, file_system, offset: Some(0), size: Some(size), description }
        }
        Kind::Sif => {
            let root = sif::primary_partition(&probed.file, probed.size, path)?;
            let file_system = Some(root.file_system.name());
            let (offset, size) = (Some(root.offset), Some(root.size));
            Report { kind: "SIF", file_system, offset, size, description: None }
        }
        Kind::Tar => Report { kind: "tar archive", size, ..Report::default() },
        Kind::Gzip => Report { kind: "archive, compressed with gzip", size, ..Report::default() },
        Kind::Zstd => Report { kind: "archive, compressed with zstd", size, ..Report::default() },
    })
}
