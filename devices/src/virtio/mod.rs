//! Virtio devices (virtio 1.2): one device model each, carried by any transport.
//!
//! ```text
//!  guest driver ──registers──► transport (mmio, pci) ──activate──► device
//!        │                                                       ▲    │
//!        └── doorbell ─► ioeventfd ─► Worker on an event loop ───┘    └─ Interrupt ─► irqfd ─► guest
//! ```
//!
//! The lifecycle, in the order in which it happens:
//!
//! 1. **built**: the device knows its features, queues and configuration space.
//! 2. **activated** by the transport when the driver sets `DRIVER_OK`, on a
//!    vCPU thread: the device is handed its [`Activation`] and must not block.
//! 3. **running**: [`VirtioDevice::queue_event`] on a doorbell and
//!    [`VirtioDevice::source_event`] when one of its own file descriptors is
//!    ready, on the thread of its event loop. An error from either means that
//!    the guest broke the protocol: the worker marks `DEVICE_NEEDS_RESET`.
//! 4. **reset** by the driver, on a vCPU thread: all queues are dropped,
//!    nothing touches guest memory afterwards; the device can be activated anew.
//!
//! [`VirtioDevice::save`] and [`VirtioDevice::restore`] are called only while
//! no vCPU runs and no event is being handled.

pub mod balloon;
pub mod block;
pub mod console;
pub mod fs;
pub mod mmio;
pub mod net;
pub mod pci;
pub mod queue;
pub mod rng;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transport;
pub mod vsock;
pub mod worker;

use crate::bus::lock;
use crate::irq::IrqLine;
use crate::pci::msix::Msix;
use crate::state::{Saved, StateError};
use queue::{QueueError, Vq};
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::EventFd;

/// Guest memory as devices see it.
pub type Ram = vm_memory::GuestMemoryMmap<()>;

/// A device as its transport and its worker share it.
pub type SharedVirtio = Arc<Mutex<dyn VirtioDevice>>;

