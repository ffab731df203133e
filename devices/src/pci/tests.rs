//! The bus, one behaviour at a time.

use super::config::{ConfigSpace, Identity};
use super::msix::{Msix, NO_VECTOR, Routes};
use super::root::{ConfigPorts, Function, Root, Window};
use crate::bus::BusDevice;
use proptest::prelude::*;
use std::sync::{Arc, Mutex};

const IDENTITY: Identity =
    Identity { vendor: 0x1234, device: 0x5678, class: 0x02_0000, revision: 3 };

fn space() -> ConfigSpace {
    let mut space = ConfigSpace::new(IDENTITY);
    space.set_bar0(0xd010_0000, 0x8000);
    space.add_capability(9, &[1, 2, 3, 4], &[0, 0xff]).unwrap();
    space.add_capability(0x11, &[7; 10], &[]).unwrap();
    space
}

fn word(space: &ConfigSpace, at: usize) -> u32 {
    let mut data = [0; 4];
    space.read(at, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn a_function_says_who_it_is_and_cannot_be_made_another() {
    let mut space = space();
    for _ in 0..2 {
        assert_eq!(word(&space, 0), 0x5678_1234);
        assert_eq!(word(&space, 8), 0x0200_0003);
        assert_eq!(word(&space, 0x2c), 0x5678_1234);
        assert_eq!(word(&space, 0x0c) >> 16 & 0xff, 0, "header type 0, one function");
        for at in [0, 8, 0x2c, 0x34] {
            space.write(at, &[0xff; 4]);
        }
    }
    assert_eq!(space.bar0(), None, "nothing is decoded at first");
    space.write(4, &[2, 0]);
    assert_eq!(space.bar0(), Some(0xd010_0000));
}

#[test]
fn a_bar_tells_its_size_and_can_be_moved() {
    let mut space = space();
    space.write(0x10, &[0xff; 4]);
    assert_eq!(word(&space, 0x10), 0xffff_8000);
    space.write(0x10, &0xd018_1234u32.to_le_bytes());
    space.write(4, &[2, 0]);
    assert_eq!(space.bar0(), Some(0xd018_0000));
    for at in (0x14..0x28).step_by(4) {
        space.write(at, &[0xff; 4]);
        assert_eq!(word(&space, at), 0, "no other BAR");
    }
}

#[test]
fn capabilities_are_a_list_with_an_end() {
    let mut space = space();
    let mut found = Vec::new();
    let mut at = word(&space, 0x34) as usize & 0xff;
    while at != 0 {
        found.push(word(&space, at) as u8);
        at = word(&space, at) as usize >> 8 & 0xff;
        assert!(found.len() < 8);
    }
    assert_eq!(found, [9, 0x11]);
    assert!(word(&space, 4) >> 16 & 0x10 != 0, "the status register says that there is one");
    space.write(0x40, &[0xff; 8]);
    assert_eq!(word(&space, 0x40), 0xff01_4809, "only what may be written is");
    assert_eq!(space.add_capability(9, &[0; 200], &[]), None, "no room");
}

/// A function that is nothing but its registers and a byte in its BAR.
struct Plain(ConfigSpace, u8);

impl Function for Plain {
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.0.read(offset, data);
    }
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.0.write(offset, data);
    }
    fn bar(&self) -> Option<(u64, u64)> {
        self.0.bar0().map(|base| (base, 0x8000))
    }
    fn read_bar(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(self.1.wrapping_add(offset as u8));
    }
    fn write_bar(&mut self, _offset: u64, data: &[u8]) {
        self.1 = data[0];
    }
}

fn bus() -> (ConfigPorts, Window) {
    let root = Root::new(vec![Arc::new(Mutex::new(Plain(space(), 0)))]);
    (ConfigPorts::new(root.clone()), Window::new(root, 0xd010_0000))
}

