//! The card as its transport sees it, and its saved state.

use super::{
    Activation, Active, Choice, Net, NetCounters, Source, features, receive_queue, transmit_queue,
};
use crate::state::{Saved, StateError};
use crate::virtio::queue::{Chain, Vq};
use crate::virtio::{COMMON_FEATURES, DeviceError, DeviceId, VirtioDevice};
use serde::{Deserialize, Serialize};
use std::os::fd::RawFd;

const KIND: &str = "virtio-net";
const VERSION: u32 = 2;

#[derive(Serialize, Deserialize)]
struct State {
    mac: [u8; 6],
    mtu: Option<u16>,
    link_up: bool,
    /// What was offered to the driver.
    features: u64,
    /// Pairs of queues that there are.
    pairs: usize,
    /// What an active driver has chosen.
    choice: Option<Choice>,
}

impl VirtioDevice for Net {
    fn id(&self) -> DeviceId {
        DeviceId::Net
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        use features::*;
        let when = |on: bool, feature: u64| if on { feature } else { 0 };
        let backend = self.pairs.first().map_or(0, |pair| pair.backend.features());
        let all = COMMON_FEATURES
            | MAC
            | STATUS
            | MRG_RXBUF
            | CTRL_VQ
            | CTRL_MAC_ADDR
            | when(self.options.mtu.is_some(), MTU)
            | when(self.pairs.len() > 1, MQ)
            | when(backend & GUEST_OFFLOADS != 0, CTRL_GUEST_OFFLOADS)
            | backend;
        self.kernel.as_ref().map_or(all, |kernel| kernel.mask(all))
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        for (i, byte) in data.iter_mut().enumerate() {
            let at = usize::try_from(offset).ok().and_then(|o| o.checked_add(i));
            *byte = at.and_then(|at| config.get(at)).copied().unwrap_or(0);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let Activation { mem, queues, features, interrupt } = activation;
        for queue in [receive_queue(0), transmit_queue(0)] {
            if !matches!(queues.get(queue), Some(Some(_))) {
                return Err(DeviceError::MissingQueue(queue));
            }
        }
        // Without MQ there is one pair, and the control queue is behind it (5.1.2).
        let pairs = if features & features::MQ != 0 { self.pairs.len() } else { 1 };
        let control = (features & features::CTRL_VQ != 0).then_some(2 * pairs);
        let offloads = features & features::GUEST_OFFLOADS;
        let fresh = Choice { pairs: 1, offloads };
        let resumed = self.resume.take().unwrap_or(fresh);
        let choice = Choice { offloads: resumed.offloads & offloads, ..resumed };
        for pair in &mut self.pairs {
            pair.start(features & features::MRG_RXBUF != 0);
        }
        // Frames may have come before the driver, and their edge is gone; after
        // a restoration the doorbells are, too.
        queues.iter().flatten().for_each(Vq::call_again);
        let (chain, news) = (Chain::new(), true);
        let active = Active { mem, queues, interrupt, features, choice, control, chain, news };
        if !active.has_pairs(choice.pairs) || choice.pairs > pairs {
            return Err(DeviceError::MissingQueue(2 * choice.pairs - 1));
        }
        self.active = Some(active);
        // A restored driver may have seen it otherwise.
        (0..self.pairs.len()).for_each(|pair| self.follow_link(pair));
        if let Some(kernel) = &self.kernel {
            kernel.call_for_start();
        }
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(kernel) = &mut self.kernel {
            kernel.stop();
        }
        self.active = None;
        self.resume = None;
        self.mac = self.options.mac;
    }

    fn queues(&self) -> Option<&[Option<Vq>]> {
        self.active.as_ref().map(|a| a.queues.as_slice())
    }

    fn watches(&self, queue: usize) -> bool {
        // Where the kernel is called, we are not, but for the control queue: it
        // is behind the last pair, or behind the first.
        let control = queue == 2 || queue == 2 * self.pairs.len();
        self.kernel.is_none() || control
    }

    fn queue_event(&mut self, queue: usize) -> Result<(), DeviceError> {
        if self.active.as_ref().is_some_and(|active| active.control == Some(queue)) {
            return self.control(queue);
        }
        match queue % 2 {
            _ if self.kernel.is_some() => Ok(()),
            0 => self.receive(queue / 2),
            _ => self.transmit(queue / 2),
        }
    }

    fn sources(&self) -> Vec<RawFd> {
        self.sources.iter().map(|(fd, _)| *fd).collect()
    }

    fn source_event(&mut self, source: usize) -> Result<(), DeviceError> {
        match self.sources.get(source).map(|(_, source)| *source) {
            Some(Source::Pair(pair)) => self.receive(pair),
            Some(Source::Link(pair)) => {
                self.follow_link(pair);
                Ok(())
            }
            Some(Source::ReceiveLimit) => self.again(Self::receive),
            Some(Source::TransmitLimit) => self.again(Self::transmit),
            Some(Source::Kernel(event)) => self.kernel_event(event),
            None => Ok(()),
        }
    }

    fn settle(&mut self) -> Result<(), DeviceError> {
        self.take_over()
    }

    /// Sums over all pairs.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        if self.kernel.is_some() {
            return Vec::new();
        }
        let mut all = NetCounters::default().all();
        for pair in &self.pairs {
            for (sum, (_, value)) in all.iter_mut().zip(pair.counters.all()) {
                sum.1 += value;
            }
        }
        let backends = self.pairs.iter().flat_map(|pair| pair.backend.counters());
        all.into_iter().chain(backends).collect()
    }

    fn queue_counters(&self, queue: usize) -> Vec<(&'static str, u64)> {
        let Some(pair) = self.pairs.get(queue / 2).filter(|_| self.kernel.is_none()) else {
            return Vec::new();
        };
        let all = pair.counters.all();
        let (receive, transmit) = all.split_at(NetCounters::RECEIVE);
        let half = if queue.is_multiple_of(2) { receive } else { transmit };
        // Which half it is, the number of the queue says.
        half.iter().map(|(name, value)| (name.split_at(3).1, *value)).collect()
    }

    /// A frame that waits for buffers is not part of the state: it is dropped,
    /// as networks do.
    fn save(&self) -> Result<Saved, StateError> {
        let state = State {
            mac: self.mac,
            mtu: self.options.mtu,
            link_up: self.link_up,
            features: self.features(),
            pairs: self.pairs.len(),
            choice: self.active.as_ref().map(|active| active.choice),
        };
        Saved::new(KIND, VERSION, &state)
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        let state: State = saved.open(KIND, VERSION)?;
        let refuse = |reason| Err(StateError::Invalid { kind: KIND, reason });
        if state.pairs != self.pairs.len() {
            let (had, has) = (state.pairs, self.pairs.len());
            return refuse(format!("saved with {had} pairs of queues, the card here has {has}"));
        }
        if state.choice.is_some_and(|c| !(1..=state.pairs).contains(&c.pairs)) {
            return refuse("more pairs of queues in use than there are".to_owned());
        }
        let had = std::mem::replace(&mut self.options.mtu, state.mtu);
        let (features, has) = (state.features, self.features());
        if features & !has != 0 {
            self.options.mtu = had;
            let missing = features & !has;
            return refuse(format!("its driver may use {missing:#x}, this card has {has:#x}"));
        }
        self.mac = state.mac;
        self.link_up = state.link_up;
        self.resume = state.choice;
        Ok(())
    }
}
