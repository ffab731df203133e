//! The console device (virtio 1.2, 5.3): a terminal, and named ports beside it.
//!
//! ```text
//!  receiveq(n)  ◄─ Port ◄─ readv ◄─ PortBackend (terminal, socket, file)
//!  transmitq(n) ─► Port ─► writev ─►     │
//!  control      ◄─ what is due ◄─────────┘ somebody came or left
//!               ─► the driver's: ready, open, closed
//! ```
//!
//! Port 0 is the terminal, `hvc0` in Linux. Only with further ports there are
//! control queues (`F_MULTIPORT`). Nobody waits: bytes for a host that does not
//! read stay in the guest's buffers, bytes for a guest that does not read stay
//! in the host's.

mod control;
mod port;
#[cfg(test)]
mod tests;

use super::queue::{Chain, IoVecStore, IoVecs, QueueError, Vq};
use super::{Activation, COMMON_FEATURES, DeviceError, DeviceId, Interrupt, Ram, VirtioDevice};
use crate::state::{Saved, StateError};
use control::{HEADER, Message, event};
use port::{Port, Tools, due};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

/// `VIRTIO_CONSOLE_F_SIZE`.
pub const F_SIZE: u64 = 1 << 0;
/// `VIRTIO_CONSOLE_F_MULTIPORT`.
pub const F_MULTIPORT: u64 = 1 << 1;

/// The most named ports.
pub const MAX_PORTS: usize = 16;
const QUEUE_SIZES: [u16; 2 * (MAX_PORTS + 2)] = [128; 2 * (MAX_PORTS + 2)];
const CONTROL_RX: usize = 2;
const CONTROL_TX: usize = 3;

const KIND: &str = "virtio-console";
const VERSION: u32 = 1;

