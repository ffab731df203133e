//! A channel's jobs on the event loop.

use super::SharedChannel;
use crate::bus::lock;
use crate::virtio::Ram;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use std::os::fd::AsRawFd;

/// Serves one channel on the event loop that it is added to.
pub struct Worker {
    channel: SharedChannel,
    mem: Ram,
}

impl Worker {
    /// A worker for `channel`, whose bus master uses `mem`.
    pub fn new(channel: SharedChannel, mem: Ram) -> Self {
        Self { channel, mem }
    }

    /// The channel.
    pub fn channel(&self) -> SharedChannel {
        self.channel.clone()
    }

    /// Does what there is to do; whether there was anything.
    pub fn run(&self) -> bool {
        let mut channel = lock(&self.channel);
        let Some((job, generation)) = channel.take_job() else { return false };
        let table = channel.table();
        let Some(unit) = channel.drive(job.drive) else { return false };
        let durable = !unit.state.write_cache;
        let mut buffer = std::mem::take(&mut unit.state.buffer);
        let media = unit.media.clone();
        // Taken before the channel is let go: whoever cancels the job from here
        // on waits for its end. Nobody who has it takes the channel's.
        let mut media = lock(&media);
        drop(channel);
        let result = media.run(&self.mem, job.work, &mut buffer, table, durable);
        drop(media);
        lock(&self.channel).finish((job, generation), buffer, result);
        true
    }
}

impl MutEventSubscriber for Worker {
    fn init(&mut self, ops: &mut EventOps) {
        let fd = lock(&self.channel).kick().as_raw_fd();
        let set = EventSet::IN | EventSet::EDGE_TRIGGERED;
        if let Err(e) = ops.add(Events::with_data_raw(fd, 0, set)) {
            log::error!("ide: can't watch fd {fd}: {e}");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.run();
    }
}