fn config(ports: &mut ConfigPorts, address: u32) -> u32 {
    ports.write(0, &address.to_le_bytes());
    let mut data = [0xff; 4];
    ports.read(4, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn mechanism_1_reaches_the_bridge_and_the_function_and_nothing_else() {
    let (mut ports, _) = bus();
    assert_eq!(config(&mut ports, 0x8000_0000), 0x0008_1b36);
    assert_eq!(config(&mut ports, 0x8000_0800), 0x5678_1234);
    for absent in [0x0000_0800, 0x8000_1000, 0x8000_0900, 0x8001_0800, 0x80ff_ff00] {
        assert_eq!(config(&mut ports, absent), u32::MAX, "{absent:#x}");
    }
    config(&mut ports, 0x8000_0808);
    let mut byte = [0xff];
    ports.read(4, &mut byte);
    assert_eq!(byte, [3], "the revision");
    ports.read(7, &mut byte);
    assert_eq!(byte, [2], "the class");
    // How Linux looks for mechanism 1: a byte at 0xcfb changes nothing.
    ports.write(3, &[1]);
    let mut address = [0; 4];
    ports.read(0, &mut address);
    assert_eq!(u32::from_le_bytes(address), 0x8000_0808);
}

#[test]
fn the_window_shows_what_is_decoded_where_it_is() {
    let (mut ports, mut window) = bus();
    let read = |window: &mut Window, offset| {
        let mut data = [0xff; 4];
        window.read(offset, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!(read(&mut window, 4), u32::MAX, "memory space is off");
    config(&mut ports, 0x8000_0804);
    ports.write(4, &[2, 0]);
    assert_eq!(read(&mut window, 4), 0x0404_0404);
    window.write(0, &[1; 4]);
    assert_eq!(read(&mut window, 0), 0x0101_0101);
    config(&mut ports, 0x8000_0810);
    ports.write(4, &0xd018_0000u32.to_le_bytes());
    assert_eq!(read(&mut window, 0), u32::MAX);
    assert_eq!(read(&mut window, 0x8_0000), 0x0101_0101);
    assert_eq!(read(&mut window, 0x8_7ffe), u32::MAX, "across its end");
}

#[derive(Debug, Default)]
struct Log(Arc<Mutex<Vec<(usize, u64, u32)>>>);

impl Routes for Log {
    fn set(&self, vector: usize, address: u64, data: u32) {
        self.0.lock().unwrap().push((vector, address, data));
    }
}

type Routed = Arc<Mutex<Vec<(usize, u64, u32)>>>;

fn msix() -> (Msix, Routed) {
    let log = Log::default();
    let routed = log.0.clone();
    (Msix::new(2, Box::new(log)).unwrap(), routed)
}

fn fired(msix: &Msix) -> Vec<u64> {
    msix.lines().map(|line| line.eventfd().read().unwrap_or(0)).collect()
}

fn entry(msix: &Msix, vector: u64, words: [u32; 4]) {
    for (i, word) in (0..).zip(words) {
        msix.write_table(vector * 16 + i * 4, &word.to_le_bytes());
    }
}

#[test]
fn a_message_is_sent_where_the_table_says() {
    let (msix, routed) = msix();
    msix.set_vector(Some(0), 1);
    msix.set_vector(None, 0);
    msix.set_control(0x8000);
    entry(&msix, 1, [0xfee0_0000, 0, 0x41, 0]);
    msix.queue(0);
    msix.queue(1);
    msix.queue(99);
    assert_eq!(fired(&msix), [0, 1, 0]);
    assert_eq!(*routed.lock().unwrap(), [(1, 0xfee0_0000, 0x41)]);
    let mut data = [0; 8];
    msix.read_table(16, &mut data);
    assert_eq!(data, 0xfee0_0000u64.to_le_bytes());
    msix.set_vector(Some(1), 3);
    assert_eq!(msix.vector(Some(1)), NO_VECTOR, "there is no fourth");
    msix.forget_vectors();
    msix.queue(0);
    assert_eq!(fired(&msix), [0, 0, 0]);
}

#[test]
fn what_comes_while_it_is_masked_is_sent_later() {
    let (msix, _) = msix();
    msix.set_vector(Some(0), 2);
    let pending = |msix: &Msix| {
        let mut data = [0; 8];
        msix.read_pending(0, &mut data);
        u64::from_le_bytes(data)
    };
    msix.queue(0);
    entry(&msix, 2, [0xfee0_0000, 0, 0x42, 0]);
    assert_eq!((fired(&msix), pending(&msix)), (vec![0, 0, 0], 4), "MSI-X is off");
    msix.set_control(0xc000);
    assert_eq!((fired(&msix), pending(&msix)), (vec![0, 0, 0], 4), "all are masked");
    msix.set_control(0x8000);
    assert_eq!((fired(&msix), pending(&msix)), (vec![0, 0, 1], 0));
    entry(&msix, 2, [0xfee0_0000, 0, 0x42, 1]);
    msix.queue(0);
    assert_eq!((fired(&msix), pending(&msix)), (vec![0, 0, 0], 4));
    let state = serde_json::to_string(&msix.save()).unwrap();

    let (other, routed) = self::msix();
    assert!(other.restore(&serde_json::from_str(&state).unwrap()));
    assert_eq!((fired(&other), pending(&other)), (vec![0, 0, 0], 4));
    entry(&other, 2, [0xfee0_0000, 0, 0x43, 0]);
    assert_eq!((fired(&other), pending(&other)), (vec![0, 0, 1], 0));
    assert_eq!(*routed.lock().unwrap(), [(2, 0xfee0_0000, 0x43)]);
    let small = Msix::new(1, Box::new(Log::default())).unwrap();
    assert!(!small.restore(&serde_json::from_str(&state).unwrap()));
}

proptest! {
    #[test]
    fn nothing_that_is_written_breaks_anything(
        writes in prop::collection::vec((any::<bool>(), 0u64..0x10_0000, prop::collection::vec(any::<u8>(), 1..9)), 0..60)
    ) {
        let (mut ports, mut window) = bus();
        let (msix, _) = msix();
        for (to_ports, offset, data) in writes {
            let mut back = data.clone();
            if to_ports {
                let offset = offset % 8;
                let data = &data[..data.len().min(8 - offset as usize)];
                ports.write(offset, data);
                ports.read(offset, &mut back[..data.len()]);
            } else {
                window.write(offset, &data);
                window.read(offset, &mut back);
            }
            msix.write_table(offset % 80, &data);
            msix.read_table(offset % 80, &mut back);
            msix.read_pending(offset % 80, &mut back);
            msix.set_control(offset as u16);
            msix.set_vector(Some(offset as usize % 4), data[0].into());
            msix.all_queues();
        }
    }
}
