//! Images in QEMU's format (`docs/interop/qcow2.rst` of QEMU), with their
//! backing files, read and written by the `imago` crate.
//!
//! An image is qcow2 only where its user says so. Were it found out by looking,
//! a guest could write a header to its raw disk and read any file of the host
//! as its backing file after the next start.
//!
//! The names of backing files stand in the image: whoever gives us one trusts
//! who has made it. Each file of a chain is locked as any other image. Where the
//! monitor opens nothing any more, another process opens the files and hands them
//! over in the order in which they are asked for.

use super::raw::{check_opened, open_image};
use super::{Disk, DiskError, Geometry, SECTOR, lock};
use crate::bus::lock as guard;
use crate::virtio::queue::IoVecs;
use imago::FormatAccess;
use imago::file::File;
use imago::format::builder::FormatDriverBuilder;
use imago::format::gate::ImplicitOpenGate;
use imago::qcow2::Qcow2;
use imago::storage::StorageOpenOptions;
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;

/// Files in a chain: more than anyone has, fewer than fill a stack.
pub const MAX_DEPTH: u32 = 64;
/// `QFI\xfb`.
const MAGIC: u32 = 0x5146_49fb;
/// What is moved at once between the guest and the image.
const STEP: u64 = 256 << 10;

/// A disk in a qcow2 image. It keeps its size.
pub struct Qcow2Disk {
    /// Discarding wants it for itself.
    image: Mutex<FormatAccess<File>>,
    len: u64,
    /// What the image gives back or zeroes at once; a power of two.
    cluster: u64,
    read_only: bool,
}

impl Qcow2Disk {
    /// Opens and locks an image and everything that it stands on.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, DiskError> {
        Self::with_files(path, Files::Named, read_only)
    }

    /// The files of an image, the image first, open and locked, for
    /// [`Qcow2Disk::adopt`] in another process.
    pub fn files(path: &Path, read_only: bool) -> Result<Vec<fs::File>, DiskError> {
        let mut files = Vec::new();
        Self::with_files(path, Files::Kept(&mut files), read_only)?;
        Ok(files)
    }

    /// An image whose files another process has opened; `path` is for messages.
    pub fn adopt(path: &Path, files: Vec<fs::File>, read_only: bool) -> Result<Self, DiskError> {
        Self::with_files(path, Files::Given(&mut files.into()), read_only)
    }

    fn with_files(path: &Path, mut files: Files<'_>, read_only: bool) -> Result<Self, DiskError> {
        let named = |source| DiskError::Format { path: path.to_owned(), source };
        let file = files.open(path, read_only)?;
        let cluster = cluster(&file).map_err(named)?;
        let builder = Qcow2::<File>::builder(imago_file(path, file, read_only)?).write(!read_only);
        let image = builder.open(Chain { depth: 0, files: &mut files }).map_err(named)?;
        let image = FormatAccess::new(image);
        let len = image.size() - image.size() % SECTOR;
        if len == 0 {
            return Err(DiskError::TooSmall { path: path.to_owned(), len: image.size() });
        }
        Ok(Self { image: Mutex::new(image), len, cluster, read_only })
    }

    /// Whole clusters in a range. imago 0.2.6 fails with others at the end of an
    /// image.
    fn clusters(&self, offset: u64, len: u64) -> Range<u64> {
        let end = offset.saturating_add(len);
        let start = offset.checked_next_multiple_of(self.cluster).unwrap_or(end);
        start..(end - end % self.cluster).max(start)
    }

    fn write_plain_zeroes(image: &FormatAccess<File>, range: Range<u64>) -> io::Result<()> {
        let zeroes = vec![0; range.end.saturating_sub(range.start).min(STEP) as usize];
        let mut at = range.start;
        while at < range.end {
            let part = zeroes.get(..(range.end - at).min(STEP) as usize).unwrap_or_default();
            image.write(part, at)?;
            at += part.len() as u64;
        }
        Ok(())
    }
}

/// The size of an image's clusters, from its header: magic, version, the backing
/// file's place, and then `cluster_bits`, all big-endian.
fn cluster(file: &fs::File) -> io::Result<u64> {
    let mut header = [0; 24];
    file.read_exact_at(&mut header, 0)?;
    let number =
        |at: usize| header.iter().skip(at).take(4).fold(0u32, |n, b| n << 8 | u32::from(*b));
    match (number(0), number(20)) {
        (MAGIC, bits @ 9..=21) => Ok(1 << bits),
        (MAGIC, bits) => Err(io::Error::other(format!("clusters of 2^{bits} bytes"))),
        _ => Err(io::Error::other("it does not begin as one")),
    }
}

