//! A device behind the PCI transport, with a driver's view of it.

use super::{Ram, Rings, SharedVirtio, ram};
use crate::pci::msix::{self, Routes};
use crate::pci::root::Function;
use crate::virtio::VIRTIO_F_VERSION_1;
use crate::virtio::pci::*;
use crate::virtio::transport::*;
use crate::virtio::worker::Worker;
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::EventFd;

/// Where the BAR is at first.
pub const BASE: u32 = 0xd010_0000;

type Log<T> = Arc<Mutex<Vec<T>>>;

/// A machine that writes down what it is told.
#[derive(Debug, Default, Clone)]
pub struct Host {
    /// Vectors, addresses and data.
    pub routes: Log<(usize, u64, u32)>,
    /// Where doorbells were moved from and to.
    pub moves: Log<(Option<u64>, u64)>,
    /// The doorbells themselves.
    pub doorbells: Log<Arc<EventFd>>,
}

impl Routes for Host {
    fn set(&self, vector: usize, address: u64, data: u32) {
        self.routes.lock().expect("no test panicked").push((vector, address, data));
    }
}

impl Doorbells for Host {
    fn moved(&self, doorbells: &[Arc<EventFd>], step: u64, from: Option<u64>, to: u64) {
        assert_eq!(step, 4);
        *self.doorbells.lock().expect("no test panicked") = doorbells.to_vec();
        self.moves.lock().expect("no test panicked").push((from, to));
    }

    fn removed(&self, doorbells: &[Arc<EventFd>], step: u64, from: u64) {
        assert_eq!((step, doorbells.len()), (4, self.doorbells.lock().expect("no panic").len()));
        self.moves.lock().expect("no test panicked").push((Some(from), 0));
    }
}

/// A function with a driver's view of it.
pub struct PciBench {
    /// Guest memory.
    pub mem: Ram,
    /// The function.
    pub function: VirtioPci,
    /// What an event loop would run.
    pub worker: Worker,
    /// The driver's half of queue 0.
    pub rings: Rings,
    /// The machine around it.
    pub host: Host,
}

impl PciBench {
    /// A device after power-on.
    pub fn new(device: SharedVirtio) -> Self {
        let (mem, host) = (ram(), Host::default());
        let function = VirtioPci::new(
            mem.clone(),
            device,
            BASE,
            Box::new(host.clone()),
            Box::new(host.clone()),
        );
        let function = function.expect("eventfds for a test");
        let worker = function.worker();
        Self { mem, function, worker, rings: Rings::new(0x1000, 16), host }
    }

    /// Reads from the BAR.
    pub fn read(&mut self, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.function.read_bar(offset, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    /// Writes to the BAR.
    pub fn write(&mut self, offset: u64, value: u64, len: usize) {
        self.function.write_bar(offset, &value.to_le_bytes()[..len]);
    }

    /// Reads a configuration register.
    pub fn config(&mut self, offset: usize, len: usize) -> u32 {
        let mut data = [0; 4];
        self.function.read_config(offset, &mut data[..len]);
        u32::from_le_bytes(data)
    }

    /// Where a capability is: its ID and, for virtio's own, its type.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn capability(&mut self, id: u8, kind: u8) -> usize {
        let mut at = self.config(0x34, 1) as usize;
        while at != 0 {
            let (this, next) = (self.config(at, 1) as u8, self.config(at + 1, 1) as usize);
            if this == id && (id != VENDOR_CAPABILITY || self.config(at + 3, 1) as u8 == kind) {
                return at;
            }
            at = next;
        }
        panic!("no capability {id:#x} {kind}");
    }

    /// The whole ritual, with vector 1 for the queue.
    pub fn start(&mut self) {
        let rings = self.rings.clone();
        self.start_queues(0, &[rings]);
    }

    /// The whole ritual with any features and queues, each with the vector
    /// behind its own number.
    pub fn start_queues(&mut self, features: u64, queues: &[Rings]) {
        self.function.write_config(4, &[6, 0]);
        let msix = self.capability(msix::CAPABILITY, 0);
        self.function.write_config(msix + 2, &0x8000u16.to_le_bytes());
        for (i, _) in (1..).zip(queues) {
            self.write(TABLE + 16 * i, 0xfee0_0000, 8);
            self.write(TABLE + 16 * i + 8, 0x40 + i, 8);
        }
        for status in [0, STATUS_ACKNOWLEDGE, STATUS_ACKNOWLEDGE | STATUS_DRIVER] {
            self.write(0x14, status.into(), 1);
        }
        let features = features | VIRTIO_F_VERSION_1;
        for select in 0..2 {
            self.write(0x08, select, 4);
            self.write(0x0c, features >> (32 * select) & 0xffff_ffff, 4);
        }
        let ready = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;
        self.write(0x14, ready.into(), 1);
        for (i, rings) in (0..).zip(queues) {
            self.write(0x16, i, 2);
            self.write(0x18, rings.size.into(), 2);
            self.write(0x1a, i + 1, 2);
            self.write(0x20, rings.desc, 8);
            self.write(0x28, rings.avail & 0xffff_ffff, 4);
            self.write(0x2c, rings.avail >> 32, 4);
            self.write(0x30, rings.used, 8);
            self.write(0x1c, 1, 2);
        }
        self.write(0x14, (ready | STATUS_DRIVER_OK).into(), 1);
    }

    /// Sends one chain and waits for it: its used length, if it came back.
    pub fn request(&mut self, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> Option<u32> {
        let mem = self.mem.clone();
        let head = self.rings.chain(&mem, readable, writable);
        self.rings.offer(&mem, head);
        self.write(NOTIFY, 0, 4);
        self.worker.queue_event(0);
        match self.rings.collect(&mem).as_slice() {
            [(id, len)] if *id == u32::from(head) => Some(*len),
            _ => None,
        }
    }

    /// How often each vector fired since the last look.
    pub fn fired(&self) -> Vec<u64> {
        self.function.msix().lines().map(|line| line.eventfd().read().unwrap_or(0)).collect()
    }
}
