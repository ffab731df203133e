//! A device on an event loop: doorbells and sources in, calls of the device out.
//!
//! Everything is watched edge-triggered. An eventfd gives an edge for each write
//! whether or not it was read before, so a doorbell costs no `read`; and nothing
//! that stays ready, hung up or in error can make the loop spin.

#[cfg(test)]
#[path = "worker_test.rs"]
mod tests;

use super::{Interrupt, SharedVirtio};
use crate::bus::lock;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vmm_sys_util::eventfd::EventFd;

/// A guest that breaks its device, resets it and breaks it again could fill a
/// log; after this many times nobody learns anything new.
const MAX_LOGGED: u32 = 8;

/// Serves one device on the event loop that it is added to.
pub struct Worker {
    device: SharedVirtio,
    interrupt: Arc<Interrupt>,
    doorbells: Vec<Arc<EventFd>>,
    sources: Vec<RawFd>,
    logged: u32,
}

impl Worker {
    /// A worker for `device`, which is woken by `doorbells`, one per queue.
    pub fn new(
        device: SharedVirtio,
        interrupt: Arc<Interrupt>,
        doorbells: Vec<Arc<EventFd>>,
    ) -> Self {
        let sources = lock(&device).sources();
        Self { device, interrupt, doorbells, sources, logged: 0 }
    }

    /// The device and what it interrupts its driver with, for whoever reports
    /// their counters, and how many queues there are.
    pub fn counted(&self) -> (SharedVirtio, Arc<Interrupt>, usize) {
        (self.device.clone(), self.interrupt.clone(), self.doorbells.len())
    }

    /// What a doorbell does.
    pub fn queue_event(&mut self, queue: usize) {
        self.interrupt.traffic(queue).doorbells.fetch_add(1, Ordering::Relaxed);
        self.call(|device| device.queue_event(queue));
    }

    /// What a source does.
    pub fn source_event(&mut self, source: usize) {
        self.call(|device| device.source_event(source));
    }

    fn call(
        &mut self,
        f: impl FnOnce(&mut dyn super::VirtioDevice) -> Result<(), super::DeviceError>,
    ) {
        let mut device = lock(&self.device);
        // A broken device stands still until its driver resets it.
        if self.interrupt.needs_reset() {
            return;
        }
        let Err(e) = f(&mut *device) else { return };
        // Still under the device's lock: a reset comes wholly before or after.
        self.interrupt.mark_needs_reset();
        let id = device.id();
        drop(device);
        if self.logged < MAX_LOGGED {
            self.logged += 1;
            log::warn!("virtio {id:?}: needs a reset: {e}");
        }
    }

    fn watch(&self, ops: &mut EventOps, fd: RawFd, tag: usize) {
        let set = EventSet::IN | EventSet::EDGE_TRIGGERED;
        if let Err(e) = ops.add(Events::with_data_raw(fd, tag as u32, set)) {
            log::error!("virtio {:?}: can't watch fd {fd}: {e}", lock(&self.device).id());
        }
    }
}

impl MutEventSubscriber for Worker {
    fn init(&mut self, ops: &mut EventOps) {
        for (i, doorbell) in self.doorbells.iter().enumerate() {
            if !lock(&self.device).watches(i) {
                continue;
            }
            self.watch(ops, doorbell.as_raw_fd(), i);
        }
        for (i, source) in self.sources.iter().enumerate() {
            self.watch(ops, *source, self.doorbells.len() + i);
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        // Errors and hang-ups are passed on as well: the device finds out what
        // is the matter when it reads.
        let tag = events.data() as usize;
        match tag.checked_sub(self.doorbells.len()) {
            None => self.queue_event(tag),
            Some(source) if source < self.sources.len() => self.source_event(source),
            Some(_) => log::error!("virtio: event of unknown fd {}", events.fd()),
        }
    }
}
