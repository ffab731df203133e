//! Archives for tests, good ones and bad ones; and everything that parses, for
//! a fuzzer.

use super::content::Contents;
use super::erofs::layout::Layout;
use super::error::Result;
use super::layer::Layer;
use super::tar::Reader;
use super::tree::Tree;
use super::{oci, probe, sif};
use std::path::Path;

/// A tar archive that is being written.
#[derive(Default, Clone)]
pub struct Archive(pub Vec<u8>);

impl Archive {
    /// A header, with all fields of a file of mode 0640, user 1, group 2 and
    /// time 3, and its data.
    pub fn entry(mut self, kind: u8, path: &[u8], link: &[u8], data: &[u8]) -> Self {
        let mut header = [0; 512];
        header[..path.len().min(100)].copy_from_slice(&path[..path.len().min(100)]);
        let fields = [(100, 0o640), (108, 1), (116, 2), (136, 3)];
        for (at, value) in fields {
            header[at..at + 7].copy_from_slice(format!("{value:07o}").as_bytes());
        }
        header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        header[156] = kind;
        header[157..157 + link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[329..336].copy_from_slice(b"0000010");
        header[337..344].copy_from_slice(b"0000021");
        self.raw(header, data);
        self
    }

    /// A header as it is, but for its checksum.
    pub fn raw(&mut self, mut header: [u8; 512], data: &[u8]) {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.extend(header);
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    /// A file.
    pub fn file(self, path: &str, data: &[u8]) -> Self {
        self.entry(b'0', path.as_bytes(), b"", data)
    }

    /// A directory.
    pub fn directory(self, path: &str) -> Self {
        self.entry(b'5', path.as_bytes(), b"", b"")
    }

    /// A symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(b'2', path.as_bytes(), target.as_bytes(), b"")
    }

    /// A hard link.
    pub fn link(self, path: &str, target: &str) -> Self {
        self.entry(b'1', path.as_bytes(), target.as_bytes(), b"")
    }

    /// Records about the next entry.
    pub fn records(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            // The length counts its own digits.
            let rest = 3 + key.len() + value.len();
            let digits = (1..8).find(|&digits| (rest + digits).to_string().len() == digits);
            let length = rest + digits.unwrap_or(1);
            data.extend(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.entry(b'x', b"pax", b"", &data)
    }

    /// The archive, with its end.
    pub fn finish(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// Puts archives on each other, as layers.
pub fn layers(archives: &[Vec<u8>]) -> Result<(Tree, Contents)> {
    let (mut tree, mut contents) = (Tree::default(), Contents::default());
    let spool = std::env::temp_dir();
    for (number, archive) in archives.iter().enumerate() {
        let number = number as u32;
        let layer = Layer { object: "layer", number, whiteouts: true, file: None, spool: &spool };
        layer.apply(&mut Reader::new(&archive[..]), &mut tree, &mut contents, &mut || ())?;
    }
    Ok((tree, contents))
}

/// Gives bytes to everything that reads what others made.
pub fn hostile(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 4 {
        0 => sif::hostile(data),
        1 => {
            probe::recognise(data);
            oci::hostile(data);
        }
        // A layer; or two, the second of which may take from the first.
        _ => {
            let (mut tree, mut contents) = (Tree::default(), Contents::default());
            let data = with_checksums(data);
            let half = if kind % 4 == 3 { data.len() / 1024 * 512 } else { data.len() };
            let (first, second) = data.split_at(half);
            for (number, archive) in [first, second].into_iter().enumerate() {
                let layer = Layer {
                    object: "layer",
                    number: number as u32,
                    whiteouts: true,
                    file: Some(0),
                    spool: Path::new("/nonexistent"),
                };
                let mut reader = Reader::new(Located(archive, archive.len()));
                let _ = layer.apply(&mut reader, &mut tree, &mut contents, &mut || ());
            }
            if let Ok(layout) = Layout::new(&tree) {
                assert!(layout.order.len() <= tree.len());
            }
        }
    }
}

/// Every block with the checksum that it would have as a header, which no fuzzer
/// finds by itself.
fn with_checksums(data: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    for block in data.chunks(512) {
        let mut header = [0; 512];
        header[..block.len()].copy_from_slice(block);
        if header == [0; 512] {
            archive.0.extend(header);
        } else {
            archive.raw(header, b"");
        }
    }
    archive.0
}

/// Bytes that say where they are, so that no contents are copied.
struct Located<'l>(&'l [u8], usize);

impl std::io::Read for Located<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl super::tar::Input for Located<'_> {
    fn offset(&self) -> Option<u64> {
        Some((self.1 - self.0.len()) as u64)
    }
}

/// An OCI image layout, or the parts of one.
#[derive(Default)]
pub struct Image {
    /// Blobs by digest.
    pub blobs: std::collections::BTreeMap<String, Vec<u8>>,
    /// Its layers' descriptors, and what they are decompressed.
    layers: Vec<(serde_json::Value, String)>,
}

impl Image {
    /// Adds a blob; returns its descriptor.
    pub fn blob(&mut self, media_type: &str, bytes: &[u8]) -> serde_json::Value {
        let digest = super::digest::Digest::of(bytes).to_string();
        self.blobs.insert(digest.clone(), bytes.to_vec());
        serde_json::json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    /// Adds a layer, compressed or not.
    pub fn layer(&mut self, archive: &[u8], compressed: &[u8]) {
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        let descriptor = self.blob(media_type, compressed);
        let content = super::digest::Digest::of(archive).to_string();
        self.layers.push((descriptor, content));
    }

    /// Adds the configuration and the manifest; returns that one's descriptor.
    pub fn manifest(&mut self, architecture: &str, config: serde_json::Value) -> serde_json::Value {
        let (layers, ids): (Vec<_>, Vec<_>) = self.layers.iter().cloned().unzip();
        let document = serde_json::json!({
            "architecture": architecture,
            "os": "linux",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": ids },
        });
        let config =
            self.blob("application/vnd.oci.image.config.v1+json", document.to_string().as_bytes());
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "config": config,
            "layers": layers,
        });
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        self.blob(media_type, manifest.to_string().as_bytes())
    }

    /// Writes it as a layout with these manifests.
    pub fn write(&self, directory: &Path, manifests: &[serde_json::Value]) {
        let blobs = directory.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        for (digest, bytes) in &self.blobs {
            std::fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
        }
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": manifests });
        std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
        let layout = r#"{"imageLayoutVersion":"1.0.0"}"#;
        std::fs::write(directory.join("oci-layout"), layout).unwrap();
    }
}

/// Compresses with gzip.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Compresses with zstd.
pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}
