//! The event loop's own subscribers: the end of the machine, and signals to the
//! monitor.

use crate::console::signals;
use crate::ending::Ending;
use crate::exit::Exit;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use std::fs::File;
use std::os::fd::AsRawFd;

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

/// Watches `fd` for input.
fn watch(ops: &mut EventOps, fd: &impl AsRawFd) {
    if let Err(e) = ops.add(Events::new(fd, EventSet::IN)) {
        log::error!("event loop: {e:?}");
    }
}
