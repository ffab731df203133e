//! The event loop's own subscribers: the end of the machine, and signals to the
//! monitor.

use crate::console::signals;
use crate::ending::Ending;
use crate::exit::Exit;
use devices::backend::port::terminal_size;
use devices::bus::lock;
use devices::virtio::console::Console;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

/// Wakes the loop when the machine has ended.
pub struct EndWatch(pub Ending);

impl MutEventSubscriber for EndWatch {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        // The loop looks at `Ending` itself after every round.
    }

    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, self.0.event());
    }
}

/// Ends the machine on a signal to the monitor.
pub struct SignalWatch {
    /// The signalfd where signals are read.
    pub signals: File,
    /// How the machine ends.
    pub ending: Ending,
}

impl MutEventSubscriber for SignalWatch {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        if let Some(number) = signals::read(&self.signals) {
            self.ending.end(Exit::Signal(number));
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, &self.signals);
    }
}

/// Tells the guest's console when the terminal has another size.
pub struct ResizeWatch {
    /// Where the signal is read ([`signals::resize_fd`]).
    pub signals: File,
    /// The console.
    pub console: Arc<Mutex<Console>>,
}

impl MutEventSubscriber for ResizeWatch {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        while signals::read(&self.signals).is_some() {}
        if let Some(size) = terminal_size(libc::STDIN_FILENO)
            && let Err(error) = lock(&self.console).set_size(size)
        {
            // Its driver broke the protocol; the device finds that out itself.
            log::info!("console: {error}");
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, &self.signals);
    }
}

/// Watches `fd` for input.
fn watch(ops: &mut EventOps, fd: &impl AsRawFd) {
    if let Err(e) = ops.add(Events::new(fd, EventSet::IN)) {
        log::error!("event loop: {e:?}");
    }
}