/// The host's side of a port. Nothing here waits: where it would, the error is
/// `WouldBlock`, and the source becomes readable when it is worth another try.
pub trait PortBackend: Send {
    /// Reads into the front of `to`; 0: whoever was there has left.
    fn read(&mut self, to: &mut IoVecs<'_>) -> io::Result<usize>;
    /// Writes the front of `from`, which is not advanced.
    fn write(&mut self, from: &IoVecs<'_>) -> io::Result<usize>;
    /// Looks what is new; whether somebody is there.
    fn poll(&mut self) -> bool;
    /// Forgets whoever was there.
    fn leave(&mut self) {}
    /// A descriptor that becomes readable when there are news.
    fn source(&self) -> Option<RawFd>;
    /// Columns and rows, of a terminal that has them.
    fn size(&self) -> Option<(u16, u16)> {
        None
    }
}

/// What all ports have moved.
#[derive(Debug, Default)]
struct Counters {
    bytes_to_host: u64,
    bytes_to_guest: u64,
    /// Written where nobody was there to read it.
    bytes_dropped: u64,
    control_to_guest: u64,
    control_from_guest: u64,
    /// Control messages that made no sense.
    control_unknown: u64,
}

/// The console device.
pub struct Console {
    /// By number; there may be no port 0.
    ports: Vec<Option<Port>>,
    /// Columns and rows.
    size: (u16, u16),
    counters: Counters,
    active: Option<Active>,
}

struct Active {
    mem: Ram,
    queues: Vec<Option<Vq>>,
    multiport: bool,
    interrupt: Arc<Interrupt>,
    chain: Chain,
    iovecs: IoVecStore,
}

#[derive(Serialize, Deserialize)]
struct State {
    size: (u16, u16),
    ports: Vec<Option<PortState>>,
}

#[derive(Serialize, Deserialize)]
struct PortState {
    name: String,
    ready: bool,
    guest_open: bool,
    due: u8,
    connected: bool,
    sent: u64,
}

/// The queues of a port, to the guest and from it.
fn queues_of(port: usize) -> (usize, usize) {
    match port {
        0 => (0, 1),
        n => (2 * n + 2, 2 * n + 3),
    }
}

/// The port of a queue that is not for control.
fn port_of(queue: usize) -> usize {
    (queue / 2).saturating_sub(1)
}

/// Takes the next chain. If there is none, asks for a doorbell and looks once
/// more, because one may have come in between.
fn pop(mem: &Ram, queue: &mut Vq, chain: &mut Chain) -> Result<bool, QueueError> {
    if queue.pop(mem, chain)? {
        return Ok(true);
    }
    if !queue.enable_notifications(mem)? {
        return Ok(false);
    }
    queue.suppress_notifications(mem)?;
    queue.pop(mem, chain)
}

impl Console {
    /// A console with a terminal, if there is one, and the first [`MAX_PORTS`]
    /// of some named ports.
    pub fn new(
        terminal: Option<Box<dyn PortBackend>>,
        named: Vec<(String, Box<dyn PortBackend>)>,
    ) -> Self {
        let size = terminal.as_ref().and_then(|t| t.size()).unwrap_or_default();
        let mut ports = vec![terminal.map(|backend| Port::new(String::new(), backend))];
        let named = named.into_iter().take(MAX_PORTS);
        ports.extend(named.map(|(name, backend)| Some(Port::new(name, backend))));
        Self { ports, size, counters: Counters::default(), active: None }
    }

    /// The terminal has so many columns and rows now.
    pub fn set_size(&mut self, size: (u16, u16)) -> Result<(), DeviceError> {
        if size == self.size {
            return Ok(());
        }
        self.size = size;
        match &self.active {
            None => Ok(()),
            Some(active) if !active.multiport => {
                active.interrupt.config();
                Ok(())
            }
            Some(_) => {
                if let Some(Some(port)) = self.ports.first_mut()
                    && port.ready
                {
                    port.due |= due::RESIZE;
                }
                self.control()
            }
        }
    }

    fn multiport(&self) -> bool {
        self.ports.len() > 1
    }

    /// `struct virtio_console_config`.
    fn config(&self) -> [u8; 12] {
        let mut config = [0; 12];
        config[..2].copy_from_slice(&self.size.0.to_le_bytes());
        config[2..4].copy_from_slice(&self.size.1.to_le_bytes());
        config[4..8].copy_from_slice(&(self.ports.len() as u32).to_le_bytes());
        config
    }

    /// Moves bytes of a port, in the directions that are asked for.
    fn serve(&mut self, number: usize, to_guest: bool, to_host: bool) -> Result<(), DeviceError> {
        let Self { ports, counters, active, .. } = self;
        let Some(active) = active else { return Ok(()) };
        let Some(Some(port)) = ports.get_mut(number) else { return Ok(()) };
        let Active { mem, queues, chain, iovecs, .. } = active;
        let mut tools = Tools { mem, chain, iovecs, counters };
        let (rx, tx) = queues_of(number);
        if to_host && let Some(Some(queue)) = queues.get_mut(tx) {
            port.transmit(queue, &mut tools)?;
        }
        if to_guest && let Some(Some(queue)) = queues.get_mut(rx) {
            port.receive(queue, &mut tools)?;
        }
        Ok(())
    }

    /// The driver's control messages.
    fn commands(&mut self) -> Result<(), DeviceError> {
        let mut news = Vec::new();
        let Some(active) = &mut self.active else { return Ok(()) };
        let (mem, chain) = (&active.mem, &mut active.chain);
        let Some(Some(queue)) = active.queues.get_mut(CONTROL_TX) else { return Ok(()) };
        queue.suppress_notifications(mem)?;
        for _ in 0..queue.size() {
            if !queue.pop(mem, chain)? {
                break;
            }
            let mut bytes = [0; HEADER];
            match chain.readable_len() >= HEADER as u64 {
                true => {
                    chain.read_at(mem, 0, &mut bytes)?;
                    news.push(Message::parse(bytes));
                }
                false => self.counters.control_unknown += 1,
            }
            queue.push_used(mem, chain.head, 0)?;
        }
        if queue.enable_notifications(mem)? {
            queue.call_again();
        }
        news.into_iter().try_for_each(|message| self.command(message))
    }

    fn command(&mut self, message: Message) -> Result<(), DeviceError> {
        self.counters.control_from_guest += 1;
        let number = message.id as usize;
        let yes = message.value != 0;
        if message.event == event::DEVICE_READY {
            let ports = self.ports.iter_mut().flatten().filter(|_| yes);
            ports.for_each(|port| port.due |= due::ADD);
            return Ok(());
        }
        let Some(Some(port)) = self.ports.get_mut(number) else {
            self.counters.control_unknown += 1;
            return Ok(());
        };
        match message.event {
            event::PORT_READY if yes => {
                port.ready = true;
                port.due |= if number == 0 { due::CONSOLE | due::RESIZE } else { due::NAME };
                port.due |= if port.connected { due::OPEN } else { 0 };
            }
            // The driver could not make it.
            event::PORT_READY => port.reset(),
            event::PORT_OPEN => {
                port.guest_open = yes;
                return self.serve(number, yes, false);
            }
            _ => self.counters.control_unknown += 1,
        }
        Ok(())
    }

    /// Sends what is due, as far as there are buffers for it.
    fn control(&mut self) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let (mem, chain) = (&active.mem, &mut active.chain);
        if active.multiport
            && let Some(Some(queue)) = active.queues.get_mut(CONTROL_RX)
        {
            queue.suppress_notifications(mem)?;
            for (number, port) in self.ports.iter_mut().enumerate() {
                let Some(port) = port else { continue };
                if !send_due(number as u32, port, self.size, queue, mem, chain, &mut self.counters)?
                {
                    break;
                }
            }
        }
        for (index, queue) in active.queues.iter_mut().enumerate() {
            if let Some(queue) = queue
                && queue.needs_interrupt(mem)?
            {
                active.interrupt.queue(index);
            }
        }
        Ok(())
    }
}

/// Sends what is due of a port. `false`: there are no buffers left.
fn send_due(
    number: u32,
    port: &mut Port,
    size: (u16, u16),
    queue: &mut Vq,
    mem: &Ram,
    chain: &mut Chain,
    counters: &mut Counters,
) -> Result<bool, DeviceError> {
    while port.due != 0 {
        let bit = 1 << port.due.trailing_zeros();
        // Nobody is told of a port that it does not know.
        if bit != due::ADD && !port.ready {
            port.due &= !bit;
            continue;
        }
        let bytes = message(number, bit, port, size);
        if !pop(mem, queue, chain)? {
            return Ok(false);
        }
        if chain.writable_len() < bytes.len() as u64 {
            queue.push_used(mem, chain.head, 0)?;
            continue;
        }
        chain.write_at(mem, 0, &bytes)?;
        queue.push_used(mem, chain.head, bytes.len() as u32)?;
        counters.control_to_guest += 1;
        port.due &= !bit;
    }
    Ok(true)
}

fn message(id: u32, bit: u8, port: &Port, (cols, rows): (u16, u16)) -> Vec<u8> {
    let plain = |event, value| Message { id, event, value }.bytes(&[]);
    match bit {
        due::ADD => plain(event::PORT_ADD, 1),
        due::CONSOLE => plain(event::CONSOLE_PORT, 1),
        due::NAME => Message { id, event: event::PORT_NAME, value: 1 }.bytes(port.name.as_bytes()),
        due::CLOSE => plain(event::PORT_OPEN, 0),
        due::OPEN => plain(event::PORT_OPEN, 1),
        // Columns first, as the specification has it; Linux before 2025 reads it
        // the other way around.
        _ => {
            let size = [cols.to_le_bytes(), rows.to_le_bytes()].concat();
            Message { id, event: event::RESIZE, value: 0 }.bytes(&size)
        }
    }
}

impl VirtioDevice for Console {
    fn id(&self) -> DeviceId {
        DeviceId::Console
    }

