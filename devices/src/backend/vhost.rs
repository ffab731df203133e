//! The host kernel's data path for a network card: `/dev/vhost-net` (Linux
//! `linux/vhost.h`). One of these serves one pair of queues: it takes doorbells,
//! moves frames between the guest's memory and a TAP, and interrupts, all
//! without us.
//!
//! Its own ioctls and nothing else: what we need of them are twelve.

use crate::virtio::queue::Vq;
use crate::virtio::{
    Ram, VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, net,
};
use libc::c_ulong;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

/// Where it is.
pub const VHOST_NET_DEVICE: &str = "/dev/vhost-net";

const VHOST_GET_FEATURES: c_ulong = 0x8008_af00;
const VHOST_SET_FEATURES: c_ulong = 0x4008_af00;
const VHOST_SET_OWNER: c_ulong = 0xaf01;
const VHOST_SET_MEM_TABLE: c_ulong = 0x4008_af03;
const VHOST_SET_VRING_NUM: c_ulong = 0x4008_af10;
const VHOST_SET_VRING_ADDR: c_ulong = 0x4028_af11;
const VHOST_SET_VRING_BASE: c_ulong = 0x4008_af12;
const VHOST_GET_VRING_BASE: c_ulong = 0xc008_af12;
const VHOST_SET_VRING_KICK: c_ulong = 0x4008_af20;
const VHOST_SET_VRING_CALL: c_ulong = 0x4008_af21;
const VHOST_SET_VRING_ERR: c_ulong = 0x4008_af22;
const VHOST_NET_SET_BACKEND: c_ulong = 0x4008_af30;

/// `VHOST_NET_F_VIRTIO_NET_HDR`: the kernel makes up headers. A TAP has them.
const OWN_HEADERS: u64 = 1 << 27;
/// Features that are the data path's to have; it does not ask for the others.
const ITS_OWN: u64 = VIRTIO_F_VERSION_1
    | VIRTIO_RING_F_INDIRECT_DESC
    | VIRTIO_RING_F_EVENT_IDX
    | net::features::MRG_RXBUF;
/// The most regions of guest memory.
const MAX_REGIONS: usize = 8;

/// `struct vhost_vring_state` and `struct vhost_vring_file`.
#[repr(C)]
struct Word {
    index: u32,
    value: u32,
}

/// `struct vhost_vring_addr`.
#[repr(C)]
struct Rings {
    index: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

/// `struct vhost_memory` with its regions behind it.
#[repr(C)]
struct Memory {
    count: u32,
    padding: u32,
    regions: [Region; MAX_REGIONS],
}

/// `struct vhost_memory_region`.
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Region {
    guest: u64,
    size: u64,
    host: u64,
    flags: u64,
}

/// The kernel's data path for a pair of queues: 0 receives, 1 transmits.
#[derive(Debug)]
pub struct VhostNet {
    file: File,
    features: u64,
}

impl VhostNet {
    /// One that does nothing yet.
    pub fn open() -> io::Result<Self> {
        let mut options = File::options();
        options.read(true).write(true).custom_flags(libc::O_CLOEXEC);
        let new = Self { file: options.open(VHOST_NET_DEVICE)?, features: 0 };
        // SAFETY: it takes no argument.
        check(unsafe { libc::ioctl(new.file.as_raw_fd(), VHOST_SET_OWNER) })?;
        let mut features = 0u64;
        // SAFETY: it writes one u64.
        check(unsafe { libc::ioctl(new.file.as_raw_fd(), VHOST_GET_FEATURES, &mut features) })?;
        if features & VIRTIO_F_VERSION_1 == 0 {
            return Err(io::Error::other("it knows no modern devices"));
        }
        Ok(Self { features, ..new })
    }

    /// What is left of a card's features.
    pub fn mask(&self, features: u64) -> u64 {
        features & (self.features | !ITS_OWN)
    }

