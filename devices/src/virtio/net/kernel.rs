//! The card's data path in the host's kernel (vhost-net).
//!
//! ```text
//!  doorbell ─► ioeventfd ─► vhost ─┬─► TAP
//!  driver ◄─── irqfd ◄─────────────┘        (straight, or by way of us while
//!                                            the vector is masked)
//! ```
//!
//! It starts on the event loop, because that may take a while, and stops at
//! once when the driver resets the card.

use super::{Active, Net, Pair, receive_queue};
use crate::backend::vhost::VhostNet;
use crate::virtio::{Caller, DeviceError};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// What wakes us.
#[derive(Debug, Clone, Copy)]
pub(super) enum Event {
    /// The driver is ready.
    Start,
    /// The kernel found that a ring makes no sense.
    Broken,
    /// A queue whose interrupt goes by way of us has one.
    Call(usize),
}

/// The data paths of all pairs.
pub(super) struct Kernel {
    calls: Arc<Calls>,
    start: EventFd,
    broken: EventFd,
    running: bool,
}

/// Where interrupts go; told by whoever masks them, on any thread.
#[derive(Debug)]
struct Calls {
    vhosts: Vec<VhostNet>,
    /// By way of us, one for each queue.
    relays: Vec<EventFd>,
}

impl Caller for Calls {
    fn call(&self, queue: usize, line: Option<&EventFd>) {
        let Some((vhost, relay)) = self.vhosts.get(queue / 2).zip(self.relays.get(queue)) else {
            return;
        };
        if let Err(e) = vhost.set_call((queue % 2) as u32, line.unwrap_or(relay)) {
            log::error!("net: vhost: interrupts of queue {queue}: {e}");
        }
    }
}

impl Kernel {
    pub fn new(vhosts: Vec<VhostNet>) -> io::Result<Self> {
        let eventfd = || EventFd::new(EFD_NONBLOCK);
        let relays = (0..2 * vhosts.len()).map(|_| eventfd()).collect::<io::Result<_>>()?;
        let calls = Arc::new(Calls { vhosts, relays });
        Ok(Self { calls, start: eventfd()?, broken: eventfd()?, running: false })
    }

    /// What is to be watched.
    pub fn sources(&self) -> impl Iterator<Item = (RawFd, Event)> {
        let relays = self.calls.relays.iter().enumerate();
        [(&self.start, Event::Start), (&self.broken, Event::Broken)]
            .into_iter()
            .chain(relays.map(|(queue, relay)| (relay, Event::Call(queue))))
            .map(|(fd, event)| (fd.as_raw_fd(), event))
    }

    /// What is left of the card's features.
    pub fn mask(&self, features: u64) -> u64 {
        self.calls.vhosts.iter().fold(features, |features, vhost| vhost.mask(features))
    }

    /// Has [`Event::Start`] come.
    pub fn call_for_start(&self) {
        // It can fail only when it is full, and then it comes.
        let _ = self.start.write(1);
    }

    /// Stops; whether it ran.
    pub fn stop(&mut self) -> bool {
        let ran = std::mem::replace(&mut self.running, false);
        if ran {
            self.calls.vhosts.iter().for_each(VhostNet::stop);
        }
        // What it has found in this life is forgotten.
        let _ = self.broken.read();
        ran
    }

    /// Starts each pair whose queues the driver has set up.
    fn start(&mut self, active: &Active, pairs: &[Pair]) -> io::Result<()> {
        // From here on there is something to stop.
        self.running = true;
        for (index, (pair, vhost)) in pairs.iter().zip(&self.calls.vhosts).enumerate() {
            let first = receive_queue(index);
            let Some([Some(receive), Some(transmit)]) = active.queues.get(first..first + 2) else {
                continue;
            };
            if active.control.is_some_and(|control| control < first + 2) {
                break;
            }
            let tap = pair.backend.source().ok_or(io::ErrorKind::Unsupported)?;
            let queues = [receive, transmit];
            vhost.start(&active.mem, active.features, queues, tap, &self.broken)?;
        }
        active.interrupt.delegate(self.calls.clone(), self.calls.relays.len());
        Ok(())
    }
}

impl Net {
    pub(super) fn kernel_event(&mut self, event: Event) -> Result<(), DeviceError> {
        let (Some(kernel), Some(active)) = (&mut self.kernel, &mut self.active) else {
            return Ok(());
        };
        match event {
            Event::Start if kernel.running => {}
            Event::Start => {
                active.tell(&mut self.pairs)?;
                if let Err(source) = kernel.start(active, &self.pairs) {
                    kernel.stop();
                    return Err(DeviceError::Host { what: "net: vhost", source });
                }
                // An interrupt may have got lost on the way from another life.
                (0..2 * self.pairs.len()).for_each(|queue| active.interrupt.queue(queue));
            }
            Event::Broken if kernel.broken.read().is_ok() => {
                kernel.stop();
                return Err(DeviceError::Request("the kernel can't read the rings of the card"));
            }
            Event::Broken => {}
            Event::Call(queue) => active.interrupt.queue(queue),
        }
        Ok(())
    }

    /// Stops the kernel and takes over where it was, until it starts again.
    pub(super) fn take_over(&mut self) -> Result<(), DeviceError> {
        let (Some(kernel), Some(active)) = (&mut self.kernel, &mut self.active) else {
            return Ok(());
        };
        if !kernel.stop() {
            return Ok(());
        }
        active.interrupt.delegate_no_more();
        let error = |source| DeviceError::Host { what: "net: vhost: position", source };
        let queues = active.queues.iter_mut().take(2 * self.pairs.len());
        for (index, queue) in queues.enumerate() {
            let (Some(queue), Some(vhost)) = (queue, kernel.calls.vhosts.get(index / 2)) else {
                continue;
            };
            if active.control != Some(index) {
                let position = vhost.position((index % 2) as u32).map_err(error)?;
                queue.move_to(&active.mem, position)?;
            }
        }
        kernel.call_for_start();
        Ok(())
    }
}
