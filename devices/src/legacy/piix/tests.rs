//! The bridges, as firmware and operating systems find them.

use super::*;
use crate::legacy::piix::pm::PowerManagement;
use crate::legacy::power::testing::recorder;
use crate::pci::intx::testing::Recorder;
use crate::pci::root::Root;
use proptest::prelude::*;
use std::sync::Mutex;

fn board() -> (ConfigAndReset, Arc<Recorder>, Arc<Mutex<Vec<PowerRequest>>>) {
    let inputs = Arc::new(Recorder::default());
    let (power, seen) = recorder();
    let router = Router::new(inputs.clone());
    let pm: SharedFunction =
        Arc::new(Mutex::new(PowerManagement::new(inputs.clone(), power.clone())));
    let isa: SharedFunction = Arc::new(Mutex::new(IsaBridge::new(router, None, pm)));
    let bridge: SharedFunction = Arc::new(Mutex::new(HostBridge::new()));
    let root = Root::behind(bridge, vec![isa]);
    (ConfigAndReset::new(ConfigPorts::new(root), power), inputs, seen)
}

fn config(ports: &mut ConfigAndReset, address: u32) -> u32 {
    ports.write(0, &address.to_le_bytes());
    let mut data = [0xff; 4];
    ports.read(4, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn the_chips_are_where_they_are_looked_for() {
    let (mut ports, ..) = board();
    assert_eq!(config(&mut ports, 0x8000_0000), 0x1237_8086);
    assert_eq!(config(&mut ports, 0x8000_0800), 0x7000_8086);
    assert_eq!(config(&mut ports, 0x8000_080c) >> 16 & 0xff, 0x80, "several functions");
    assert_eq!(config(&mut ports, 0x8000_0900), u32::MAX, "no IDE controller here");
    assert_eq!(config(&mut ports, 0x8000_0b00), 0x7113_8086);
    assert_eq!(config(&mut ports, 0x8000_0b40), 0x601);
    // The way SeaBIOS finds that its memory is writable.
    assert_eq!(config(&mut ports, 0x8000_0058) >> 8 & 0x10, 0x10);
    assert_eq!(config(&mut ports, 0x8000_0860), 0x0b0b_0a0a);
}

#[test]
fn the_reset_control_register_resets_when_it_rises() {
    let (mut ports, _, seen) = board();
    config(&mut ports, 0x8000_0800);
    ports.write(1, &[SRST]);
    let mut byte = [0xff];
    ports.read(1, &mut byte);
    assert_eq!(byte, [SRST]);
    assert!(seen.lock().unwrap().is_empty());
    ports.write(1, &[HARD_RESET]);
    assert_eq!(*seen.lock().unwrap(), [PowerRequest::Reset]);
    let mut address = [0; 4];
    ports.read(0, &mut address);
    assert_eq!(u32::from_le_bytes(address), 0x8000_0800, "the address is another register");
}

#[test]
fn bridges_are_restored_with_their_routes() {
    let inputs = Arc::new(Recorder::default());
    let make = |router| {
        let pm = PowerManagement::new(inputs.clone(), recorder().0);
        IsaBridge::new(router, None, Arc::new(Mutex::new(pm)))
    };
    let mut isa = make(Router::new(inputs.clone()));
    isa.write_config(PIRQRC, &[5, 0x85, 7, 0x7f]);
    let router = Router::new(inputs.clone());
    let mut other = make(router.clone());
    other.restore(&isa.save().unwrap()).unwrap();
    router.pin(1, 1).set(true);
    assert_eq!(inputs.take(), [(5, true)]);
    let mut bridge = HostBridge::new();
    bridge.write_config(PAM, &[0x10]);
    let mut again = HostBridge::new();
    again.restore(&bridge.save().unwrap()).unwrap();
    assert_eq!(again.config.byte(PAM), 0x10);
}

proptest! {
    #[test]
    fn nothing_that_is_written_makes_another_chip_of_it(
        writes in prop::collection::vec((0u32..4, 0u32..64, any::<u32>()), 0..60)
    ) {
        let (mut ports, ..) = board();
        for (function, register, value) in writes {
            let device = u32::from(function != 0) << 3;
            let address = 0x8000_0000 | (device | function) << 8 | register << 2;
            config(&mut ports, address);
            ports.write(4, &value.to_le_bytes());
        }
        for (address, id) in [(0x8000_0000, 0x1237_8086), (0x8000_0800, 0x7000_8086)] {
            prop_assert_eq!(config(&mut ports, address), id);
        }
    }
}
