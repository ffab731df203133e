//! What is in a drive, and the work that is done on it: away from the drive's
//! registers, on the event loop.

use crate::backend::disk::Disk;
use crate::virtio::Ram;
use crate::virtio::queue::{Buffer, IoVecStore, IoVecs};
use serde::{Deserialize, Serialize};
use std::io;
use vm_memory::{Bytes, GuestAddress};

/// Entries of a table of physical region descriptors: it does not cross a border
/// of 64 KiB ("Programming Interface for Bus Master IDE Controller", 1.2).
const MAX_DESCRIPTORS: u64 = 8192;
/// The end of a table.
const END_OF_TABLE: u64 = 1 << 63;
/// Bytes that a count of 0 stands for.
const WHOLE_REGION: u32 = 64 << 10;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Fills the drive's buffer from the image.
    Fill {
        /// First byte.
        at: u64,
        /// Bytes.
        len: u32,
    },
    /// Writes the drive's buffer to the image.
    Store {
        /// First byte.
        at: u64,
    },
    /// From the image to guest memory.
    Read {
        /// First byte.
        at: u64,
        /// Bytes.
        len: u32,
    },
    /// From guest memory to the image.
    Write {
        /// First byte.
        at: u64,
        /// Bytes.
        len: u32,
    },
    /// The drive's buffer to guest memory.
    Send,
    /// Makes what was written durable.
    Flush,
}

/// Why it failed.
#[derive(Debug)]
pub enum Failure {
    /// The image.
    Image(io::Error),
    /// Descriptors that lead out of memory.
    Memory,
}

/// How a table of descriptors compared with the transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Its regions are as large as the transfer; or there was none.
    Exact,
    /// They are larger.
    Longer,
    /// They are smaller: not everything was transferred.
    Shorter,
}

/// An image in a drive.
pub struct Media {
    disk: Box<dyn Disk>,
    store: IoVecStore,
}

impl Media {
    pub fn new(disk: Box<dyn Disk>) -> Self {
        Self { disk, store: IoVecStore::new() }
    }

    pub fn len(&self) -> u64 {
        self.disk.len()
    }

    pub fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    /// Does `work` with the drive's `buffer`; regions of guest memory are those
    /// of the table at `table`. With `durable`, what is written is flushed too.
    pub fn run(
        &mut self,
        mem: &Ram,
        work: Work,
        buffer: &mut Vec<u8>,
        table: u32,
        durable: bool,
    ) -> Result<Table, Failure> {
        let Self { disk, store } = self;
        match work {
            Work::Fill { at, len } => {
                buffer.resize(len as usize, 0);
                let mut to = IoVecs::from_slice(store, buffer);
                disk.read_at(&mut to, at).map_err(Failure::Image)?;
                Ok(Table::Exact)
            }
            Work::Store { at } => {
                let mut from = IoVecs::from_slice(store, buffer);
                disk.write_at(&mut from, at).map_err(Failure::Image)?;
                flush(disk.as_ref(), durable)?;
                Ok(Table::Exact)
            }
            Work::Read { at, len } => {
                let (mut to, table) = regions(mem, store, table, len)?;
                disk.read_at(&mut to, at).map_err(Failure::Image)?;
                Ok(table)
            }
            Work::Write { at, len } => {
                let (mut from, table) = regions(mem, store, table, len)?;
                disk.write_at(&mut from, at).map_err(Failure::Image)?;
                flush(disk.as_ref(), durable)?;
                Ok(table)
            }
            Work::Send => {
                let (mut to, table) = regions(mem, store, table, buffer.len() as u32)?;
                to.copy_in(buffer);
                Ok(table)
            }
            Work::Flush => flush(disk.as_ref(), true).map(|()| Table::Exact),
        }
    }
}

fn flush(disk: &dyn Disk, wanted: bool) -> Result<(), Failure> {
    if wanted { disk.flush().map_err(Failure::Image) } else { Ok(()) }
}

/// The memory that the table at `table` describes, `len` bytes of it; in whole
/// sectors when it is less.
fn regions<'m>(
    mem: &'m Ram,
    store: &'m mut IoVecStore,
    table: u32,
    len: u32,
) -> Result<(IoVecs<'m>, Table), Failure> {
    let mut buffers = Vec::new();
    let mut left = len;
    let mut fit = Table::Shorter;
    for i in 0..MAX_DESCRIPTORS {
        if left == 0 {
            break;
        }
        let at = GuestAddress(u64::from(table & !3) + 8 * i);
        let raw: u64 = mem.read_obj(at).map_err(|_| Failure::Memory)?;
        let region = match (raw >> 32) as u32 & 0xfffe {
            0 => WHOLE_REGION,
            count => count,
        };
        let step = region.min(left);
        buffers.push(Buffer { addr: GuestAddress(raw & 0xffff_fffe), len: step });
        left -= step;
        let last = raw & END_OF_TABLE != 0;
        if left == 0 {
            fit = if last && step == region { Table::Exact } else { Table::Longer };
        } else if last {
            break;
        }
    }
    // Half a sector can't be written.
    let mut extra = (len - left) % SECTOR * u32::from(left > 0);
    while extra > 0 {
        let Some(buffer) = buffers.last_mut() else { break };
        let step = extra.min(buffer.len);
        buffer.len -= step;
        extra -= step;
        if buffer.len == 0 {
            buffers.pop();
        }
    }
    let vecs = store.fill(mem, buffers.into_iter()).map_err(|_| Failure::Memory)?;
    Ok((vecs, fit))
}

const SECTOR: u32 = crate::backend::disk::SECTOR as u32;
