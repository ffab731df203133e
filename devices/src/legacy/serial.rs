//! COM1: a 16550A UART (National Semiconductor PC16550D) on `vm-superio`, with
//! output that can be held back and input that waits for room.

use crate::backend::console::ConsoleOutput;
use crate::bus::BusDevice;
use crate::irq::IrqLine;
use crate::state::{Saved, StateError};
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_superio::serial::{SerialEvents, SerialState};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Ports.
pub const SIZE: u64 = 8;

/// Transmitter holding and receiver buffer; divisor latch low with DLAB.
const DATA: u8 = 0;
/// Interrupt enable; divisor latch high with DLAB.
const IER: u8 = 1;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
const LCR_DLAB: u8 = 1 << 7;
const MCR_LOOP: u8 = 1 << 4;
/// Line status: the transmitter holding register and the transmitter are empty.
const LSR_EMPTY: u8 = 1 << 5 | 1 << 6;

const VERSION: u32 = 1;

/// Hands the guest's bytes to the console.
struct Out(ConsoleOutput);

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.0.push(*byte);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Tells the input side when the receive FIFO has run empty.
struct Room {
    event: EventFd,
    waiting: AtomicBool,
}

impl SerialEvents for Room {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        if self.waiting.swap(false, Ordering::SeqCst) {
            // The counter can't be full: it is written once per wait.
            let _ = self.event.write(1);
        }
    }
}

type Uart = vm_superio::Serial<IrqLine, Arc<Room>, Out>;

/// A serial port.
pub struct Serial {
    uart: Uart,
    output: ConsoleOutput,
    room: Arc<Room>,
    /// The console is full: the driver must not be told that it may send.
    held_back: bool,
}

/// The UART's registers, as they are saved.
#[derive(Serialize, Deserialize)]
struct State {
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    received: Vec<u8>,
}

impl Serial {
    /// A port that interrupts through `irq` and sends to `output`.
    pub fn new(irq: IrqLine, output: ConsoleOutput) -> io::Result<Self> {
        let room = Room { event: EventFd::new(EFD_NONBLOCK)?, waiting: AtomicBool::new(false) };
        let room = Arc::new(room);
        let uart = Uart::with_events(irq, room.clone(), Out(output.clone()));
        Ok(Self { uart, output, room, held_back: false })
    }

    /// Bytes for the guest: takes what fits into the FIFO and returns how many.
    /// If not all fit, [`Serial::room`] becomes readable when more will.
    pub fn enqueue(&mut self, bytes: &[u8]) -> usize {
        // Asked for before the attempt, so that no emptying is missed.
        self.room.waiting.store(true, Ordering::SeqCst);
        let taken = self.uart.enqueue_raw_bytes(bytes).unwrap_or(0);
        if taken == bytes.len() {
            self.room.waiting.store(false, Ordering::SeqCst);
        } else if self.is_looped_back() {
            // Nothing is received in loopback mode; look again when it ends.
            log::trace!("serial input waits for the end of loopback mode");
        }
        taken
    }

    /// Readable when there is room for input again.
    pub fn room(&self) -> io::Result<EventFd> {
        self.room.event.try_clone()
    }

    /// The console has room again: the driver may send.
    pub fn resume(&mut self) {
        if self.held_back {
            self.held_back = false;
            // Writing IER makes the UART look at its interrupts again.
            let enabled = self.uart.state().interrupt_enable;
            self.uart_write(IER, enabled);
        }
    }

    fn is_looped_back(&mut self) -> bool {
        self.uart.read(MCR) & MCR_LOOP != 0
    }

    /// The only failure is an interrupt that is pending already, or output that
    /// the console has counted as lost.
    fn uart_write(&mut self, offset: u8, value: u8) {
        let _ = self.uart.write(offset, value);
    }

    fn put(&mut self, offset: u8, value: u8) {
        let sends = offset == DATA && self.uart.read(LCR) & LCR_DLAB == 0 && !self.is_looped_back();
        if sends && self.held_back {
            // Drivers that don't ask: into the console's headroom, and no
            // interrupt that would ask for more.
            self.output.push(value);
            return;
        }
        let ended_loopback = offset == MCR && self.is_looped_back() && value & MCR_LOOP == 0;
        self.uart_write(offset, value);
        if sends {
            self.held_back = self.output.is_held_back();
        }
        if ended_loopback {
            self.room.in_buffer_empty();
        }
    }

    fn get(&mut self, offset: u8) -> u8 {
        let value = self.uart.read(offset);
        if offset == LSR && self.held_back { value & !LSR_EMPTY } else { value }
    }

    /// The UART's state; what is on its way to the console is not part of it.
    pub fn save(&self) -> Result<Saved, StateError> {
        let s = self.uart.state();
        let state = State {
            divisor: [s.baud_divisor_low, s.baud_divisor_high],
            interrupt_enable: s.interrupt_enable,
            interrupt_identification: s.interrupt_identification,
            line_control: s.line_control,
            line_status: s.line_status,
            modem_control: s.modem_control,
            modem_status: s.modem_status,
            scratch: s.scratch,
            received: s.in_buffer,
        };
        Saved::new("serial", VERSION, &state)
    }

