//! The entropy device (virtio 1.2, 5.4): random bytes of the host's kernel, as
//! many in a second as its limiter allows, if it has one.

#[cfg(test)]
#[path = "rng_test.rs"]
mod tests;

use super::queue::{Chain, IoVecStore, QueueError, Vq};
use super::{Activation, COMMON_FEATURES, DeviceError, DeviceId, Interrupt, Ram, VirtioDevice};
use crate::rate::Limiter;
use crate::state::{Saved, StateError};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

const KIND: &str = "virtio-rng";
const QUEUE_SIZE: u16 = 256;

/// The most bytes per event. The rest waits until other devices had their turn,
/// and a single request gets no more: it may be answered in part (5.4.6.2).
const MAX_BYTES_PER_EVENT: u64 = 64 << 10;

/// The entropy device.
#[derive(Default)]
pub struct Rng {
    limiter: Option<Limiter>,
    counters: Counters,
    active: Option<Active>,
}

#[derive(Default)]
struct Counters {
    requests: u64,
    bytes: u64,
    throttled: u64,
}

struct Active {
    mem: Ram,
    /// In a `Vec` because that is what [`VirtioDevice::queues`] shows.
    queues: Vec<Option<Vq>>,
    interrupt: Arc<Interrupt>,
    chain: Chain,
    iovecs: IoVecStore,
}

impl Rng {
    /// An entropy device.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that gives no more than `limiter` allows.
    pub fn limited(limiter: Limiter) -> Self {
        Self { limiter: Some(limiter), ..Self::default() }
    }

    fn serve(&mut self) -> Result<(), DeviceError> {
        let Self { limiter, counters, active } = self;
        active.as_mut().map_or(Ok(()), |active| active.serve(limiter.as_mut(), counters))
    }
}

impl VirtioDevice for Rng {
    fn id(&self) -> DeviceId {
        DeviceId::Rng
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let Activation { mem, queues, interrupt, .. } = activation;
        if !matches!(queues.first(), Some(Some(_))) {
            return Err(DeviceError::MissingQueue(0));
        }
        let (chain, iovecs) = Default::default();
        self.active = Some(Active { mem, queues, interrupt, chain, iovecs });
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn queues(&self) -> Option<&[Option<Vq>]> {
        self.active.as_ref().map(|a| a.queues.as_slice())
    }

    fn queue_event(&mut self, _queue: usize) -> Result<(), DeviceError> {
        self.serve()
    }

    fn sources(&self) -> Vec<RawFd> {
        self.limiter.iter().map(Limiter::source).collect()
    }

    /// There may be something to give again.
    fn source_event(&mut self, _source: usize) -> Result<(), DeviceError> {
        self.serve()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let Counters { requests, bytes, throttled } = self.counters;
        vec![("requests", requests), ("bytes", bytes), ("throttled", throttled)]
    }

    fn save(&self) -> Result<Saved, StateError> {
        Saved::new(KIND, 1, &())
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        saved.open(KIND, 1)
    }
}

impl Active {
    fn serve(
        &mut self,
        mut limiter: Option<&mut Limiter>,
        counters: &mut Counters,
    ) -> Result<(), DeviceError> {
        let Some(Some(queue)) = self.queues.first_mut() else { return Ok(()) };
        let mem = &self.mem;
        let mut left = MAX_BYTES_PER_EVENT;
        let mut throttled = false;
        queue.suppress_notifications(mem)?;
        for _ in 0..queue.size() {
            throttled = limiter.as_mut().is_some_and(|limiter| !limiter.ready());
            if throttled || left == 0 || !queue.pop(mem, &mut self.chain)? {
                break;
            }
            let len = self.chain.writable_len().min(left);
            fill(mem, &self.chain, &mut self.iovecs, len)?;
            left -= len;
            if let Some(limiter) = &mut limiter {
                limiter.take(len);
            }
            counters.requests += 1;
            counters.bytes += len;
            queue.push_used(mem, self.chain.head, len as u32)?;
        }
        counters.throttled += u64::from(throttled);
        // One that is throttled hears of its timer, and needs no doorbell.
        if !throttled && queue.enable_notifications(mem)? {
            queue.call_again();
        }
        if queue.needs_interrupt(mem)? {
            self.interrupt.queue(0);
        }
        Ok(())
    }
}

/// Puts `len` random bytes into the writable buffers.
fn fill(mem: &Ram, chain: &Chain, store: &mut IoVecStore, len: u64) -> Result<(), DeviceError> {
    let mut iovecs = chain.writable_iovecs(mem, store, 0, len)?;
    while let Some(v) = iovecs.as_slice().first() {
        // SAFETY: the entry points to `iov_len` bytes of guest memory that stay
        // mapped while `iovecs` lives, and only the kernel writes through it.
        let done = unsafe { libc::getrandom(v.iov_base, v.iov_len, 0) };
        match u64::try_from(done) {
            Ok(done) => iovecs.advance(done),
            Err(_) => {
                let source = io::Error::last_os_error();
                match source.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EFAULT) => {
                        let (addr, len) = (0, v.iov_len as u64);
                        return Err(QueueError::OutsideRam { what: "buffer", addr, len }.into());
                    }
                    _ => return Err(DeviceError::Host { what: "getrandom", source }),
                }
            }
        }
    }
    Ok(())
}