    /// Begins to serve the queues, with doorbells from theirs and frames from
    /// and to `tap`. Interrupts go nowhere until [`VhostNet::set_call`], and
    /// `broken` is written to when the rings make no sense.
    pub fn start(
        &self,
        mem: &Ram,
        features: u64,
        queues: [&Vq; 2],
        tap: RawFd,
        broken: &EventFd,
    ) -> io::Result<()> {
        let features = features & self.features & ITS_OWN & !OWN_HEADERS;
        // SAFETY: it reads one u64.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), VHOST_SET_FEATURES, &features) })?;
        self.set_memory(mem)?;
        for (index, queue) in (0..).zip(queues) {
            self.set_queue(mem, index, queue)?;
            self.word(VHOST_SET_VRING_ERR, index, broken.as_raw_fd() as u32)?;
        }
        for index in 0..2 {
            self.word(VHOST_NET_SET_BACKEND, index, tap as u32)?;
        }
        Ok(())
    }

    fn set_memory(&self, mem: &Ram) -> io::Result<()> {
        let mut table = Memory { count: 0, padding: 0, regions: [Region::default(); MAX_REGIONS] };
        for region in mem.iter() {
            let slot = table.regions.get_mut(table.count as usize);
            *slot.ok_or(io::ErrorKind::InvalidInput)? = Region {
                guest: region.start_addr().0,
                size: region.len(),
                host: region.as_ptr() as u64,
                flags: 0,
            };
            table.count += 1;
        }
        // SAFETY: the table has as many regions as it says; they are guest
        // memory, which stays mapped for the process's life.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), VHOST_SET_MEM_TABLE, &table) })
    }

    fn set_queue(&self, mem: &Ram, index: u32, queue: &Vq) -> io::Result<()> {
        let state = queue.save();
        self.word(VHOST_SET_VRING_NUM, index, queue.size().into())?;
        self.word(VHOST_SET_VRING_BASE, index, state.next_avail.into())?;
        let size = usize::from(queue.size());
        let host = |addr: u64, len: usize| {
            // In one piece of guest memory, as the kernel needs it.
            let slice = mem.get_slice(GuestAddress(addr), len).map_err(io::Error::other)?;
            Ok::<u64, io::Error>(slice.ptr_guard_mut().as_ptr() as u64)
        };
        let rings = Rings {
            index,
            flags: 0,
            descriptors: host(queue.desc_table(), 16 * size)?,
            used: host(queue.used_ring(), 6 + 8 * size)?,
            available: host(queue.avail_ring(), 6 + 2 * size)?,
            log: 0,
        };
        // SAFETY: it reads one structure; the rings are in guest memory, which
        // stays mapped for the process's life.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), VHOST_SET_VRING_ADDR, &rings) })?;
        let doorbell = queue.doorbell().ok_or(io::ErrorKind::NotConnected)?;
        self.word(VHOST_SET_VRING_KICK, index, doorbell.as_raw_fd() as u32)
    }

    /// Where a queue's interrupts go.
    pub fn set_call(&self, index: u32, to: &EventFd) -> io::Result<()> {
        self.word(VHOST_SET_VRING_CALL, index, to.as_raw_fd() as u32)
    }

    /// Ends to serve the queues. When this returns, guest memory is no longer
    /// touched.
    pub fn stop(&self) {
        for index in 0..2 {
            if let Err(e) = self.word(VHOST_NET_SET_BACKEND, index, u32::MAX) {
                log::error!("net: {VHOST_NET_DEVICE}: stopping: {e}");
            }
        }
    }

    /// How far a queue that is stopped has come in the available ring.
    pub fn position(&self, index: u32) -> io::Result<u16> {
        let mut state = Word { index, value: 0 };
        // SAFETY: it reads and writes one structure.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), VHOST_GET_VRING_BASE, &mut state) })?;
        Ok(state.value as u16)
    }

    /// An ioctl that takes an index and a number or a descriptor.
    fn word(&self, request: c_ulong, index: u32, value: u32) -> io::Result<()> {
        let word = Word { index, value };
        // SAFETY: all of these requests read one such structure.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), request, &word) })
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
