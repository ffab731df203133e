//! A device behind the PCI transport, driven as a driver would.

use super::*;
use crate::virtio::VIRTIO_F_VERSION_1;
use crate::virtio::rng::Rng;
use crate::virtio::testing::{Rings, ram};
use crate::virtio::transport::*;
use proptest::prelude::*;
use std::sync::Mutex;
use vm_memory::{Bytes, GuestAddress};

const BASE: u32 = 0xd010_0000;

type Log<T> = Arc<Mutex<Vec<T>>>;

#[derive(Debug, Default, Clone)]
struct Host {
    routes: Log<(usize, u64, u32)>,
    moves: Log<(Option<u64>, u64)>,
}

impl Routes for Host {
    fn set(&self, vector: usize, address: u64, data: u32) {
        self.routes.lock().unwrap().push((vector, address, data));
    }
}

impl Doorbells for Host {
    fn moved(&self, doorbells: &[Arc<EventFd>], step: u64, from: Option<u64>, to: u64) {
        assert_eq!((doorbells.len(), step), (1, 4));
        self.moves.lock().unwrap().push((from, to));
    }
}

struct Bench {
    mem: Ram,
    function: VirtioPci,
    worker: Worker,
    rings: Rings,
    host: Host,
}

impl Bench {
    fn new() -> Self {
        let (mem, host) = (ram(), Host::default());
        let device = Arc::new(Mutex::new(Rng::new()));
        let function = VirtioPci::new(
            mem.clone(),
            device,
            BASE,
            Box::new(host.clone()),
            Box::new(host.clone()),
        );
        let function = function.unwrap();
        let worker = function.worker();
        Self { mem, function, worker, rings: Rings::new(0x1000, 16), host }
    }

