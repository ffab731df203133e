//! One port of a console device: what the guest writes goes to its backend, and
//! what the backend has goes to the guest, without a copy of ours.

use super::{Counters, PortBackend};
use crate::virtio::queue::{Chain, IoVecStore, Vq};
use crate::virtio::{DeviceError, Ram};
use std::io::ErrorKind;

/// Bytes in one direction before other devices have their turn.
const SHARE: u64 = 256 << 10;
/// The most that is read at once.
const CHUNK: u64 = 64 << 10;

/// Control messages that are due, in the order in which they are sent. A port
/// has at most one of each: what is sent is how things are by then.
pub mod due {
    pub const ADD: u8 = 1 << 0;
    pub const CONSOLE: u8 = 1 << 1;
    pub const NAME: u8 = 1 << 2;
    pub const CLOSE: u8 = 1 << 3;
    pub const OPEN: u8 = 1 << 4;
    pub const RESIZE: u8 = 1 << 5;
}

/// A port.
pub struct Port {
    /// What the guest finds it by; the console's own needs none.
    pub name: String,
    pub backend: Box<dyn PortBackend>,
    /// Somebody is there on the host.
    pub connected: bool,
    /// The driver knows the port.
    pub ready: bool,
    /// A program of the guest has it open, so that it takes bytes.
    pub guest_open: bool,
    /// Control messages that are due.
    pub due: u8,
    /// Bytes of the chain at the front that the backend has taken already.
    pub sent: u64,
}

/// What a port works with.
pub struct Tools<'a> {
    pub mem: &'a Ram,
    pub chain: &'a mut Chain,
    pub iovecs: &'a mut IoVecStore,
    pub counters: &'a mut Counters,
}

impl Port {
    /// A port in front of `backend`.
    pub fn new(name: String, mut backend: Box<dyn PortBackend>) -> Self {
        let connected = backend.poll();
        Self { name, backend, connected, ready: false, guest_open: false, due: 0, sent: 0 }
    }

    /// The guest has forgotten it.
    pub fn reset(&mut self) {
        (self.ready, self.guest_open, self.due, self.sent) = (false, false, 0, 0);
    }

    /// Looks who is there on the host.
    pub fn look(&mut self) {
        let now = self.backend.poll();
        if now != self.connected {
            self.connected = now;
            self.due |= if now { due::OPEN } else { due::CLOSE };
        }
    }

    /// Whoever was there has left; maybe the next one waits.
    fn left(&mut self) {
        self.backend.leave();
        self.connected = false;
        self.due |= due::CLOSE;
        self.due &= !due::OPEN;
        self.look();
    }

    /// What the guest writes.
    pub fn transmit(&mut self, queue: &mut Vq, tools: &mut Tools<'_>) -> Result<(), DeviceError> {
        let mem = tools.mem;
        let mut share = SHARE;
        queue.suppress_notifications(mem)?;
        for _ in 0..queue.size() {
            if share == 0 || !queue.pop(mem, tools.chain)? {
                break;
            }
            let len = tools.chain.readable_len();
            let mut done = self.sent.min(len);
            let mut blocked = false;
            while done < len && share > 0 && !blocked {
                let n = self.write(done, (len - done).min(share), tools)?;
                blocked = n == 0;
                done += n;
                share -= n.min(share);
            }
            if done < len {
                self.sent = done;
                queue.undo_pop();
                if blocked {
                    // The backend's descriptor tells when there is room.
                    return Ok(());
                }
                break;
            }
            self.sent = 0;
            queue.push_used(mem, tools.chain.head, 0)?;
        }
        if queue.enable_notifications(mem)? {
            queue.call_again();
        }
        Ok(())
    }

    /// Writes a part of the chain; 0: there is no room now. Where nobody reads it
    /// is dropped.
    fn write(&mut self, at: u64, len: u64, tools: &mut Tools<'_>) -> Result<u64, DeviceError> {
        if self.connected {
            let from = tools.chain.readable_iovecs(tools.mem, tools.iovecs, at, len)?;
            match self.backend.write(&from) {
                Ok(n) => {
                    let n = (n as u64).min(len);
                    tools.counters.bytes_to_host += n;
                    return Ok(n);
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    return Ok(0);
                }
                Err(_) => self.left(),
            }
        }
        tools.counters.bytes_dropped += len;
        Ok(len)
    }

    /// What there is for the guest. `true`: there may be more.
    pub fn receive(&mut self, queue: &mut Vq, tools: &mut Tools<'_>) -> Result<(), DeviceError> {
        let mem = tools.mem;
        let mut share = SHARE;
        queue.suppress_notifications(mem)?;
        for _ in 0..queue.size() {
            if share == 0 {
                break;
            }
            if !self.guest_open || !self.connected || !super::pop(mem, queue, tools.chain)? {
                return Ok(());
            }
            let len = tools.chain.writable_len().min(CHUNK);
            if len == 0 {
                queue.push_used(mem, tools.chain.head, 0)?;
                continue;
            }
            let mut room = tools.chain.writable_iovecs(mem, tools.iovecs, 0, len)?;
            match self.backend.read(&mut room) {
                Ok(n @ 1..) => {
                    let n = (n as u64).min(len);
                    tools.counters.bytes_to_guest += n;
                    share -= n.min(share);
                    queue.push_used(mem, tools.chain.head, n as u32)?;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    queue.undo_pop();
                    return Ok(());
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => queue.undo_pop(),
                Ok(0) | Err(_) => {
                    queue.undo_pop();
                    self.left();
                }
            }
        }
        queue.call_again();
        Ok(())
    }
}
