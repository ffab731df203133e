//! COM1: a 16550A UART (National Semiconductor PC16550D data sheet, section 8)
//! on `vm-superio`, with output that can be held back and input that waits for
//! room.
//!
//! Three things of the data sheet are done here because `vm-superio` leaves
//! them out: the transmitter shows as busy while the console is full, the
//! interrupt identification names one cause at a time, the most urgent first,
//! and received data stays a cause until it has been read.

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
/// Interrupt identification; FIFO control when written.
const IIR: u8 = 2;
/// Line control.
const LCR: u8 = 3;
/// Modem control.
const MCR: u8 = 4;
/// Line status.
const LSR: u8 = 5;
/// Interrupt enable: received data available.
const IER_RDA: u8 = 1 << 0;
/// Interrupt enable: transmitter holding register empty.
const IER_THRE: u8 = 1 << 1;
/// Interrupt identification: the FIFOs are enabled.
const IIR_FIFO: u8 = 3 << 6;
const IIR_RDA: u8 = 1 << 2;
const IIR_THRE: u8 = 1 << 1;
const IIR_NONE: u8 = 1 << 0;
const LCR_DLAB: u8 = 1 << 7;
const MCR_LOOP: u8 = 1 << 4;
/// Line status: a byte has been received.
const LSR_DATA_READY: u8 = 1 << 0;
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
    /// [`IER_THRE`] where the driver has set it and the UART must not know yet.
    masked: u8,
    /// "Holding register empty" was pending when a more urgent cause was told.
    thre_pending: bool,
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
    thre_pending: bool,
}

impl Serial {
    /// A port that interrupts through `irq` and sends to `output`.
    pub fn new(irq: IrqLine, output: ConsoleOutput) -> io::Result<Self> {
        let room = Room { event: EventFd::new(EFD_NONBLOCK)?, waiting: AtomicBool::new(false) };
        let room = Arc::new(room);
        let uart = Uart::with_events(irq, room.clone(), Out(output.clone()));
        Ok(Self { uart, output, room, held_back: false, masked: 0, thre_pending: false })
    }

    /// Bytes for the guest: takes what fits into the FIFO and returns how many.
    /// If not all fit, [`Serial::room`] becomes readable when more will.
    pub fn enqueue(&mut self, bytes: &[u8]) -> usize {
        // Asked for before the attempt, so that no emptying is missed.
        self.room.waiting.store(true, Ordering::SeqCst);
        let taken = self.uart.enqueue_raw_bytes(bytes).unwrap_or(0);
        if taken == bytes.len() {
            self.room.waiting.store(false, Ordering::SeqCst);
        }
        taken
    }

    /// Readable when there is room for input again.
    pub fn room(&self) -> io::Result<EventFd> {
        self.room.event.try_clone()
    }

    /// The console has room again: the driver may send.
    pub fn resume(&mut self) {
        if std::mem::take(&mut self.held_back) {
            self.review_interrupts();
        }
    }

    /// Raises what is enabled and pending: a write to IER does that, and behind
    /// the divisor latch there is no IER.
    fn review_interrupts(&mut self) {
        let control = self.uart.read(LCR);
        self.uart_write(LCR, control & !LCR_DLAB);
        let enabled = self.uart.read(IER) | std::mem::take(&mut self.masked);
        self.uart_write(IER, enabled);
        self.uart_write(LCR, control);
    }

    /// The cause of the interrupt by priority (data sheet, table III). Only
    /// naming "holding register empty" ends it; received data stays.
    fn identify(&mut self) -> u8 {
        let pending = self.uart.read(IIR);
        let enabled = self.enabled();
        let received = self.uart.read(LSR) & LSR_DATA_READY != 0;
        let empty = self.thre_pending || pending & IIR_THRE != 0;
        self.thre_pending = empty && enabled & IER_THRE != 0;
        if received && enabled & IER_RDA != 0 {
            return IIR_FIFO | IIR_RDA;
        }
        match std::mem::take(&mut self.thre_pending) {
            true => IIR_FIFO | IIR_THRE,
            false => IIR_FIFO | IIR_NONE,
        }
    }

