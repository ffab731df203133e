//! The block device (virtio 1.2, 5.2).
//!
//! ```text
//!   queues ─► request (header, data, status) ─┬─► Disk::read_at / write_at / …
//!                     └─ guest memory         └─► Ring ─► kernel ─► later: status
//!                          ◄─ preadv, pwritev, io_uring ─► image: no copy
//! ```
//!
//! Without a [`Ring`] requests are served in order and to the end, one at a
//! time. With one they end in any order; a reset waits for them and forgets
//! them, and before the state is saved they are waited for and answered.
//!
//! A driver has a queue for each vCPU, so that the interrupt for a request goes
//! where it came from; one thread serves all of them.

mod config;
mod request;
#[cfg(test)]
mod ring_test;
#[cfg(test)]
mod tests;

pub use config::CONFIG_WRITEBACK;

use super::queue::{Chain, IoVecStore, Vq};
use super::{Activation, COMMON_FEATURES, DeviceError, DeviceId, Interrupt, Ram, VirtioDevice};
use crate::backend::disk::ring::Ring;
use crate::backend::disk::{Disk, SECTOR};
use crate::rate::Limiter;
use crate::state::{Saved, StateError};
use request::{Flight, Outcome};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::RawFd;
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
/// `VIRTIO_BLK_F_MQ`.
pub const F_MQ: u64 = 1 << 12;
/// `VIRTIO_BLK_F_DISCARD`.
pub const F_DISCARD: u64 = 1 << 13;
/// `VIRTIO_BLK_F_WRITE_ZEROES`.
pub const F_WRITE_ZEROES: u64 = 1 << 14;

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
/// Requests under way at once, at most; the rest waits in the queues.
const MAX_REQUESTS: u32 = 1024;
/// Queues of a device, at most: one for each vCPU that a machine can have.
pub const MAX_QUEUES: u16 = 32;

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

/// How often settling looks for what has ended.
const SETTLE: std::time::Duration = std::time::Duration::from_micros(50);

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// How a block device serves its disk.
#[derive(Debug)]
pub struct Options {
    /// What the guest is told as identification: the first [`ID_LEN`] bytes.
    pub serial: String,
    /// How many queues a driver may use, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// Whether to use io_uring.
    pub engine: Engine,
    /// How much may be read and written.
    pub limiter: Option<Limiter>,
}

impl Default for Options {
    fn default() -> Self {
        Self { serial: String::new(), queues: 1, engine: Engine::Sync, limiter: None }
    }
}

/// How data gets to the disk and back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// One request after the other, each to its end.
    Sync,
    /// Through io_uring. An error where the host or the format can't.
    Uring,
    /// io_uring for direct I/O where the host has it: there every request takes
    /// as long as the medium does. What the host has in memory is there at
    /// once, and a ring would only be in the way.
    #[default]
    Auto,
}

/// The block device.
pub struct Block {
    disk: Box<dyn Disk>,
    id: [u8; ID_LEN],
    queue_sizes: Vec<u16>,
    /// `writeback`: whether writes may wait for a flush. Meaningful while active.
    writeback: bool,
    features: u64,
    metrics: Arc<BlockMetrics>,
    flight: Option<Flight>,
    limiter: Option<Limiter>,
    active: Option<Active>,
}

struct Active {
    mem: Ram,
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

/// What [`Block::sources`] shows, in this order.
#[derive(Clone, Copy, PartialEq)]
enum Source {
    Ring,
    Limiter,
}

impl Block {
    /// A block device on `disk`. Fails where io_uring is asked for and can't be
    /// had.
    pub fn new(disk: Box<dyn Disk>, options: Options) -> io::Result<Self> {
        let mut id = [0; ID_LEN];
        for (to, from) in id.iter_mut().zip(options.serial.bytes()) {
            *to = from;
        }
        let queues = options.queues.clamp(1, MAX_QUEUES);
        let flight = flight(disk.as_ref(), options.engine, queues)?;
        Ok(Self {
            disk,
            id,
            queue_sizes: vec![QUEUE_SIZE; queues.into()],
            writeback: true,
            features: 0,
            metrics: Arc::default(),
            flight,
            limiter: options.limiter,
            active: None,
        })
    }

