//! One request: parsed, checked, done or begun.

use super::{
    BlockMetrics, ID_LEN, MAX_DISCARD_SECTORS, MAX_RANGES, MAX_WRITE_ZEROES_SECTORS, count,
};
use crate::backend::disk::ring::{Op, Ring};
use crate::backend::disk::{Disk, SECTOR, fits};
use crate::virtio::queue::{Chain, IoVecStore, IoVecs, QueueError};
use crate::virtio::{DeviceError, Ram};
use std::io;
use vm_memory::{Bytes, GuestAddress};

/// `VIRTIO_BLK_T_IN`.
pub(super) const T_IN: u32 = 0;
/// `VIRTIO_BLK_T_OUT`.
pub(super) const T_OUT: u32 = 1;
/// `VIRTIO_BLK_T_FLUSH`.
pub(super) const T_FLUSH: u32 = 4;
/// `VIRTIO_BLK_T_GET_ID`.
pub(super) const T_GET_ID: u32 = 8;
/// `VIRTIO_BLK_T_DISCARD`.
pub(super) const T_DISCARD: u32 = 11;
/// `VIRTIO_BLK_T_WRITE_ZEROES`.
pub(super) const T_WRITE_ZEROES: u32 = 13;

/// `VIRTIO_BLK_S_OK`.
pub(super) const S_OK: u8 = 0;
/// `VIRTIO_BLK_S_IOERR`.
pub(super) const S_IOERR: u8 = 1;
/// `VIRTIO_BLK_S_UNSUPP`.
pub(super) const S_UNSUPP: u8 = 2;

/// `type`, `reserved`, `sector`.
pub(super) const HEADER_LEN: u64 = 16;
/// `sector`, `num_sectors`, `flags` of a discard or write-zeroes range.
const RANGE_LEN: u64 = 16;
/// The flag `unmap` of a range; all others are reserved.
const RANGE_UNMAP: u32 = 1;

/// Why a request fails. The guest is told, and the queue goes on.
enum Failure {
    /// The chain itself is at fault: this one does stop the queue.
    Queue(QueueError),
    /// `VIRTIO_BLK_S_UNSUPP`.
    Unsupported,
    /// `VIRTIO_BLK_S_IOERR`, and for whom it may concern, why.
    Invalid(&'static str),
    /// `VIRTIO_BLK_S_IOERR`: the host's word.
    Host(io::Error),
}

impl From<QueueError> for Failure {
    fn from(e: QueueError) -> Self {
        match e {
            // A request shorter than its type wants is a bad request in a good
            // chain.
            QueueError::Short { .. } => Self::Invalid("too short"),
            e => Self::Queue(e),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        Self::Host(e)
    }
}

/// A request that has been begun and will be answered later.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begun {
    /// Which queue it came from.
    pub queue: usize,
    /// Its chain.
    pub head: u16,
    op: Op,
    /// Bytes to move.
    len: u64,
    /// Where the status is: a guest address, as the chain is gone by then.
    status: GuestAddress,
    /// Bytes before the status that the device may write.
    status_at: u64,
}

/// What has become of a request.
pub(super) enum Outcome {
    /// It is answered; so much of the chain was written.
    Done(u32),
    /// It is under way.
    Begun,
}

/// Requests under way, by their number in the ring.
pub(super) struct Flight {
    pub ring: Ring,
    pub begun: Vec<Option<Begun>>,
}

/// What it takes to serve requests, for the time of one event.
pub(super) struct Server<'a> {
    pub mem: &'a Ram,
    pub disk: &'a dyn Disk,
    /// Where requests go that need not be waited for.
    pub flight: Option<&'a mut Flight>,
    pub id: &'a [u8; ID_LEN],
    /// Whether each write has to be durable before it is answered.
    pub write_through: bool,
    pub metrics: &'a BlockMetrics,
    pub iovecs: &'a mut IoVecStore,
}