    fn read(&mut self, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.function.read_bar(offset, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, value: u64, len: usize) {
        self.function.write_bar(offset, &value.to_le_bytes()[..len]);
    }

    fn config(&mut self, offset: usize, len: usize) -> u32 {
        let mut data = [0; 4];
        self.function.read_config(offset, &mut data[..len]);
        u32::from_le_bytes(data)
    }

    /// Where a capability is: its ID and, for virtio's own, its type.
    fn capability(&mut self, id: u8, kind: u8) -> usize {
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
    fn start(&mut self) {
        self.function.write_config(4, &[6, 0]);
        let msix = self.capability(msix::CAPABILITY, 0);
        self.function.write_config(msix + 2, &0x8000u16.to_le_bytes());
        self.write(TABLE + 16, 0xfee0_0000, 8);
        self.write(TABLE + 24, 0x41, 8);
        for status in [0, STATUS_ACKNOWLEDGE, STATUS_ACKNOWLEDGE | STATUS_DRIVER] {
            self.write(0x14, status.into(), 1);
        }
        let features = VIRTIO_F_VERSION_1;
        for select in 0..2 {
            self.write(0x08, select, 4);
            self.write(0x0c, features >> (32 * select), 4);
        }
        let ready = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;
        self.write(0x14, ready.into(), 1);
        assert_eq!(self.read(0x14, 1), u64::from(ready));
        let rings = self.rings.clone();
        self.write(0x16, 0, 2);
        self.write(0x18, rings.size.into(), 2);
        self.write(0x1a, 1, 2);
        assert_eq!(self.read(0x1a, 2), 1);
        self.write(0x20, rings.desc, 8);
        self.write(0x28, rings.avail & 0xffff_ffff, 4);
        self.write(0x2c, rings.avail >> 32, 4);
        self.write(0x30, rings.used, 8);
        self.write(0x1c, 1, 2);
        self.write(0x14, (ready | STATUS_DRIVER_OK).into(), 1);
    }

    /// Asks for 64 random bytes; whether they came.
    fn request(&mut self) -> bool {
        let mem = self.mem.clone();
        let head = self.rings.chain(&mem, &[], &[(0x8000, 64)]);
        self.rings.offer(&mem, head);
        self.write(NOTIFY, 0, 4);
        self.worker.queue_event(0);
        self.rings.collect(&mem) == [(head.into(), 64)]
    }

    fn fired(&self) -> Vec<u64> {
        self.function.msix().lines().map(|line| line.eventfd().read().unwrap_or(0)).collect()
    }
}

#[test]
fn it_introduces_itself() {
    let mut bench = Bench::new();
    assert_eq!(bench.config(0, 4), 0x1044_1af4);
    assert_eq!(bench.config(8, 1), 1, "a modern device");
    assert_eq!(bench.config(0x3d, 1), 0, "no pin");
    for (kind, offset) in
        [(CAP_COMMON, COMMON), (CAP_ISR, ISR), (CAP_DEVICE, DEVICE), (CAP_NOTIFY, NOTIFY)]
    {
        let at = bench.capability(VENDOR_CAPABILITY, kind);
        assert_eq!((bench.config(at + 4, 1), u64::from(bench.config(at + 8, 4))), (0, offset));
    }
    let msix = bench.capability(msix::CAPABILITY, 0);
    assert_eq!(bench.config(msix + 2, 2), 1, "two vectors");
    assert_eq!(bench.read(0x12, 2), 1, "one queue");
    assert_eq!(bench.read(0x1a, 2), 0xffff);
    bench.write(0x16, 1, 2);
    assert_eq!((bench.read(0x18, 2), bench.read(0x1c, 2)), (0, 0), "no second");
}

#[test]
fn a_request_is_answered_by_a_message() {
    let mut bench = Bench::new();
    bench.start();
    assert_eq!(*bench.host.routes.lock().unwrap(), [(1, 0xfee0_0000, 0x41)]);
    assert!(bench.request());
    assert_eq!(bench.fired(), [0, 1]);
    let mut random = [0u8; 64];
    bench.mem.read_slice(&mut random, GuestAddress(0x8000)).unwrap();
    assert_ne!(random, [0; 64]);
    bench.write(0x14, 0, 1);
    assert_eq!((bench.read(0x14, 1), bench.read(0x1a, 2)), (0, 0xffff), "a reset forgets");
}

#[test]
fn doorbells_move_with_the_bar() {
    let mut bench = Bench::new();
    let base = u64::from(BASE);
    bench.start();
    bench.function.write_config(4, &[0, 0]);
    bench.function.write_config(0x10, &[0xff; 4]);
    assert_eq!(bench.config(0x10, 4), !(BAR_SIZE - 1));
    bench.function.write_config(0x10, &(BASE + 0x1_0000).to_le_bytes());
    bench.function.write_config(4, &[2, 0]);
    let moves = bench.host.moves.lock().unwrap().clone();
    assert_eq!(moves, [(None, base + NOTIFY), (Some(base + NOTIFY), base + 0x1_0000 + NOTIFY)]);
    assert!(bench.request());
}

#[test]
fn registers_can_be_reached_through_the_configuration_space() {
    let mut bench = Bench::new();
    let at = bench.capability(VENDOR_CAPABILITY, CAP_PCI);
    let select = |bench: &mut Bench, offset: u32, length: u32| {
        bench.function.write_config(at + 8, &offset.to_le_bytes());
        bench.function.write_config(at + 12, &length.to_le_bytes());
    };
    select(&mut bench, 0x12, 2);
    assert_eq!(bench.config(at + 16, 4) & 0xffff, 1, "num_queues");
    select(&mut bench, 0x14, 1);
    bench.function.write_config(at + 16, &[1, 0, 0, 0]);
    assert_eq!(bench.read(0x14, 1), 1, "device_status");
    for (offset, length) in [(0x13, 2), (BAR_SIZE, 4), (0, 3), (0, 8), (u32::MAX, 1)] {
        select(&mut bench, offset, length);
        bench.function.write_config(at + 16, &[0xff; 4]);
        bench.config(at + 16, 4);
    }
}

#[test]
fn a_saved_function_goes_on_where_it_was() {
    let mut bench = Bench::new();
    bench.start();
    assert!(bench.request());
    let saved = serde_json::to_string(&bench.function.save().unwrap()).unwrap();
    let mut other = Bench::new();
    let mut ring = vec![0; 0x8000];
    bench.mem.read_slice(&mut ring, GuestAddress(0x1000)).unwrap();
    other.mem.write_slice(&ring, GuestAddress(0x1000)).unwrap();
    other.rings = bench.rings.clone();
    other.function.restore(&serde_json::from_str(&saved).unwrap()).unwrap();
    assert_eq!(other.read(0x1a, 2), 1);
    let fired = other.fired();
    assert!(other.request());
    assert_eq!(other.fired(), [0, 1], "after {fired:?}");
}

proptest! {
    #[test]
    fn no_driver_breaks_the_function(
        steps in prop::collection::vec((0u8..6, 0u64..u64::from(BAR_SIZE), any::<u64>(), 0usize..4), 0..120)
    ) {
        let mut bench = Bench::new();
        for (step, offset, value, width) in steps {
            let len = 1 << width;
            let small = offset % 0x40;
            match step {
                0 => bench.start(),
                1 => { bench.read(offset, len); }
                2 => bench.write(offset, value, len),
                3 => bench.write(small, value % 32, len),
                4 => bench.function.write_config(offset as usize % 256, &value.to_le_bytes()[..len.min(4)]),
                _ => bench.worker.queue_event(0),
            }
            let mut data = [0; 4];
            bench.function.read_config(offset as usize % 256, &mut data[..len.min(4)]);
            bench.function.bar();
        }
    }
}