    fn queue_max_sizes(&self) -> &[u16] {
        let count = if self.multiport() { 2 * (self.ports.len() + 1) } else { 2 };
        QUEUE_SIZES.get(..count).unwrap_or(&QUEUE_SIZES)
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES | F_SIZE | if self.multiport() { F_MULTIPORT } else { 0 }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        let from = usize::try_from(offset).ok().and_then(|o| config.get(o..));
        data.fill(0);
        for (to, from) in data.iter_mut().zip(from.unwrap_or_default()) {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let Activation { mem, queues, features, interrupt } = activation;
        let multiport = features & F_MULTIPORT != 0;
        let needed = if multiport { [CONTROL_RX, CONTROL_TX] } else { [0, 1] };
        for queue in needed {
            if !matches!(queues.get(queue), Some(Some(_))) {
                return Err(DeviceError::MissingQueue(queue));
            }
        }
        // A driver without control messages has no way to say that it listens.
        if let Some(Some(port)) = self.ports.first_mut()
            && !multiport
        {
            (port.ready, port.guest_open) = (true, true);
        }
        // Bytes may have come before the driver, and their edge is gone; after a
        // restoration the doorbells are, too.
        queues.iter().flatten().for_each(Vq::call_again);
        let (chain, iovecs) = Default::default();
        self.active = Some(Active { mem, queues, multiport, interrupt, chain, iovecs });
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.ports.iter_mut().flatten().for_each(Port::reset);
    }

    fn queues(&self) -> Option<&[Option<Vq>]> {
        self.active.as_ref().map(|a| a.queues.as_slice())
    }

    fn queue_event(&mut self, queue: usize) -> Result<(), DeviceError> {
        match queue {
            CONTROL_RX => {}
            CONTROL_TX => self.commands()?,
            _ => self.serve(port_of(queue), queue.is_multiple_of(2), !queue.is_multiple_of(2))?,
        }
        self.control()
    }

    fn sources(&self) -> Vec<RawFd> {
        self.ports.iter().flatten().filter_map(|port| port.backend.source()).collect()
    }

    fn source_event(&mut self, source: usize) -> Result<(), DeviceError> {
        let ports = self.ports.iter_mut().enumerate();
        let mut with_source = ports.filter_map(|(i, port)| {
            let port = port.as_mut()?;
            port.backend.source()?;
            Some((i, port))
        });
        let Some((number, port)) = with_source.nth(source) else { return Ok(()) };
        port.look();
        let size = port.backend.size().filter(|_| number == 0);
        self.serve(number, true, true)?;
        if let Some(size) = size {
            self.set_size(size)?;
        }
        self.control()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let connected = self.ports.iter().flatten().filter(|port| port.connected).count();
        vec![
            ("ports", self.ports.iter().flatten().count() as u64),
            ("ports_connected", connected as u64),
            ("bytes_to_host", self.counters.bytes_to_host),
            ("bytes_to_guest", self.counters.bytes_to_guest),
            ("bytes_dropped", self.counters.bytes_dropped),
            ("control_to_guest", self.counters.control_to_guest),
            ("control_from_guest", self.counters.control_from_guest),
            ("control_unknown", self.counters.control_unknown),
        ]
    }

    fn save(&self) -> Result<Saved, StateError> {
        let ports = self.ports.iter().map(|port| {
            port.as_ref().map(|port| PortState {
                name: port.name.clone(),
                ready: port.ready,
                guest_open: port.guest_open,
                due: port.due,
                connected: port.connected,
                sent: port.sent,
            })
        });
        Saved::new(KIND, VERSION, &State { size: self.size, ports: ports.collect() })
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        let state: State = saved.open(KIND, VERSION)?;
        let names = |port: &Option<Port>| port.as_ref().map(|port| port.name.clone());
        let mine: Vec<_> = self.ports.iter().map(names).collect();
        let theirs: Vec<_> =
            state.ports.iter().map(|port| port.as_ref().map(|port| port.name.clone())).collect();
        if mine != theirs {
            let reason = format!("saved with the ports {theirs:?}, not {mine:?}");
            return Err(StateError::Invalid { kind: KIND, reason });
        }
        self.size = state.size;
        for (port, state) in self.ports.iter_mut().flatten().zip(state.ports.into_iter().flatten())
        {
            (port.ready, port.guest_open) = (state.ready, state.guest_open);
            (port.due, port.sent) = (state.due, state.sent);
            // The driver hears who is there on this host.
            if port.connected != state.connected {
                port.due |= if port.connected { due::OPEN } else { due::CLOSE };
            }
        }
        Ok(())
    }
}