    /// IER, wherever the divisor latch points.
    fn enabled(&mut self) -> u8 {
        let control = self.uart.read(LCR);
        if control & LCR_DLAB == 0 {
            return self.uart.read(IER);
        }
        self.uart_write(LCR, control & !LCR_DLAB);
        let enabled = self.uart.read(IER);
        self.uart_write(LCR, control);
        enabled
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
        let latched = self.uart.read(LCR) & LCR_DLAB != 0;
        let sends = offset == DATA && !latched && !self.is_looped_back();
        if sends && self.held_back {
            // Drivers that don't ask: into the console's headroom, and no
            // interrupt that would ask for more.
            self.output.push(value);
            return;
        }
        if offset == IER && !latched {
            // While the driver is held back, enabling the interrupt must not
            // raise it: the bit waits here for `resume`.
            let mask = if self.held_back { value & IER_THRE } else { 0 };
            self.masked = mask;
            self.uart_write(IER, value & !mask);
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
        match offset {
            IIR => self.identify(),
            IER if self.uart.read(LCR) & LCR_DLAB == 0 => self.uart.read(IER) | self.masked,
            LSR => {
                if self.held_back && !self.output.is_held_back() {
                    // The console's go-ahead is on its way.
                    self.resume();
                }
                let busy = if self.held_back { LSR_EMPTY } else { 0 };
                self.uart.read(LSR) & !busy
            }
            _ => self.uart.read(offset),
        }
    }

    /// The UART's state; what is on its way to the console is not part of it.
    pub fn save(&self) -> Result<Saved, StateError> {
        let s = self.uart.state();
        let state = State {
            divisor: [s.baud_divisor_low, s.baud_divisor_high],
            interrupt_enable: s.interrupt_enable | self.masked,
            interrupt_identification: s.interrupt_identification,
            line_control: s.line_control,
            line_status: s.line_status,
            modem_control: s.modem_control,
            modem_status: s.modem_status,
            scratch: s.scratch,
            received: s.in_buffer,
            thre_pending: self.thre_pending,
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
        (self.held_back, self.masked, self.thre_pending) = (false, 0, s.thre_pending);
        // The new console has room, and the old one may have had none.
        self.review_interrupts();
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

    fn put(port: &mut Serial, offset: u8, value: u8) {
        port.write(offset.into(), &[value]);
    }

    fn raised(irq: &IrqLine) -> bool {
        irq.eventfd().read().is_ok()
    }

    /// Fills the console as a driver does that asks before it sends; returns
    /// how many bytes that took.
    fn fill(port: &mut Serial) -> usize {
        let mut sent = 0;
        while get(port, LSR) & LSR_EMPTY == LSR_EMPTY {
            put(port, DATA, b'x');
            get(port, IIR);
            sent += 1;
            assert!(sent < 4 * HIGH_WATER);
        }
        sent
    }

    #[test]
    fn a_full_console_holds_the_driver_back() {
        let output = ConsoleOutput::memory();
        let (mut port, irq) = port(output.clone());
        put(&mut port, IER, IER_THRE);
        let sent = fill(&mut port);
        assert_eq!(sent, HIGH_WATER);
        assert!(raised(&irq));
        put(&mut port, DATA, b'y');
        put(&mut port, IER, 0);
        put(&mut port, IER, IER_THRE);
        assert!(!raised(&irq), "no interrupt asks for more");
        assert_eq!(get(&mut port, IIR), IIR_FIFO | IIR_NONE);
        assert_eq!(get(&mut port, IER), IER_THRE, "the driver sees what it wrote");
        // A driver may be at the divisor latch when there is room again.
        put(&mut port, LCR, LCR_DLAB | 3);
        let all = output.take();
        assert_eq!((all.len(), all.last()), (sent + 1, Some(&b'y')), "nothing is lost");
        port.resume();
        assert!(raised(&irq), "the driver is told");
        assert_eq!(get(&mut port, IER), 0, "the divisor latch is as it was");
        put(&mut port, LCR, 3);
        assert_eq!(get(&mut port, IIR), IIR_FIFO | IIR_THRE);
        assert_eq!(get(&mut port, LSR) & LSR_EMPTY, LSR_EMPTY);
    }

    #[test]
    fn a_driver_that_polls_needs_no_go_ahead() {
        let output = ConsoleOutput::memory();
        let (mut port, _irq) = port(output.clone());
        fill(&mut port);
        assert_eq!(get(&mut port, LSR) & LSR_EMPTY, 0);
        output.take();
        assert_eq!(get(&mut port, LSR) & LSR_EMPTY, LSR_EMPTY);
    }

    #[test]
    fn causes_are_told_one_by_one_and_data_until_it_is_read() {
        let (mut port, irq) = port(ConsoleOutput::discard());
        put(&mut port, IER, IER_RDA | IER_THRE);
        assert!(raised(&irq));
        port.enqueue(b"ab");
        assert!(raised(&irq));
        for byte in *b"ab" {
            assert_eq!(get(&mut port, IIR), IIR_FIFO | IIR_RDA);
            assert_eq!(get(&mut port, DATA), byte);
        }
        assert_eq!(get(&mut port, IIR), IIR_FIFO | IIR_THRE, "it waited for its turn");
        assert_eq!(get(&mut port, IIR), IIR_FIFO | IIR_NONE);
    }

    /// `serial8250_do_startup` of Linux tests for a UART that forgets this.
    #[test]
    fn enabling_the_interrupt_again_raises_it_again() {
        let (mut port, irq) = port(ConsoleOutput::discard());
        for _ in 0..2 {
            put(&mut port, IER, IER_THRE);
            assert!(raised(&irq));
            assert_eq!(get(&mut port, IIR), IIR_FIFO | IIR_THRE);
            put(&mut port, IER, 0);
        }
    }

    #[test]
    fn input_that_came_in_loopback_mode_waits_for_its_end() {
        let (mut port, _irq) = port(ConsoleOutput::discard());
        let room = port.room().unwrap();
        put(&mut port, MCR, MCR_LOOP);
        assert_eq!(port.enqueue(b"in"), 0);
        put(&mut port, DATA, b'l');
        assert_eq!(get(&mut port, DATA), b'l');
        let _ = room.read();
        assert_eq!(port.enqueue(b"in"), 0);
        put(&mut port, MCR, 0);
        assert!(room.read().is_ok());
        assert_eq!(port.enqueue(b"in"), 2);
    }

    #[test]
    fn wide_accesses_reach_one_port_after_the_other() {
        let output = ConsoleOutput::memory();
        let (mut port, _irq) = port(output.clone());
        port.write(DATA.into(), b"a\x05");
        assert_eq!(output.take(), b"a");
        assert_eq!(get(&mut port, IER), 5);
        let mut all = [0xff; 8];
        port.read(0, &mut all);
        assert_eq!((all[1], all[3] & 3), (5, 3));
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

    #[test]
    fn a_port_that_was_held_back_is_told_after_its_restoration() {
        let (mut a, _i) = port(ConsoleOutput::memory());
        fill(&mut a);
        put(&mut a, IER, IER_THRE);
        let (mut b, irq) = port(ConsoleOutput::memory());
        b.restore(&a.save().unwrap()).unwrap();
        assert!(raised(&irq));
        assert_eq!(get(&mut b, IER), IER_THRE);
        assert_eq!(get(&mut b, LSR) & LSR_EMPTY, LSR_EMPTY);
    }

    #[test]
    fn a_state_with_a_longer_fifo_is_refused() {
        let (mut a, _i) = port(ConsoleOutput::discard());
        let mut saved = a.save().unwrap();
        saved.data["received"] = vec![0u8; 65].into();
        assert!(matches!(a.restore(&saved), Err(StateError::Invalid { .. })));
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
