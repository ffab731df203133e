//! What an image is built from, as a tree: a directory, a tar archive, or the
//! layers of an OCI or Docker image.

use super::blobs::{Blob, Blobs};
use super::config::{Config, Description, FORMAT};
use super::content::Contents;
use super::directory::{self, HostId};
use super::error::{Error, Result};
use super::identity;
use super::layer::{Layer, finish};
use super::oci::{self, Image};
use super::probe::{Kind, probe};
use super::progress::Progress;
use super::reference::Reference;
use super::stream::{Section, Stream};
use super::tar::Reader;
use super::tree::{Kind as NodeKind, Tree};
use std::path::Path;

/// Everything of an image.
#[derive(Debug)]
pub struct Unpacked {
    /// Its files.
    pub tree: Tree,
    /// What is in them.
    pub contents: Contents,
    /// What is known of it.
    pub description: Description,
}

/// Reads an image that is not a file system already. What is compressed goes to
/// a nameless file in `spool`; the file `skipped` is left out.
pub fn unpack(
    reference: &Reference,
    spool: &Path,
    skipped: Option<HostId>,
    progress: &mut dyn Progress,
) -> Result<Unpacked> {
    match reference {
        Reference::Path(path) => unpack_path(path, spool, skipped, progress),
        Reference::Host => Err(Error::Reference {
            text: "host".to_owned(),
            reason: "is this host itself: give a directory to build an image from".to_owned(),
        }),
        _ => unpack_image(find(reference)?, spool, progress),
    }
}

/// Finds an OCI or Docker image; only its documents are read.
pub fn find(reference: &Reference) -> Result<Image> {
    match reference {
        Reference::Oci(at) => oci::open_layout(&Blobs::directory(&at.path)?, at),
        Reference::OciArchive(at) => oci::open_layout(&Blobs::archive(&at.path)?, at),
        Reference::DockerArchive(at) => oci::open_saved(&Blobs::archive(&at.path)?, at),
        Reference::Path(_) | Reference::Host => Err(Error::Reference {
            text: format!("{reference:?}"),
            reason: "is no OCI image".to_owned(),
        }),
    }
}

fn unpack_path(
    path: &Path,
    spool: &Path,
    skipped: Option<HostId>,
    progress: &mut dyn Progress,
) -> Result<Unpacked> {
    let probed = probe(path)?;
    match probed.kind {
        Kind::Directory => {
            let tree = directory::read(path, &probed.file, skipped)?;
            describe(tree, Contents::of_directory(path)?, "directory")
        }
        Kind::Tar | Kind::Gzip | Kind::Zstd => {
            let blob = Blob { path: path.into(), file: probed.file, offset: 0, size: probed.size };
            let (mut tree, mut contents) = (Tree::default(), Contents::default());
            progress.begin("reading", blob.size);
            let object = path.display().to_string();
            let layer = Place { object: &object, number: 0, whiteouts: false, digest: false };
            let reader = apply(&blob, layer, spool, &mut tree, &mut contents, progress)?;
            finish(reader, None, &object)?;
            describe(tree, contents, "tar")
        }
        Kind::FileSystem(file_system, _) => {
            let name = file_system.name();
            let reason = format!("is {name}, one portable file already: run it as it is");
            Err(Error::unsupported(path.display(), reason))
        }
        Kind::Sif => {
            let reason = "is a SIF, one portable file already: run it as it is";
            Err(Error::unsupported(path.display(), reason))
        }
    }
}

/// For what nobody has described.
fn describe(tree: Tree, contents: Contents, source: &str) -> Result<Unpacked> {
    let architecture = architecture(&tree, &contents);
    let description = Description {
        format: FORMAT,
        source: source.to_owned(),
        architecture,
        config: Config::default(),
        ..Description::default()
    };
    Ok(Unpacked { tree, contents, description })
}

/// The processor that a tree's programs are for, in OCI's names: `e_machine` of
/// ELF, at 18, of one that nearly every tree has.
fn architecture(tree: &Tree, contents: &Contents) -> Option<String> {
    const PROGRAMS: [&[u8]; 5] =
        [b"bin/sh", b"usr/bin/env", b"bin/true", b"sbin/init", b"lib64/ld-linux-x86-64.so.2"];
    let machine = PROGRAMS.iter().find_map(|path| {
        let NodeKind::File(content) = &tree.node(tree.find_file(path)?).kind else { return None };
        let mut head = [0; 20];
        contents.open(content).ok()?.read_exact_at(&mut head, 0).ok()?;
        head.starts_with(b"\x7fELF").then_some(u16::from_le_bytes([head[18], head[19]]))
    })?;
    let name = match machine {
        3 => "386",
        40 => "arm",
        62 => "amd64",
        183 => "arm64",
        243 => "riscv64",
        _ => return None,
    };
    Some(name.to_owned())
}

/// Puts an image's layers on each other. Each is what its digest says before a
/// byte of it is looked at.
pub fn unpack_image(image: Image, spool: &Path, progress: &mut dyn Progress) -> Result<Unpacked> {
    let total: u64 = image.layers.iter().map(|layer| layer.blob.size).sum();
    progress.begin("checking", total);
    for layer in &image.layers {
        if let Some(digest) = layer.digest {
            layer.blob.verify(digest, &mut |bytes| progress.advance(bytes))?;
        }
    }
    progress.begin("reading", total);
    let (mut tree, mut contents) = (Tree::default(), Contents::default());
    for (number, layer) in image.layers.iter().enumerate() {
        let object = format!("{}: layer {}", layer.blob.path.display(), number + 1);
        let place = Place { object: &object, number: number as u32, whiteouts: true, digest: true };
        let reader = apply(&layer.blob, place, spool, &mut tree, &mut contents, progress)?;
        finish(reader, Some(layer.content.0), &object)?;
    }
    let identity = identity::resolve(&image.config.user, &tree, &contents)?;
    let architecture = Some(image.architecture).filter(|name| !name.is_empty());
    let layers = image.layers.into_iter().map(|layer| layer.description).collect();
    let description = Description {
        format: FORMAT,
        source: image.source.to_owned(),
        digest: Some(image.digest.to_string()),
        architecture,
        config: image.config,
        identity: Some(identity),
        layers,
    };
    Ok(Unpacked { tree, contents, description })
}

/// What a layer is in its image.
struct Place<'p> {
    object: &'p str,
    number: u32,
    whiteouts: bool,
    digest: bool,
}

fn apply(
    blob: &Blob,
    place: Place<'_>,
    spool: &Path,
    tree: &mut Tree,
    contents: &mut Contents,
    progress: &mut dyn Progress,
) -> Result<Reader<Stream>> {
    let compression = blob.compression()?;
    let section: Section = blob.section()?;
    let damaged = |error: std::io::Error| Error::malformed(place.object, error);
    let stream = Stream::new(section, compression, place.digest).map_err(damaged)?;
    // What isn't compressed stays where it is.
    let file = match stream.is_plain() {
        true => {
            let file = blob.file.try_clone().map_err(Error::host(&blob.path))?;
            Some(contents.add_file(&blob.path, file))
        }
        false => None,
    };
    let Place { object, number, whiteouts, .. } = place;
    let layer = Layer { object, number, whiteouts, file, spool };
    let read = stream.progress();
    let mut seen = 0;
    let mut reader = Reader::new(stream);
    layer.apply(&mut reader, tree, contents, &mut || {
        progress.advance(read.get() - seen);
        seen = read.get();
    })?;
    progress.advance(blob.size.saturating_sub(seen));
    Ok(reader)
}