/// Where the files of a chain come from.
enum Files<'a> {
    /// They are opened by their names.
    Named,
    /// The same, and all of them are kept.
    Kept(&'a mut Vec<fs::File>),
    /// They were opened by another process.
    Given(&'a mut VecDeque<fs::File>),
}

impl Files<'_> {
    /// The next file of a chain, locked.
    fn open(&mut self, path: &Path, read_only: bool) -> Result<fs::File, DiskError> {
        let host = |what| move |source| DiskError::Host { path: path.to_owned(), what, source };
        let file = match self {
            Self::Given(files) => {
                let missing = || host("open")(io::Error::other("it did not come along"));
                let file = files.pop_front().ok_or_else(missing)?;
                check_opened(path, &file, read_only, false)?;
                file
            }
            _ => open_image(path, read_only, false)?.0,
        };
        lock::lock(&file, read_only, 0, 0)
            .map_err(|source| DiskError::Locked { path: path.to_owned(), source })?;
        if let Self::Kept(files) = self {
            files.push(file.try_clone().map_err(host("dup"))?);
        }
        Ok(file)
    }
}

/// A file of a chain as imago has it.
fn imago_file(path: &Path, file: fs::File, read_only: bool) -> Result<File, DiskError> {
    let options = StorageOpenOptions::new().filename(path).write(!read_only);
    File::from_open_file(file, options)
        .map_err(|source| DiskError::Format { path: path.to_owned(), source })
}

/// How imago opens what an image refers to.
struct Chain<'a, 'b> {
    depth: u32,
    files: &'a mut Files<'b>,
}

impl ImplicitOpenGate<File> for Chain<'_, '_> {
    fn open_format<F: FormatDriverBuilder<File>>(
        &mut self,
        builder: F,
    ) -> io::Result<FormatAccess<File>> {
        if self.depth >= MAX_DEPTH {
            return Err(io::Error::other(format!("more than {MAX_DEPTH} backing files")));
        }
        let image = builder.open(Chain { depth: self.depth + 1, files: self.files })?;
        Ok(FormatAccess::new(image))
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<File> {
        let path = options.get_filename().ok_or(io::ErrorKind::NotFound)?;
        let read_only = !options.get_writable();
        let file = self.files.open(path, read_only).map_err(io::Error::other)?;
        imago_file(path, file, read_only).map_err(io::Error::other)
    }
}

impl Disk for Qcow2Disk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn geometry(&self) -> Geometry {
        // What is less than a cluster costs reading or writing all of it.
        Geometry { physical: self.cluster.clamp(4096, 64 << 10) as u32, ..Geometry::default() }
    }

    /// Through a buffer: imago takes slices, and there must be none of memory
    /// that a guest changes meanwhile.
    fn read_at(&self, to: &mut IoVecs<'_>, mut offset: u64) -> io::Result<()> {
        let mut buffer = vec![0; to.len().min(STEP) as usize];
        while !to.is_empty() {
            let len = to.len().min(STEP) as usize;
            let part = buffer.get_mut(..len).unwrap_or_default();
            guard(&self.image).read(&mut *part, offset)?;
            offset += to.copy_in(part) as u64;
        }
        Ok(())
    }

    fn write_at(&self, from: &mut IoVecs<'_>, mut offset: u64) -> io::Result<()> {
        let mut buffer = vec![0; from.len().min(STEP) as usize];
        while !from.is_empty() {
            let len = from.copy_out(&mut buffer);
            let part = buffer.get(..len).unwrap_or_default();
            guard(&self.image).write(part, offset)?;
            offset += len as u64;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let image = guard(&self.image);
        image.flush()?;
        image.sync()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let whole = self.clusters(offset, len);
        match whole.is_empty() {
            // A discard is advice.
            true => Ok(()),
            false => guard(&self.image).discard_to_any(whole.start, whole.end - whole.start),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let (whole, end) = (self.clusters(offset, len), offset.saturating_add(len));
        let mut image = guard(&self.image);
        if whole.is_empty() {
            return Self::write_plain_zeroes(&image, offset..end);
        }
        Self::write_plain_zeroes(&image, offset..whole.start)?;
        Self::write_plain_zeroes(&image, whole.end..end)?;
        match unmap {
            true => image.discard_to_zero(whole.start, whole.end - whole.start),
            false => image.write_zeroes(whole.start, whole.end - whole.start),
        }
    }
}
