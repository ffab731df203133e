//! A layer's bytes: a range of a file, decompressed on the way, with a limit
//! on how much it may become.
//!
//! ```text
//!  file ─► Section (counts what was read) ─► gzip, zstd or nothing
//!       ─► Stream (limits, SHA-256 of what comes out) ─► tar
//! ```

use super::limits;
use super::tar::Input;
use flate2::read::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;
use sha2::{Digest, Sha256};
use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// It is a tar archive as it is.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// By the first bytes; whatever media types say, programs look there.
    pub fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// A range of a file, read from its start to its end.
pub struct Section {
    file: File,
    position: u64,
    end: u64,
    /// How much has been read, for who watches.
    read: Rc<Cell<u64>>,
}

impl Section {
    /// This range of the file.
    pub fn new(file: File, offset: u64, size: u64) -> Self {
        let end = offset.saturating_add(size);
        Self { file, position: offset, end, read: Rc::default() }
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let most = buffer.len().min(rest);
        let read = self.file.read_at(&mut buffer[..most], self.position)?;
        self.position += read as u64;
        self.read.set(self.read.get() + read as u64);
        Ok(read)
    }
}

/// A layer's bytes, as they are in its archive.
pub struct Stream {
    decoder: Decoder,
    /// Of the compressed bytes, how many have been read.
    compressed: Rc<Cell<u64>>,
    produced: u64,
    digest: Option<Sha256>,
}

enum Decoder {
    Plain(Section),
    Gzip(Box<MultiGzDecoder<BufReader<Section>>>),
    Zstd(Box<Frames>),
}

impl Stream {
    /// Reads `section`, which is compressed like this; `digest` says whether
    /// the sum of its bytes is wanted at the end.
    pub fn new(section: Section, compression: Compression, digest: bool) -> io::Result<Self> {
        let compressed = section.read.clone();
        let decoder = match compression {
            Compression::None => Decoder::Plain(section),
            Compression::Gzip => {
                let input = BufReader::with_capacity(64 << 10, section);
                Decoder::Gzip(Box::new(MultiGzDecoder::new(input)))
            }
            Compression::Zstd => Decoder::Zstd(Box::new(Frames::new(section))),
        };
        let digest = digest.then(Sha256::new);
        Ok(Self { decoder, compressed, produced: 0, digest })
    }

    /// Reads what is left, and returns the sum of all, if it was wanted.
    pub fn finish(mut self) -> io::Result<Option<[u8; 32]>> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(self.digest.map(|digest| digest.finalize().into()))
    }

    /// Whether it is in its file as it is.
    pub fn is_plain(&self) -> bool {
        matches!(self.decoder, Decoder::Plain(_))
    }

    /// Bytes of the compressed layer that have been read so far.
    pub fn progress(&self) -> Rc<Cell<u64>> {
        self.compressed.clone()
    }

    fn check_expansion(&self) -> io::Result<()> {
        let most = self.compressed.get().saturating_mul(limits::EXPANSION);
        if self.produced > most.saturating_add(limits::EXPANSION_FREE) {
            let reason = "expands to more than 250 times its size: it is no layer but an attack";
            return Err(io::Error::new(ErrorKind::InvalidData, reason));
        }
        if self.produced > limits::CONTENT {
            let reason = "expands to more than 1 TiB";
            return Err(io::Error::new(ErrorKind::InvalidData, reason));
        }
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match &mut self.decoder {
            Decoder::Plain(section) => section.read(buffer)?,
            Decoder::Gzip(decoder) => decoder.read(buffer).map_err(damaged)?,
            Decoder::Zstd(decoder) => decoder.read(buffer)?,
        };
        if let Some(digest) = &mut self.digest {
            digest.update(&buffer[..read]);
        }
        self.produced += read as u64;
        self.check_expansion()?;
        Ok(read)
    }
}

impl Input for Stream {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        if let (Decoder::Plain(section), None) = (&mut self.decoder, &self.digest) {
            if bytes > section.end - section.position {
                return Err(io::Error::new(ErrorKind::InvalidData, "ends within a file"));
            }
            section.position += bytes;
            section.read.set(section.read.get() + bytes);
            self.produced += bytes;
            return Ok(());
        }
        if io::copy(&mut self.by_ref().take(bytes), &mut io::sink())? < bytes {
            return Err(io::Error::new(ErrorKind::InvalidData, "ends within a file"));
        }
        Ok(())
    }

    fn offset(&self) -> Option<u64> {
        match &self.decoder {
            Decoder::Plain(section) => Some(section.position),
            _ => None,
        }
    }
}

/// All frames of a zstd file: some programs write many.
struct Frames {
    input: Option<BufReader<Section>>,
    frame: Option<StreamingDecoder<BufReader<Section>, ruzstd::decoding::FrameDecoder>>,
}

impl Frames {
    fn new(section: Section) -> Self {
        Self { input: Some(BufReader::with_capacity(64 << 10, section)), frame: None }
    }

    /// Starts the next frame; false at the end.
    fn start(&mut self) -> io::Result<bool> {
        use io::BufRead;
        let Some(mut input) = self.input.take() else { return Ok(false) };
        loop {
            if input.fill_buf()?.is_empty() {
                return Ok(false);
            }
            // Skippable frames: a magic of 16 values, a length, and anything.
            let mut head = [0; 4];
            let known = input.buffer().get(..4).map(|b| head.copy_from_slice(b)).is_some();
            if !known || u32::from_le_bytes(head) & !0xf != 0x184d_2a50 {
                break;
            }
            let mut fields = [0; 8];
            input.read_exact(&mut fields)?;
            let length = u32::from_le_bytes([fields[4], fields[5], fields[6], fields[7]]);
            io::copy(&mut input.by_ref().take(length.into()), &mut io::sink())?;
        }
        let decoder = StreamingDecoder::new(input).map_err(damaged)?;
        self.frame = Some(decoder);
        Ok(true)
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(frame) = &mut self.frame {
                let read = frame.read(buffer).map_err(damaged)?;
                if read > 0 || buffer.is_empty() {
                    return Ok(read);
                }
                self.input = self.frame.take().map(StreamingDecoder::into_inner);
            }
            if !self.start()? {
                return Ok(0);
            }
        }
    }
}

/// Decoders report damage in many ways; what the host said is passed on.
fn damaged(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    let error = error.into();
    match error.downcast::<io::Error>() {
        Ok(host) if host.raw_os_error().is_some() => *host,
        Ok(other) => io::Error::new(ErrorKind::InvalidData, format!("damaged: {other}")),
        Err(other) => io::Error::new(ErrorKind::InvalidData, format!("damaged: {other}")),
    }
}
