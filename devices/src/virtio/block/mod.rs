//! The block device (virtio 1.2, 5.2).
//!
//! ```text
//!   queue ─► request (header, data, status) ─► Disk::read_at / write_at / …
//!                     └─ guest memory ◄─ preadv, pwritev ─► image: no copy
//! ```
//!
//! Requests are served in order and to the end, one at a time, so nothing is
//! ever in flight outside of an event: a reset and a saved state find the
//! device at rest.

mod request;
#[cfg(test)]
mod tests;

use super::queue::{Chain, IoVecStore, Vq};
use super::{Activation, COMMON_FEATURES, DeviceError, DeviceId, Interrupt, Ram, VirtioDevice};
use crate::backend::disk::{Disk, SECTOR};
use crate::state::{Saved, StateError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// `VIRTIO_BLK_F_SEG_MAX`.
pub const F_SEG_MAX: u64 = 1 << 2;
/// `VIRTIO_BLK_F_RO`.
pub const F_RO: u64 = 1 << 5;
/// `VIRTIO_BLK_F_BLK_SIZE`.
pub const F_BLK_SIZE: u64 = 1 << 6;
/// `VIRTIO_BLK_F_FLUSH`.
pub const F_FLUSH: u64 = 1 << 9;
/// `VIRTIO_BLK_F_TOPOLOGY`.
pub const F_TOPOLOGY: u64 = 1 << 10;
/// `VIRTIO_BLK_F_CONFIG_WCE`.
pub const F_CONFIG_WCE: u64 = 1 << 11;
/// `VIRTIO_BLK_F_DISCARD`.
pub const F_DISCARD: u64 = 1 << 13;
/// `VIRTIO_BLK_F_WRITE_ZEROES`.
pub const F_WRITE_ZEROES: u64 = 1 << 14;

/// Where `writeback` is in the configuration space.
pub const CONFIG_WRITEBACK: u64 = 32;
/// Length of the identification string of `VIRTIO_BLK_T_GET_ID`.
pub const ID_LEN: usize = 20;

const KIND: &str = "virtio-block";
const STATE_VERSION: u32 = 1;
const QUEUE_SIZE: u16 = 256;
/// A header and a status beside the data, so that a request fits a queue even
/// without indirect descriptors.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Ranges in one discard or write-zeroes request.
const MAX_RANGES: u32 = 16;
/// 2 GiB in one range: a file system drops them quickly.
const MAX_DISCARD_SECTORS: u32 = 4 << 20;
/// 32 MiB in one range: the host may have to write them.
const MAX_WRITE_ZEROES_SECTORS: u32 = 64 << 10;
/// Hosts keep files in pages: a hint for the guest's layout, as an exponent.
const PHYSICAL_BLOCK_EXP: u8 = 3;

/// What a block device has done so far.
#[derive(Debug, Default)]
#[allow(missing_docs)] // They say it.
pub struct BlockMetrics {
    pub reads: AtomicU64,
    pub writes: AtomicU64,
    pub flushes: AtomicU64,
    pub discards: AtomicU64,
    pub bytes_read: AtomicU64,
    pub bytes_written: AtomicU64,
    pub errors: AtomicU64,
    pub interrupts: AtomicU64,
}

impl BlockMetrics {
    fn all(&self) -> Vec<(&'static str, u64)> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("reads", get(&self.reads)),
            ("writes", get(&self.writes)),
            ("flushes", get(&self.flushes)),
            ("discards", get(&self.discards)),
            ("bytes_read", get(&self.bytes_read)),
            ("bytes_written", get(&self.bytes_written)),
            ("errors", get(&self.errors)),
            ("interrupts", get(&self.interrupts)),
        ]
    }
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// The block device.
pub struct Block {
    disk: Box<dyn Disk>,
    id: [u8; ID_LEN],
    /// `writeback`: whether writes may wait for a flush. Meaningful while active.
    writeback: bool,
    features: u64,
    metrics: Arc<BlockMetrics>,
    active: Option<Active>,
}

struct Active {
    mem: Ram,
    /// In a `Vec` because that is what [`VirtioDevice::queues`] shows.
    queues: Vec<Option<Vq>>,
    interrupt: Arc<Interrupt>,
    chain: Chain,
    iovecs: IoVecStore,
}

#[derive(Serialize, Deserialize)]
struct BlockState {
    capacity: u64,
    read_only: bool,
    writeback: bool,
}

impl Block {
    /// A block device on `disk`, whose guest may ask for `serial`: the first
    /// [`ID_LEN`] bytes of it.
    pub fn new(disk: Box<dyn Disk>, serial: &str) -> Self {
        let mut id = [0; ID_LEN];
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        let metrics = Arc::default();
        Self { disk, id, writeback: true, features: 0, metrics, active: None }
    }

    /// The counters, for whoever reports them.
    pub fn metrics(&self) -> &Arc<BlockMetrics> {
        &self.metrics
    }

    /// `virtio_blk_config`, up to `max_write_zeroes` and its padding.
    fn config(&self) -> Vec<u8> {
        let mut c = Vec::with_capacity(60);
        c.extend((self.disk.len() / SECTOR).to_le_bytes()); // capacity
        c.extend(0u32.to_le_bytes()); // size_max: not offered
        c.extend(SEG_MAX.to_le_bytes());
        c.extend([0; 4]); // geometry: not offered
        c.extend((SECTOR as u32).to_le_bytes()); // blk_size
        c.extend([PHYSICAL_BLOCK_EXP, 0]); // topology: …, alignment_offset
        c.extend((1u16 << PHYSICAL_BLOCK_EXP).to_le_bytes()); // min_io_size
        c.extend(0u32.to_le_bytes()); // opt_io_size
        c.push(self.writeback.into());
        c.push(0);
        c.extend(1u16.to_le_bytes()); // num_queues
        c.extend(MAX_DISCARD_SECTORS.to_le_bytes());
        c.extend(MAX_RANGES.to_le_bytes()); // max_discard_seg
        c.extend((1u32 << PHYSICAL_BLOCK_EXP).to_le_bytes()); // discard_sector_alignment
        c.extend(MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
        c.extend(MAX_RANGES.to_le_bytes()); // max_write_zeroes_seg
        c.extend([1, 0, 0, 0]); // write_zeroes_may_unmap
        c
    }

    fn serve(&mut self) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let Some(Some(queue)) = active.queues.first_mut() else { return Ok(()) };
        let (mem, chain) = (&active.mem, &mut active.chain);
        let mut requests = request::Server {
            mem,
            disk: self.disk.as_ref(),
            id: &self.id,
            write_through: !self.writeback,
            metrics: &self.metrics,
            iovecs: &mut active.iovecs,
        };
        queue.suppress_notifications(mem)?;
        for _ in 0..queue.size() {
            if !queue.pop(mem, chain)? {
                break;
            }
            let written = requests.serve(chain)?;
            queue.push_used(mem, chain.head, written)?;
        }
        if queue.enable_notifications(mem)? {
            queue.call_again();
        }
        if queue.needs_interrupt(mem)? {
            active.interrupt.queue(0);
            count(&self.metrics.interrupts, 1);
        }
        Ok(())
    }
}

impl VirtioDevice for Block {
    fn id(&self) -> DeviceId {
        DeviceId::Block
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        let rights = if self.disk.read_only() { F_RO } else { F_DISCARD | F_WRITE_ZEROES };
        let cache = F_FLUSH | F_CONFIG_WCE;
        COMMON_FEATURES | F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | cache | rights
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let config = self.config();
        let from = usize::try_from(offset).ok().and_then(|o| config.get(o..));
        for (to, from) in data.iter_mut().zip(from.unwrap_or_default()) {
            *to = *from;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if offset == CONFIG_WRITEBACK
            && self.features & F_CONFIG_WCE != 0
            && let [writeback] = data
        {
            self.writeback = *writeback != 0;
            // What was written so far was promised nothing; from here on each
            // write is durable, so the ones before have to be as well.
            if !self.writeback && self.disk.flush().is_err() {
                count(&self.metrics.errors, 1);
            }
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let Activation { mem, queues, features, interrupt } = activation;
        if !matches!(queues.first(), Some(Some(_))) {
            return Err(DeviceError::MissingQueue(0));
        }
        // A driver that can't flush must find every write durable (5.2.5.2).
        // Without CONFIG_WCE there is no other way to say what it wants.
        if features & F_FLUSH == 0 {
            self.writeback = false;
        }
        self.features = features;
        let (chain, iovecs) = Default::default();
        self.active = Some(Active { mem, queues, interrupt, chain, iovecs });
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.features = 0;
        self.writeback = true;
    }

    fn queues(&self) -> Option<&[Option<Vq>]> {
        self.active.as_ref().map(|a| a.queues.as_slice())
    }

    fn queue_event(&mut self, _queue: usize) -> Result<(), DeviceError> {
        self.serve()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.metrics.all()
    }

    fn save(&self) -> Result<Saved, StateError> {
        // The image is saved by whoever copies it; what the guest was told is
        // durable must be, before that.
        let (capacity, read_only) = (self.disk.len() / SECTOR, self.disk.read_only());
        let state = BlockState { capacity, read_only, writeback: self.writeback };
        Saved::new(KIND, STATE_VERSION, &state)
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        let state: BlockState = saved.open(KIND, STATE_VERSION)?;
        let (capacity, read_only) = (self.disk.len() / SECTOR, self.disk.read_only());
        if (state.capacity, state.read_only) != (capacity, read_only) {
            let reason = format!(
                "saved with {} sectors, read-only {}; the image here has {capacity}, {read_only}",
                state.capacity, state.read_only
            );
            return Err(StateError::Invalid { kind: KIND, reason });
        }
        self.writeback = state.writeback;
        Ok(())
    }
}