    /// The counters, for whoever reports them.
    pub fn metrics(&self) -> &Arc<BlockMetrics> {
        &self.metrics
    }

    /// Whether requests go through io_uring.
    pub fn uses_ring(&self) -> bool {
        self.flight.is_some()
    }

    /// Serves what is in queue `index`, as far as it may.
    fn serve(&mut self, index: usize) -> Result<(), DeviceError> {
        let full = self.take(index)?;
        self.land(Some(index))?;
        // Where the ring was full and is no longer, nothing else would bring us
        // back here.
        if full && self.flight.as_ref().is_some_and(|f| f.ring.has_room()) {
            let queues = self.active.iter().flat_map(|active| &active.queues);
            queues.skip(index).take(1).flatten().for_each(Vq::call_again);
        }
        Ok(())
    }

    /// Takes requests from queue `index`; those that can be answered at once are.
    /// Returns whether it ended because the ring is full.
    fn take(&mut self, index: usize) -> Result<bool, DeviceError> {
        let Some(active) = &mut self.active else { return Ok(false) };
        let Some(Some(queue)) = active.queues.get_mut(index) else { return Ok(false) };
        let (mem, chain) = (&active.mem, &mut active.chain);
        let mut requests = request::Server {
            mem,
            disk: self.disk.as_ref(),
            flight: self.flight.as_mut(),
            id: &self.id,
            write_through: !self.writeback,
            metrics: &self.metrics,
            iovecs: &mut active.iovecs,
        };
        queue.suppress_notifications(mem)?;
        for _ in 0..queue.size() {
            // Both say when there is room again; until then a doorbell is of no
            // use, so it stays off.
            if !requests.has_room() {
                return Ok(true);
            }
            if self.limiter.as_mut().is_some_and(|l| !l.ready()) {
                return Ok(false);
            }
            if !queue.pop(mem, chain)? {
                break;
            }
            if let Some(limiter) = &mut self.limiter {
                limiter.take(chain.readable_len().max(chain.writable_len()));
            }
            if let Outcome::Done(written) = requests.serve(index, chain)? {
                queue.push_used(mem, chain.head, written)?;
            }
        }
        if queue.enable_notifications(mem)? {
            queue.call_again();
        }
        Ok(false)
    }

    /// Sends off what has begun, answers what has ended, and tells the driver,
    /// also of what was answered in queue `served` before.
    fn land(&mut self, served: Option<usize>) -> Result<(), DeviceError> {
        let Some(Active { mem, queues, interrupt, .. }) = &mut self.active else { return Ok(()) };
        // A bit for each queue that has something new.
        let bit = |index: usize| 1u64.checked_shl(index as u32).unwrap_or(0);
        let mut touched = served.map_or(0, bit);
        if let Some(Flight { ring, begun }) = &mut self.flight {
            let host = |source| DeviceError::Host { what: "block: io_uring", source };
            loop {
                ring.submit().map_err(host)?;
                while let Some((number, outcome)) = ring.finished() {
                    let request = begun.get_mut(number).and_then(Option::take);
                    let Some(request) = request else { continue };
                    let written = request.answer(mem, &self.metrics, outcome)?;
                    if let Some(Some(queue)) = queues.get_mut(request.queue) {
                        queue.push_used(mem, request.head, written)?;
                        touched |= bit(request.queue);
                    }
                }
                if !ring.has_more() {
                    break;
                }
            }
        }
        for (index, queue) in queues.iter_mut().enumerate() {
            let Some(queue) = queue.as_mut().filter(|_| touched & bit(index) != 0) else {
                continue;
            };
            if queue.needs_interrupt(mem)? {
                interrupt.queue(index);
                count(&self.metrics.interrupts, 1);
            }
        }
        Ok(())
    }

    /// Serves all queues: something that they waited for is there.
    fn serve_all(&mut self) -> Result<(), DeviceError> {
        (0..self.queue_sizes.len()).try_for_each(|index| self.serve(index))
    }