impl Server<'_> {
    /// Whether another request can be begun.
    pub fn has_room(&self) -> bool {
        self.flight.as_ref().is_none_or(|f| f.ring.has_room())
    }

    /// Serves the request in `chain`, which came from queue `queue`.
    pub fn serve(&mut self, queue: usize, chain: &Chain) -> Result<Outcome, DeviceError> {
        // The status is the last byte that the device may write, however the
        // driver has cut the chain (2.7.4: framing is the driver's business).
        let Some(status_at) = chain.writable_len().checked_sub(1) else {
            return Err(DeviceError::Request("block request without room for a status"));
        };
        let (status, written) = match self.run(queue, chain, status_at) {
            Ok(Some(filled)) => (S_OK, filled),
            Ok(None) => return Ok(Outcome::Begun),
            Err(Failure::Queue(e)) => return Err(e.into()),
            Err(failure) => {
                count(&self.metrics.errors, 1);
                (self.explain(&failure), 0)
            }
        };
        chain.write_at(self.mem, status_at, &[status])?;
        Ok(Outcome::Done(used_len(written, status_at)))
    }

    fn explain(&self, failure: &Failure) -> u8 {
        match failure {
            Failure::Unsupported => S_UNSUPP,
            Failure::Invalid(why) => {
                log::debug!("block request refused: {why}");
                S_IOERR
            }
            Failure::Host(e) => {
                log::debug!("block request failed: {e}");
                S_IOERR
            }
            Failure::Queue(_) => S_IOERR,
        }
    }

    /// Does it, and returns how many bytes of the data were filled; `None`: it is
    /// under way.
    fn run(&mut self, queue: usize, chain: &Chain, data_in: u64) -> Result<Option<u64>, Failure> {
        let mut header = [0; HEADER_LEN as usize];
        chain.read_at(self.mem, 0, &mut header)?;
        let header = u128::from_le_bytes(header);
        let (request, sector) = (header as u32, (header >> 64) as u64);
        let data_out = chain.readable_len() - HEADER_LEN;
        match request {
            T_IN => {
                let offset = self.locate(sector, data_in)?;
                let mut to = chain.writable_iovecs(self.mem, self.iovecs, 0, data_in)?;
                let begun = Begin { queue, chain, op: Op::Read, len: data_in, status_at: data_in };
                if begin(&mut self.flight, begun, &to, offset) {
                    return Ok(None);
                }
                self.disk.read_at(&mut to, offset)?;
                moved(self.metrics, Op::Read, data_in);
                Ok(Some(data_in))
            }
            T_OUT => {
                self.writable()?;
                let offset = self.locate(sector, data_out)?;
                let mut from =
                    chain.readable_iovecs(self.mem, self.iovecs, HEADER_LEN, data_out)?;
                let op = Op::Write(self.write_through);
                let begun = Begin { queue, chain, op, len: data_out, status_at: data_in };
                if begin(&mut self.flight, begun, &from, offset) {
                    return Ok(None);
                }
                self.disk.write_at(&mut from, offset)?;
                self.settle()?;
                moved(self.metrics, op, data_out);
                Ok(Some(0))
            }
            T_FLUSH => {
                let nothing = IoVecs::from_slice(self.iovecs, &mut []);
                let begun = Begin { queue, chain, op: Op::Flush, len: 0, status_at: data_in };
                if begin(&mut self.flight, begun, &nothing, 0) {
                    return Ok(None);
                }
                self.disk.flush()?;
                moved(self.metrics, Op::Flush, 0);
                Ok(Some(0))
            }
            T_GET_ID => {
                let len = data_in.min(ID_LEN as u64);
                let id = self.id.get(..len as usize).unwrap_or_default();
                chain.write_at(self.mem, 0, id)?;
                Ok(Some(len))
            }
            T_DISCARD | T_WRITE_ZEROES => {
                self.writable()?;
                self.ranges(chain, data_out, request)?;
                self.settle()?;
                count(&self.metrics.discards, 1);
                Ok(Some(0))
            }
            _ => Err(Failure::Unsupported),
        }
    }

    /// Discards or zeroes each range. All of them are checked before the first
    /// is touched, on a copy that the guest can't change.
    fn ranges(&self, chain: &Chain, data_out: u64, request: u32) -> Result<(), Failure> {
        let max = match request {
            T_DISCARD => MAX_DISCARD_SECTORS,
            _ => MAX_WRITE_ZEROES_SECTORS,
        };
        let many = data_out / RANGE_LEN;
        if many == 0 || !data_out.is_multiple_of(RANGE_LEN) || many > MAX_RANGES.into() {
            return Err(Failure::Invalid("not 1 to 16 ranges"));
        }
        let mut ranges = Vec::with_capacity(MAX_RANGES as usize);
        for i in 0..many {
            let mut raw = [0; RANGE_LEN as usize];
            chain.read_at(self.mem, HEADER_LEN + i * RANGE_LEN, &mut raw)?;
            let raw = u128::from_le_bytes(raw);
            let (sector, sectors) = (raw as u64, (raw >> 64) as u32);
            let flags = (raw >> 96) as u32;
            // 5.2.6.2: what is reserved, and unmap in a discard, is unsupported.
            if flags & !RANGE_UNMAP != 0 || (request == T_DISCARD && flags != 0) {
                return Err(Failure::Unsupported);
            }
            if sectors > max {
                return Err(Failure::Invalid("range too long"));
            }
            let len = u64::from(sectors) * SECTOR;
            ranges.push((self.locate(sector, len)?, len, flags & RANGE_UNMAP != 0));
        }
        for (offset, len, unmap) in ranges.into_iter().filter(|r| r.1 > 0) {
            match request {
                T_DISCARD => self.disk.discard(offset, len)?,
                _ => self.disk.write_zeroes(offset, len, unmap)?,
            }
        }
        Ok(())
    }

    /// The offset of `len` bytes at `sector`, if they are on the disk.
    fn locate(&self, sector: u64, len: u64) -> Result<u64, Failure> {
        let unit = u64::from(self.disk.geometry().logical);
        let offset = sector.checked_mul(SECTOR);
        if !len.is_multiple_of(unit) || offset.is_some_and(|o| !o.is_multiple_of(unit)) {
            return Err(Failure::Invalid("not a number of whole sectors"));
        }
        offset
            .filter(|offset| offset.checked_add(len).is_some_and(|end| end <= self.disk.len()))
            .ok_or(Failure::Invalid("outside of the disk"))
    }

    fn writable(&self) -> Result<(), Failure> {
        match self.disk.read_only() {
            true => Err(Failure::Invalid("the disk is read-only")),
            false => Ok(()),
        }
    }

    /// After a change: durable now, if nobody is going to flush.
    fn settle(&self) -> io::Result<()> {
        if self.write_through { self.disk.flush() } else { Ok(()) }
    }
}