/// `VIRTIO_F_VERSION_1`: every device here is a modern one.
pub const VIRTIO_F_VERSION_1: u64 = 1 << 32;
/// `VIRTIO_RING_F_INDIRECT_DESC`.
pub const VIRTIO_RING_F_INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_RING_F_EVENT_IDX`.
pub const VIRTIO_RING_F_EVENT_IDX: u64 = 1 << 29;
/// What every device offers beside its own features.
pub const COMMON_FEATURES: u64 =
    VIRTIO_F_VERSION_1 | VIRTIO_RING_F_INDIRECT_DESC | VIRTIO_RING_F_EVENT_IDX;

/// Device IDs (virtio 1.2, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceId {
    /// Network card, 5.1.
    Net = 1,
    /// Block device, 5.2.
    Block = 2,
    /// Console device, 5.3.
    Console = 3,
    /// Entropy device, 5.4.
    Rng = 4,
    /// Balloon, 5.5.
    Balloon = 5,
    /// Socket device, 5.10.
    Vsock = 19,
    /// File system, 5.11.
    Fs = 26,
}

impl DeviceId {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Block => "block",
            Self::Console => "console",
            Self::Rng => "rng",
            Self::Balloon => "balloon",
            Self::Vsock => "vsock",
            Self::Fs => "fs",
        }
    }
}

/// Interrupt cause: a queue has used buffers (`InterruptStatus` bit 0).
pub const INT_VRING: u32 = 1;
/// Interrupt cause: the configuration or the device status changed (bit 1).
pub const INT_CONFIG: u32 = 2;

/// How a device interrupts its driver, whatever the transport: by one line and
/// a status word, or by messages (MSI-X) once the driver has enabled them.
///
/// The status word is split in two so that the driver's acknowledgement may
/// arrive late (coalesced MMIO) without swallowing a newer interrupt: causes
/// are `pending` until the driver has read them, and only what it has read can
/// be acknowledged.
#[derive(Debug)]
pub struct Interrupt {
    signal: Signal,
    /// Who raises it in our place.
    caller: Mutex<Option<Delegate>>,
    /// Someone else raises the line, so that `INT_VRING` may be the cause of it.
    bypassed: AtomicBool,
    traffic: [Traffic; COUNTED_QUEUES],
    pending: AtomicU32,
    reported: AtomicU32,
    needs_reset: AtomicBool,
}

/// As many queues are counted one by one; the last one stands for all others.
const COUNTED_QUEUES: usize = 64;

/// What has happened to a queue since the machine started.
#[derive(Debug, Default)]
pub struct Traffic {
    /// How often the device was called for it.
    pub doorbells: AtomicU64,
    /// How often its driver was interrupted.
    pub interrupts: AtomicU64,
}

/// Who raises the interrupts of queues in the place of an [`Interrupt`].
pub trait Caller: Send + Sync + std::fmt::Debug {
    /// From now on, the interrupt of a queue is a write to `line`; `None`: it
    /// goes through [`Interrupt::queue`].
    fn call(&self, queue: usize, line: Option<&EventFd>);
}

#[derive(Debug)]
struct Delegate {
    caller: Arc<dyn Caller>,
    /// The vector that it was told, for each queue.
    told: Vec<Option<u16>>,
}

/// Where an interrupt goes.
#[derive(Debug)]
enum Signal {
    Line(IrqLine),
    Messages(Arc<Msix>),
}

impl Interrupt {
    /// An interrupt that raises `line`.
    pub fn new(line: IrqLine) -> Self {
        Self::with(Signal::Line(line))
    }

    /// An interrupt that sends messages.
    pub fn messages(msix: Arc<Msix>) -> Self {
        Self::with(Signal::Messages(msix))
    }

    fn with(signal: Signal) -> Self {
        Self {
            signal,
            caller: Mutex::default(),
            bypassed: false.into(),
            traffic: std::array::from_fn(|_| Traffic::default()),
            pending: AtomicU32::new(0),
            reported: AtomicU32::new(0),
            needs_reset: false.into(),
        }
    }

    /// The line, if it is one.
    pub fn line(&self) -> Option<&IrqLine> {
        match &self.signal {
            Signal::Line(line) => Some(line),
            Signal::Messages(_) => None,
        }
    }

    /// The counters of queue `index`.
    pub fn traffic(&self, index: usize) -> &Traffic {
        &self.traffic[index.min(COUNTED_QUEUES - 1)]
    }

    /// Used buffers are in queue `index`.
    pub fn queue(&self, index: usize) {
        self.traffic(index).interrupts.fetch_add(1, Ordering::Relaxed);
        match &self.signal {
            Signal::Line(_) => self.raise(INT_VRING),
            Signal::Messages(msix) => msix.queue(index),
        }
    }

    /// Lets `caller` raise the interrupts of the first `queues` queues, until the
    /// next reset: straight where that is possible.
    pub fn delegate(&self, caller: Arc<dyn Caller>, queues: usize) {
        let mut place = lock(&self.caller);
        let mut told = vec![None; queues];
        match &self.signal {
            Signal::Line(line) => {
                self.bypassed.store(true, Ordering::SeqCst);
                (0..queues).for_each(|queue| caller.call(queue, Some(line.eventfd())));
            }
            Signal::Messages(msix) => {
                for (queue, told) in told.iter_mut().enumerate() {
                    let to = msix.direct(queue);
                    caller.call(queue, to.map(|(_, line)| line.eventfd()));
                    *told = to.map(|(vector, _)| vector);
                }
            }
        }
        *place = Some(Delegate { caller, told });
    }

    /// Raises all interrupts itself again.
    pub fn delegate_no_more(&self) {
        *lock(&self.caller) = None;
    }

    /// Vectors may have changed, or been masked or let go: tells the caller.
    pub fn redirect(&self) {
        let Signal::Messages(msix) = &self.signal else { return };
        let mut caller = lock(&self.caller);
        let Some(Delegate { caller, told }) = caller.as_mut() else { return };
        for (queue, told) in told.iter_mut().enumerate() {
            let to = msix.direct(queue);
            let vector = to.map(|(vector, _)| vector);
            if vector != *told {
                caller.call(queue, to.map(|(_, line)| line.eventfd()));
                *told = vector;
            }
        }
    }

    /// The configuration space changed.
    pub fn config(&self) {
        self.raise(INT_CONFIG);
    }

    /// The driver broke the protocol; `DEVICE_NEEDS_RESET` shows in its status
    /// until it resets the device.
    pub fn mark_needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.raise(INT_CONFIG);
    }

    /// Whether the device waits to be reset.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    fn raise(&self, cause: u32) {
        self.pending.fetch_or(cause, Ordering::SeqCst);
        match &self.signal {
            Signal::Line(line) => line.raise(),
            Signal::Messages(msix) if cause & INT_CONFIG != 0 => msix.config(),
            Signal::Messages(msix) => msix.all_queues(),
        }
    }

    /// `InterruptStatus`: the causes not yet acknowledged.
    pub fn status(&self) -> u32 {
        let new = self.pending.swap(0, Ordering::SeqCst);
        self.reported.fetch_or(new, Ordering::SeqCst) | new | self.unseen()
    }

    /// What may have been a cause without our knowing.
    fn unseen(&self) -> u32 {
        if self.bypassed.load(Ordering::SeqCst) { INT_VRING } else { 0 }
    }

    /// `InterruptACK`: the driver has handled these causes.
    pub fn acknowledge(&self, causes: u32) {
        self.reported.fetch_and(!causes, Ordering::SeqCst);
    }

    /// Back to the state after power-on.
    pub fn reset(&self) {
        self.pending.store(0, Ordering::SeqCst);
        self.reported.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
        self.bypassed.store(false, Ordering::SeqCst);
        self.delegate_no_more();
        if let Signal::Messages(msix) = &self.signal {
            msix.forget_vectors();
        }
    }

    /// Causes and `needs_reset`, for the transport's saved state.
    pub fn save(&self) -> (u32, bool) {
        let causes = self.pending.load(Ordering::SeqCst) | self.reported.load(Ordering::SeqCst);
        (causes | self.unseen(), self.needs_reset())
    }

    /// Takes over a saved state and raises the line if a cause is pending, so
    /// that no interrupt is lost between save and restore.
    pub fn restore(&self, (causes, needs_reset): (u32, bool)) {
        self.pending.store(0, Ordering::SeqCst);
        self.reported.store(0, Ordering::SeqCst);
        self.needs_reset.store(needs_reset, Ordering::SeqCst);
        if causes != 0 {
            self.raise(causes);
        }
    }
}

/// What a device is handed when its driver is ready.
pub struct Activation {
    /// Guest memory.
    pub mem: Ram,
    /// The queues that the driver has enabled, by index; `None` where it left
    /// one disabled.
    pub queues: Vec<Option<Vq>>,
    /// The negotiated features.
    pub features: u64,
    /// The way to interrupt the driver.
    pub interrupt: Arc<Interrupt>,
}

/// Why a device could not do what the driver asked.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver's ring makes no sense.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// A queue that the device can't work without is disabled.
    #[error("queue {0} is not enabled")]
    MissingQueue(usize),
    /// A request is malformed beyond what a status byte can answer.
    #[error("malformed request: {0}")]
    Request(&'static str),
    /// The host refused something that the device can't work without.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the host said.
        source: std::io::Error,
    },
}

/// A virtio device, without its transport. See the module for the lifecycle.
pub trait VirtioDevice: Send {
    /// Which device it is.
    fn id(&self) -> DeviceId;
    /// The largest size of each queue, a power of two each.
    fn queue_max_sizes(&self) -> &[u16];
    /// Every feature that it offers.
    fn features(&self) -> u64;
    /// Reads the configuration space; bytes past its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes the configuration space; most devices have nothing writable.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// The driver is ready. On error the transport sets `DEVICE_NEEDS_RESET`.
    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError>;
    /// The driver resets the device: back to the state after power-on.
    /// Must be fine to call at any time, activated or not.
    fn reset(&mut self);
    /// The queues, while activated, for the transport's saved state.
    fn queues(&self) -> Option<&[Option<Vq>]>;
    /// Whether the device is to be called for doorbells of this queue. Fixed for
    /// its lifetime.
    fn watches(&self, _queue: usize) -> bool {
        true
    }
    /// A doorbell rang. Called for doorbells of inactive devices, too.
    fn queue_event(&mut self, queue: usize) -> Result<(), DeviceError>;
    /// The device's own readable file descriptors, fixed for its lifetime,
    /// watched edge-triggered. The position in the list is what
    /// [`VirtioDevice::source_event`] is told.
    fn sources(&self) -> Vec<RawFd> {
        Vec::new()
    }
    /// A source became readable. Called for inactive devices, too: a device
    /// has to look again when it is activated.
    fn source_event(&mut self, _source: usize) -> Result<(), DeviceError> {
        Ok(())
    }
    /// Ends what is under way, as the state is about to be saved. Called when
    /// [`VirtioDevice::save`] is.
    fn settle(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }
    /// The device has been reset and leaves the machine: what its driver wrote is
    /// made durable, and what it is on is given back to others.
    fn leave(&mut self) -> io::Result<()> {
        Ok(())
    }
    /// Makes what is behind the device `len` bytes long, or as long as it has
    /// become by itself, and tells the driver. Returns the length.
    fn resize(&mut self, _len: Option<u64>) -> io::Result<u64> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "only a disk has a size"))
    }
    /// What the device has done since the machine started, by name, in the
    /// order in which it is shown. Names are lower case with `_`, and say their
    /// unit where it is not a number of things: `reads`, `bytes_read`.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
    /// The same of one queue.
    fn queue_counters(&self, _queue: usize) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
    /// The device's own state, without its queues (the transport saves those).
    fn save(&self) -> Result<Saved, StateError>;
    /// Takes over a saved state; the transport activates it again afterwards
    /// if it was activated.
    fn restore(&mut self, saved: &Saved) -> Result<(), StateError>;
}
