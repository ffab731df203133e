//! What is on every motherboard, without a guest, for property tests and fuzzers.

use super::fw_cfg::{self, Files, FwCfg};
use super::piix::pm::{self as piix_pm, PowerManagement};
use super::piix::{ConfigAndReset, HostBridge, IsaBridge};
use super::power::PowerLine;
use super::rtc::{self, Rtc};
use super::serial::{self, Serial};
use super::{debug, i8042, pm, port92, pvpanic};
use crate::backend::console::ConsoleOutput;
use crate::bus::{Bus, SharedDevice, lock};
use crate::irq::IrqLine;
use crate::pci::intx::{InterruptInputs, Router};
use crate::pci::root::{CONFIG_ADDRESS, CONFIG_PORTS, ConfigPorts, Root};
use crate::state::Saved;
use crate::virtio::testing::ram;
use std::sync::{Arc, Mutex};

const COM1: u16 = 0x3f8;
/// Where the button is; its own place is the PIIX's on a motherboard.
const BUTTON: u16 = 0x700;
/// And the sleep registers of a machine without one.
const SLEEP: u16 = 0x708;
/// Bytes of a step.
const STEP: usize = 8;

/// Inputs that lead nowhere.
struct Nowhere;

impl InterruptInputs for Nowhere {
    fn set(&self, _irq: u32, _level: bool) {}
}

/// A board, and what of it has a state.
struct Board {
    ports: Bus,
    serial: Arc<Mutex<Serial>>,
    clock: Arc<Mutex<Rtc>>,
    keyboard: Arc<Mutex<i8042::I8042>>,
    firmware: Arc<Mutex<FwCfg>>,
    button: Arc<Mutex<pm::PowerButton>>,
    bridge: Arc<Mutex<HostBridge>>,
    isa: Arc<Mutex<IsaBridge>>,
    power: Arc<Mutex<PowerManagement>>,
}

fn shared<T>(device: T) -> Arc<Mutex<T>> {
    Arc::new(Mutex::new(device))
}

impl Board {
    fn new() -> Self {
        let line = PowerLine::new(|_| {});
        let irq = || IrqLine::new().expect("an eventfd");
        let mut files = Files::default();
        files.add("etc/e820", vec![0x5a; 40]);
        let inputs: Arc<dyn InterruptInputs> = Arc::new(Nowhere);
        let power = shared(PowerManagement::new(inputs.clone(), line.clone()));
        let isa = shared(IsaBridge::new(Router::new(inputs), None, power.clone()));
        let bridge = shared(HostBridge::new());
        let config = ConfigPorts::new(Root::behind(bridge.clone(), vec![isa.clone()]));
        let serial = Serial::new(irq(), ConsoleOutput::discard()).expect("an eventfd");
        let mut board = Self {
            ports: Bus::new(),
            serial: shared(serial),
            clock: shared(Rtc::new()),
            keyboard: shared(i8042::I8042::new(line.clone())),
            firmware: shared(FwCfg::new(ram(), 1, files)),
            button: shared(pm::PowerButton::new(irq())),
            bridge,
            isa,
            power,
        };
        let devices: [(u16, u64, SharedDevice); 12] = [
            (COM1, serial::SIZE, board.serial.clone()),
            (rtc::BASE, rtc::SIZE, board.clock.clone()),
            (i8042::BASE, i8042::SIZE, board.keyboard.clone()),
            (fw_cfg::BASE, fw_cfg::SIZE, board.firmware.clone()),
            (BUTTON, pm::GED_SIZE, board.button.clone()),
            (SLEEP, pm::SIZE, shared(pm::PowerManagement::new(line.clone()))),
            (piix_pm::BASE, piix_pm::SIZE, board.power.clone()),
            (CONFIG_ADDRESS, CONFIG_PORTS, shared(ConfigAndReset::new(config, line.clone()))),
            (port92::PORT, 1, shared(port92::SystemControlA::new(line.clone()))),
            (pvpanic::PORT, 1, shared(pvpanic::PvPanic::new(line))),
            (debug::PORT, 1, shared(debug::PostCodes::new())),
            (debug::CONSOLE, 1, shared(debug::DebugConsole::new(|_| {}))),
        ];
        for (base, len, device) in devices {
            board.ports.insert(base.into(), len, device).expect("places of their own");
        }
        board
    }

    /// The states; without what goes on by itself, to be compared.
    fn save(&self, still: bool) -> [Saved; 8] {
        [
            lock(&self.serial).save(),
            lock(&self.clock).save(),
            lock(&self.keyboard).save(),
            lock(&self.firmware).save(),
            lock(&self.button).save(),
            lock(&self.bridge).save(),
            lock(&self.isa).save(),
            lock(&self.power).save(),
        ]
        .map(|saved| {
            let mut saved = saved.expect("a state");
            // The timer of the power management; and a serial port says again that
            // it can be written to, as its console is another.
            if let Some(fields) = saved.data.as_object_mut().filter(|_| still) {
                fields.remove("ticks");
                fields.remove("interrupt_identification");
                fields.remove("thre_pending");
            }
            saved
        })
    }

    fn restore(
        &self,
        [serial, clock, keyboard, firmware, button, bridge, isa, power]: &[Saved; 8],
    ) {
        let restored = [
            lock(&self.serial).restore(serial),
            lock(&self.clock).restore(clock),
            lock(&self.keyboard).restore(keyboard),
            lock(&self.firmware).restore(firmware),
            lock(&self.button).restore(button),
            lock(&self.bridge).restore(bridge),
            lock(&self.isa).restore(isa),
            lock(&self.power).restore(power),
        ];
        restored.into_iter().for_each(|restored| restored.expect("what was saved"));
    }
}

/// Runs a program of accesses to ports: none may panic or spin, and a board that takes
/// over the state is the same.
///
/// # Panics
///
/// When one of these does not hold.
pub fn hostile(program: &[u8]) {
    const PORTS: [(u16, u8); 12] = [
        (COM1, 8),
        (rtc::BASE, 2),
        (i8042::BASE, 5),
        (fw_cfg::BASE, 12),
        (BUTTON, 1),
        (SLEEP, 3),
        (piix_pm::BASE, 64),
        (CONFIG_ADDRESS, 8),
        (port92::PORT, 1),
        (pvpanic::PORT, 1),
        (debug::PORT, 1),
        (debug::CONSOLE, 1),
    ];
    let board = Board::new();
    for step in program.chunks_exact(STEP) {
        let [what, which, offset, size, value @ ..] = [0, 1, 2, 3, 4, 5, 6, 7].map(|i| step[i]);
        let (base, len) = PORTS[usize::from(which) % PORTS.len()];
        let port = u64::from(base) + u64::from(offset % len);
        let size = [1, 2, 4][usize::from(size) % 3];
        let mut data = value;
        match what % 8 {
            0..=3 => drop(board.ports.write(port, &value[..size])),
            4..=6 => drop(board.ports.read(port, &mut data[..size])),
            _ => drop(lock(&board.serial).enqueue(&value)),
        }
    }
    let other = Board::new();
    other.restore(&board.save(false));
    for (ours, theirs) in board.save(true).iter().zip(&other.save(true)) {
        for (name, value) in ours.data.as_object().into_iter().flatten() {
            assert_eq!(Some(value), theirs.data.get(name), "{} {name}", ours.kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_program_hurts_a_board(program in vec(any::<u8>(), 0..1024)) {
            super::hostile(&program);
        }
    }
}