    fn source(&self, number: usize) -> Option<Source> {
        let ring = self.flight.as_ref().map(|_| Source::Ring);
        let limiter = self.limiter.as_ref().map(|_| Source::Limiter);
        ring.into_iter().chain(limiter).nth(number)
    }
}

/// The ring, if there is to be one.
fn flight(disk: &dyn Disk, engine: Engine, queues: u16) -> io::Result<Option<Flight>> {
    let unsupported = || io::Error::other("the image's format can't be used with io_uring");
    let (backing, must) = match (engine, disk.backing()) {
        (Engine::Sync, _) | (Engine::Auto, None) => return Ok(None),
        (Engine::Uring, None) => return Err(unsupported()),
        (Engine::Auto, Some(backing)) if backing.align == 1 => return Ok(None),
        (engine, Some(backing)) => (backing, engine == Engine::Uring),
    };
    let requests = (u32::from(queues) * u32::from(QUEUE_SIZE)).next_power_of_two();
    match Ring::new(backing, requests.min(MAX_REQUESTS)) {
        Ok(ring) => {
            let begun = vec![None; requests.min(MAX_REQUESTS) as usize];
            Ok(Some(Flight { ring, begun }))
        }
        Err(e) if must => Err(e),
        Err(e) => {
            log::info!("block: without io_uring: {e}");
            Ok(None)
        }
    }
}

impl VirtioDevice for Block {
    fn id(&self) -> DeviceId {
        DeviceId::Block
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        let rights = if self.disk.read_only() { F_RO } else { F_DISCARD | F_WRITE_ZEROES };
        let cache = F_FLUSH | F_CONFIG_WCE;
        let many = if self.queue_sizes.len() > 1 { F_MQ } else { 0 };
        COMMON_FEATURES | F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | cache | many | rights
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
            if !self.writeback && (self.settle().is_err() || self.disk.flush().is_err()) {
                count(&self.metrics.errors, 1);
            }
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let Activation { mem, queues, features, interrupt } = activation;
        // A driver may use fewer than there are, from the first one on.
        if !matches!(queues.first(), Some(Some(_))) {
            return Err(DeviceError::MissingQueue(0));
        }
        // A driver that can't flush must find every write durable (5.2.5.2).
        // Without CONFIG_WCE there is no other way to say what it wants.
        if features & F_FLUSH == 0 {
            self.writeback = false;
        }
        self.features = features;
        if let Some(flight) = &mut self.flight {
            flight.ring.keep(mem.clone());
        }
        let (chain, iovecs) = Default::default();
        self.active = Some(Active { mem, queues, interrupt, chain, iovecs });
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(Flight { ring, begun }) = &mut self.flight {
            ring.empty();
            begun.fill(None);
        }
        self.active = None;
        self.features = 0;
        self.writeback = true;
    }

    fn queues(&self) -> Option<&[Option<Vq>]> {
        self.active.as_ref().map(|a| a.queues.as_slice())
    }

    fn queue_event(&mut self, queue: usize) -> Result<(), DeviceError> {
        self.serve(queue)
    }

    fn sources(&self) -> Vec<RawFd> {
        let ring = self.flight.as_ref().map(|f| f.ring.source());
        ring.into_iter().chain(self.limiter.as_ref().map(Limiter::source)).collect()
    }

    fn source_event(&mut self, source: usize) -> Result<(), DeviceError> {
        match self.source(source) {
            Some(Source::Ring) => {
                let was_full = self.flight.as_ref().is_some_and(|f| !f.ring.has_room());
                self.land(None)?;
                if was_full { self.serve_all() } else { Ok(()) }
            }
            Some(Source::Limiter) => self.serve_all(),
            None => Ok(()),
        }
    }

    /// What is under way is answered before the state is saved.
    fn settle(&mut self) -> Result<(), DeviceError> {
        while self.flight.as_ref().is_some_and(|f| !f.ring.is_idle()) && self.active.is_some() {
            self.land(None)?;
            std::thread::sleep(SETTLE);
        }
        Ok(())
    }

    fn leave(&mut self) -> io::Result<()> {
        let flushed = if self.disk.read_only() { Ok(()) } else { self.disk.flush() };
        self.disk.unlock();
        flushed
    }

    fn resize(&mut self, len: Option<u64>) -> io::Result<u64> {
        self.disk.resize(len)?;
        if let Some(active) = &self.active {
            active.interrupt.config();
        }
        Ok(self.disk.len())
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