    /// Takes over a saved state.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        let s: State = saved.open("serial", VERSION)?;
        let invalid = |reason: String| StateError::Invalid { kind: "serial", reason };
        let irq = self.uart.interrupt_evt().try_clone().map_err(|e| invalid(e.to_string()))?;
        let state = SerialState {
            baud_divisor_low: s.divisor[0],
            baud_divisor_high: s.divisor[1],
            interrupt_enable: s.interrupt_enable,
            interrupt_identification: s.interrupt_identification,
            line_control: s.line_control,
            line_status: s.line_status,
            modem_control: s.modem_control,
            modem_status: s.modem_status,
            scratch: s.scratch,
            in_buffer: s.received,
        };
        let out = Out(self.output.clone());
        let uart = Uart::from_state(&state, irq, self.room.clone(), out);
        self.uart = uart.map_err(|e| invalid(format!("{e:?}")))?;
        self.held_back = false;
        Ok(())
    }
}

/// Wider accesses reach the ports one after the other, as on an 8-bit bus.
impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.get((offset as u8).wrapping_add(i as u8));
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (i, byte) in data.iter().enumerate() {
            self.put((offset as u8).wrapping_add(i as u8), *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::console::HIGH_WATER;
    use proptest::prelude::*;
    use std::io::Read;
    use std::time::Duration;

    const IER_THRI: u8 = 2;

    fn port(output: ConsoleOutput) -> (Serial, IrqLine) {
        let irq = IrqLine::new().unwrap();
        (Serial::new(irq.try_clone().unwrap(), output).unwrap(), irq)
    }

    fn get(port: &mut Serial, offset: u8) -> u8 {
        let mut b = [0xff];
        port.read(offset.into(), &mut b);
        b[0]
    }

    #[test]
    fn input_waits_for_room() {
        let (mut port, _irq) = port(ConsoleOutput::discard());
        let room = port.room().unwrap();
        assert_eq!(port.enqueue(&[b'a'; 100]), 64);
        assert!(room.read().is_err(), "not before the guest has read");
        (0..64).for_each(|_| assert_eq!(get(&mut port, DATA), b'a'));
        assert_eq!(room.read().unwrap(), 1);
        assert_eq!(port.enqueue(b"b"), 1);
        assert_eq!(get(&mut port, DATA), b'b');
        assert!(room.read().is_err(), "nobody waits");
    }

    #[test]
    fn a_full_console_holds_the_driver_back() {
        let (reader, writer) = std::io::pipe().unwrap();
        let output = ConsoleOutput::to(writer.into(), || ()).unwrap();
        let (mut port, irq) = port(output.clone());
        port.write(IER.into(), &[IER_THRI]);
        let mut sent = 0;
        while get(&mut port, LSR) & LSR_EMPTY != 0 {
            port.write(DATA.into(), b"x");
            get(&mut port, 2);
            sent += 1;
            assert!(sent < 4 * HIGH_WATER);
        }
        let _ = irq.eventfd().read();
        port.write(DATA.into(), b"y");
        assert!(irq.eventfd().read().is_err(), "no interrupt asks for more");
        let mut all = vec![0; sent + 1];
        let mut reader = reader;
        reader.read_exact(&mut all).unwrap();
        assert_eq!(all.last(), Some(&b'y'), "what came unasked is not lost");
        while output.is_held_back() {
            std::thread::yield_now();
        }
        port.resume();
        assert_ne!(get(&mut port, LSR) & LSR_EMPTY, 0);
        assert!(irq.eventfd().read().is_ok(), "the driver is told");
        assert!(output.finish(Duration::from_secs(5)).is_none());
    }

    #[test]
    fn a_restored_port_goes_on() {
        let (mut a, _i) = port(ConsoleOutput::discard());
        a.write(7, &[0x5a]);
        a.write(LCR.into(), &[LCR_DLAB | 3]);
        a.write(0, &[1, 0]);
        a.enqueue(b"hello");
        let (mut b, _j) = port(ConsoleOutput::discard());
        b.restore(&a.save().unwrap()).unwrap();
        assert_eq!(get(&mut b, 7), 0x5a);
        assert_eq!(get(&mut b, DATA), 1);
        b.write(LCR.into(), &[3]);
        assert_eq!((0..5).map(|_| get(&mut b, DATA)).collect::<Vec<_>>(), b"hello");
    }

    proptest! {
        #[test]
        fn no_accesses_make_it_panic(
            accesses in proptest::collection::vec((any::<bool>(), 0u64..8, proptest::collection::vec(any::<u8>(), 1..5)), 0..200)
        ) {
            let (mut port, _irq) = port(ConsoleOutput::discard());
            for (write, offset, mut data) in accesses {
                if write { port.write(offset, &data) } else { port.read(offset, &mut data) }
                port.enqueue(&data);
            }
            port.save().unwrap();
        }
    }
}