/// A request on its way to the ring.
struct Begin<'a> {
    queue: usize,
    chain: &'a Chain,
    op: Op,
    len: u64,
    status_at: u64,
}

/// Hands a request to the ring; `false`: there is none, or it can't take it.
fn begin(
    flight: &mut Option<&mut Flight>,
    request: Begin<'_>,
    data: &IoVecs<'_>,
    offset: u64,
) -> bool {
    let Some(flight) = flight.as_mut().filter(|f| fits(data.as_slice(), f.ring.align())) else {
        return false;
    };
    let Begin { queue, chain, op, len, status_at } = request;
    // Nothing to move is no business of the host's; and the status is somewhere,
    // or there would be no request.
    let Some(status) = chain.writable_address(status_at) else { return false };
    if len == 0 && op != Op::Flush {
        return false;
    }
    let Some(number) = flight.ring.start(op, data, offset) else { return false };
    if let Some(slot) = flight.begun.get_mut(number) {
        *slot = Some(Begun { queue, head: chain.head, op, len, status, status_at });
    }
    true
}

impl Begun {
    /// Answers the request; returns how much of its chain was written.
    pub fn answer(
        &self,
        mem: &Ram,
        metrics: &BlockMetrics,
        outcome: io::Result<()>,
    ) -> Result<u32, DeviceError> {
        let (status, filled) = match (outcome, self.op) {
            (Ok(()), Op::Read) => (S_OK, self.len),
            (Ok(()), _) => (S_OK, 0),
            (Err(e), _) => {
                log::debug!("block request failed: {e}");
                (S_IOERR, 0)
            }
        };
        match status {
            S_OK => moved(metrics, self.op, self.len),
            _ => count(&metrics.errors, 1),
        }
        mem.write_obj(status, self.status).map_err(|_| QueueError::OutsideRam {
            what: "buffer",
            addr: self.status.0,
            len: 1,
        })?;
        Ok(used_len(filled, self.status_at))
    }
}

/// The used length promises that much from the start on, without a gap
/// (2.7.8.2): the status is part of it only if the data before it is.
fn used_len(filled: u64, status_at: u64) -> u32 {
    let written = if filled == status_at { filled + 1 } else { filled };
    u32::try_from(written).unwrap_or(u32::MAX)
}

fn moved(metrics: &BlockMetrics, op: Op, len: u64) {
    match op {
        Op::Read => {
            count(&metrics.reads, 1);
            count(&metrics.bytes_read, len);
        }
        Op::Write(_) => {
            count(&metrics.writes, 1);
            count(&metrics.bytes_written, len);
        }
        Op::Flush => count(&metrics.flushes, 1),
    }
}
