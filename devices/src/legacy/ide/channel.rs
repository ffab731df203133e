//! One channel: the registers of its drives, its bus master and its interrupt.

use super::media::{Failure, Table, Work};
use super::unit::{self, BSY, DEV, DRQ, Next, Phase, READY, Unit};
use super::{COMMAND_SIZE, DRIVES};
use crate::irq::IrqLine;
use serde::{Deserialize, Serialize};
use std::io;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

// The command block (ATA/ATAPI-7 volume 2, 6.1).
const DATA: u64 = 0;
/// Read: `Error`; written: `Features`.
const ERROR: u64 = 1;
const COUNT: u64 = 2;
const LBA_LOW: u64 = 3;
const LBA_HIGH: u64 = 5;
const DEVICE: u64 = 6;
/// Read: `Status`; written: `Command`.
const STATUS: u64 = 7;

/// `Device Control`: no interrupts.
const NIEN: u8 = 1 << 1;
/// `Device Control`: software reset while set.
const SRST: u8 = 1 << 2;
/// `Device Control`: the values before the last are read.
const HOB: u8 = 1 << 7;

const DEVICE_RESET: u8 = 0x08;
const EXECUTE_DEVICE_DIAGNOSTIC: u8 = 0x90;

// The bus master (82371SB, 2.7).
/// `BMICX`.
const BUS_MASTER_COMMAND: u16 = 0;
/// `BMISX`.
const BUS_MASTER_STATUS: u16 = 2;
/// `BMIDTPX`.
const BUS_MASTER_TABLE: u16 = 4;
/// `BMICX`: start.
const SSBM: u8 = 1 << 0;
/// `BMICX`: towards memory.
const RWCON: u8 = 1 << 3;
/// `BMISX`: active.
const BMIDEA: u8 = 1 << 0;
/// `BMISX`: error.
const DMA_ERROR: u8 = 1 << 1;
/// `BMISX`: the drive has interrupted.
const IDEINTS: u8 = 1 << 2;
/// `BMISX`: drives 0 and 1 are capable of DMA, says the software.
const CAPABLE: u8 = 3 << 5;

/// Errors of images that are told: a guest could fill a log with them.
const MAX_LOGGED: u32 = 8;

/// Something for the event loop to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    pub drive: usize,
    pub work: Work,
}

/// What a channel saves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    selected: usize,
    control: u8,
    /// The drive has asked for an interrupt that was not acknowledged.
    interrupt: bool,
    command: u8,
    status: u8,
    table: u32,
    job: Option<Job>,
    drives: [Option<unit::State>; DRIVES],
}

/// A channel with its drives.
pub struct Channel {
    units: [Option<Unit>; DRIVES],
    selected: usize,
    control: u8,
    interrupt: bool,
    command: u8,
    status: u8,
    table: u32,
    /// Whether the function may use memory.
    bus_master: bool,
    job: Option<Job>,
    /// Counts cancelled jobs, so that a late answer is recognised.
    generation: u64,
    irq: IrqLine,
    kick: EventFd,
    logged: u32,
}

impl Channel {
    /// A channel after power-on.
    pub fn new(units: [Option<Unit>; DRIVES], irq: IrqLine) -> io::Result<Self> {
        Ok(Self {
            units,
            selected: 0,
            control: 0,
            interrupt: false,
            command: 0,
            status: 0,
            table: 0,
            bus_master: true,
            job: None,
            generation: 0,
            irq,
            kick: EventFd::new(EFD_NONBLOCK)?,
            logged: 0,
        })
    }

    /// What its first or second drive has done, if there is one.
    pub fn counters(&self, drive: usize) -> Option<Vec<(&'static str, u64)>> {
        self.units.get(drive)?.as_ref().map(Unit::counters)
    }

    /// Whether there are no drives.
    pub fn is_empty(&self) -> bool {
        self.units.iter().all(Option::is_none)
    }

    /// What wakes the worker.
    pub(super) fn kick(&self) -> &EventFd {
        &self.kick
    }

    fn unit(&self) -> Option<&Unit> {
        self.units.get(self.selected)?.as_ref()
    }

    fn is_busy(&self) -> bool {
        self.unit().is_some_and(|unit| unit.state.status & BSY != 0)
    }

    /// The driver reads the command block.
    pub fn read_command_block(&mut self, offset: u64, data: &mut [u8]) {
        if offset == DATA {
            let selected = self.selected;
            if let Some(unit) = self.units[selected].as_mut() {
                let next = unit.read_data(data);
                self.go_on(selected, next);
            }
            return;
        }
        let Some(byte) = data.first_mut() else { return };
        *byte = match offset {
            STATUS => {
                self.interrupt = false;
                self.alternate_status()
            }
            _ => self.register(offset),
        };
    }

    fn register(&self, offset: u64) -> u8 {
        let old = usize::from(self.control & HOB != 0);
        match self.unit().map(|unit| &unit.state) {
            // Device 0 answers for a device 1 that isn't there (6.5); a bus
            // without devices floats.
            None if self.is_empty() => 0xff,
            None => 0,
            Some(state) => match offset {
                ERROR => state.error,
                COUNT => state.count[old],
                LBA_LOW..=LBA_HIGH => state.lba[(offset - LBA_LOW) as usize][old],
                DEVICE => state.device,
                _ => 0xff,
            },
        }
    }

    /// `Alternate Status`: the status, without acknowledging the interrupt.
    pub fn alternate_status(&self) -> u8 {
        match self.unit() {
            _ if self.control & SRST != 0 && !self.is_empty() => BSY,
            Some(unit) => unit.state.status,
            None if self.is_empty() => 0xff,
            None => 0,
        }
    }

    /// The driver writes the command block.
    pub fn write_command_block(&mut self, offset: u64, data: &[u8]) {
        if offset >= COMMAND_SIZE {
            return;
        }
        if offset == DATA {
            let selected = self.selected;
            if let Some(unit) = self.units[selected].as_mut() {
                let next = unit.write_data(data);
                self.go_on(selected, next);
            }
            return;
        }
        let Some(byte) = data.first().copied() else { return };
        if offset == STATUS {
            self.write_command(byte);
            return;
        }
        // A busy device does not see what is written.
        if self.is_busy() {
            return;
        }
        for unit in self.units.iter_mut().flatten() {
            let state = &mut unit.state;
            let push = |twice: &mut unit::Twice| *twice = [byte, twice[0]];
            match offset {
                ERROR => push(&mut state.features),
                COUNT => push(&mut state.count),
                LBA_LOW..=LBA_HIGH => push(&mut state.lba[(offset - LBA_LOW) as usize]),
                _ => state.device = byte,
            }
        }
        if offset == DEVICE {
            self.selected = usize::from(byte & DEV != 0);
        }
        self.control &= !HOB;
    }

    fn write_command(&mut self, command: u8) {
        self.control &= !HOB;
        self.interrupt = false;
        match command {
            EXECUTE_DEVICE_DIAGNOSTIC if !self.is_busy() => {
                self.cancel();
                self.units.iter_mut().flatten().for_each(Unit::reset);
                self.selected = 0;
                if self.unit().is_some() {
                    self.go_on(0, Next::Interrupt);
                }
            }
            DEVICE_RESET if self.unit().is_some_and(|u| u.state.kind == unit::Kind::Cd) => {
                self.cancel();
                if let Some(unit) = self.units[self.selected].as_mut() {
                    unit.reset();
                }
            }
            _ if self.is_busy() => {}
            _ => {
                let selected = self.selected;
                if let Some(unit) = self.units[selected].as_mut() {
                    let next = unit.command(command);
                    self.go_on(selected, next);
                }
            }
        }
    }

    /// The driver writes `Device Control`.
    pub fn write_device_control(&mut self, value: u8) {
        let before = std::mem::replace(&mut self.control, value);
        if before & SRST == 0 && value & SRST != 0 {
            self.cancel();
        }
        if before & SRST != 0 && value & SRST == 0 {
            self.units.iter_mut().flatten().for_each(Unit::reset);
            self.selected = 0;
            self.interrupt = false;
        }
        // The line is let go while interrupts are off, and rises again.
        if before & NIEN != 0 && value & NIEN == 0 && self.interrupt {
            self.irq.raise();
        }
    }

    /// What a drive wants.
    fn go_on(&mut self, drive: usize, next: Next) {
        match next {
            Next::Wait => {}
            Next::Interrupt => {
                self.status |= IDEINTS;
                self.interrupt = true;
                if self.control & NIEN == 0 {
                    self.irq.raise();
                }
            }
            Next::Do(work) => self.give(Job { drive, work }),
            Next::Dma(_) => self.start_transfer(),
        }
    }

    fn give(&mut self, job: Job) {
        self.job = Some(job);
        // A counter that is full has woken the worker already.
        let _ = self.kick.write(1);
    }

    /// Gives the selected drive's transfer to the worker, if both it and the
    /// bus master are ready.
    fn start_transfer(&mut self) {
        if self.command & SSBM == 0 || self.status & BMIDEA == 0 || !self.bus_master {
            return;
        }
        let drive = self.selected;
        let Some(unit) = self.units[drive].as_mut() else { return };
        if let Phase::Dma(work) = unit.state.phase {
            unit.state.phase = Phase::Idle;
            self.give(Job { drive, work });
        }
    }

    /// Drops what was given to the worker; afterwards nothing is done for it.
    fn cancel(&mut self) {
        self.generation += 1;
        self.job = None;
        self.status &= !BMIDEA;
        self.units.iter().flatten().for_each(Unit::wait_for_media);
    }

    /// `Command` of the function: whether it may be a bus master.
    pub(super) fn set_bus_master(&mut self, on: bool) {
        self.bus_master = on;
        self.start_transfer();
    }

    /// The driver reads the bus master's registers.
    pub fn read_bus_master(&mut self, offset: u16, data: &mut [u8]) {
        let mut registers = [0xff; 8];
        registers[usize::from(BUS_MASTER_COMMAND)] = self.command;
        registers[usize::from(BUS_MASTER_STATUS)] = self.status;
        registers[usize::from(BUS_MASTER_TABLE)..].copy_from_slice(&self.table.to_le_bytes());
        for (i, to) in data.iter_mut().enumerate() {
            *to = registers.get(usize::from(offset) + i).copied().unwrap_or(0xff);
        }
    }

    /// The driver writes them.
    pub fn write_bus_master(&mut self, offset: u16, data: &[u8]) {
        for (offset, byte) in (offset..).zip(data) {
            match offset {
                BUS_MASTER_COMMAND => self.write_bus_master_command(*byte),
                BUS_MASTER_STATUS => {
                    self.status &= !(byte & (IDEINTS | DMA_ERROR));
                    self.status = self.status & !CAPABLE | byte & CAPABLE;
                }
                BUS_MASTER_TABLE..8 => {
                    let mut table = self.table.to_le_bytes();
                    table[usize::from(offset - BUS_MASTER_TABLE)] = *byte;
                    self.table = u32::from_le_bytes(table) & !3;
                }
                _ => {}
            }
        }
    }

    fn write_bus_master_command(&mut self, value: u8) {
        let before = std::mem::replace(&mut self.command, value & (SSBM | RWCON));
        if before & SSBM == 0 && value & SSBM != 0 {
            self.status |= BMIDEA;
            self.start_transfer();
        }
        if before & SSBM != 0 && value & SSBM == 0 && self.status & BMIDEA != 0 {
            // Stopped in the middle: the drive is left waiting for the rest.
            let drive = self.job.map(|job| job.drive);
            self.cancel();
            let waits = |unit: &Unit| unit.state.status & BSY != 0;
            let drive = drive.unwrap_or(self.selected);
            if let Some(unit) = self.units[drive].as_mut().filter(|unit| waits(unit)) {
                unit.state.phase = Phase::Idle;
                unit.state.status = READY | DRQ;
            }
        }
    }

    /// The next job with the generation that it belongs to, for the worker.
    pub(super) fn take_job(&mut self) -> Option<(Job, u64)> {
        self.job.take().map(|job| (job, self.generation))
    }

    /// A drive of this channel.
    pub(super) fn drive(&mut self, drive: usize) -> Option<&mut Unit> {
        self.units.get_mut(drive)?.as_mut()
    }

    /// Where the table of descriptors is.
    pub(super) fn table(&self) -> u32 {
        self.table
    }

    /// The worker is done with `job`; `buffer` is the drive's again.
    pub(super) fn finish(
        &mut self,
        (job, generation): (Job, u64),
        buffer: Vec<u8>,
        result: Result<Table, Failure>,
    ) {
        if generation != self.generation {
            return;
        }
        let Some(unit) = self.units.get_mut(job.drive).and_then(Option::as_mut) else { return };
        unit.state.buffer = buffer;
        let by_bus_master = matches!(job.work, Work::Read { .. } | Work::Write { .. } | Work::Send);
        if by_bus_master {
            match &result {
                Ok(Table::Exact) => self.status &= !BMIDEA,
                Ok(Table::Longer) => {}
                // Neither an interrupt nor an error: the drive wants more.
                Ok(Table::Shorter) => {
                    self.status &= !BMIDEA;
                    unit.state.status = READY | DRQ;
                    return;
                }
                Err(Failure::Memory) => {
                    self.status = self.status & !BMIDEA | DMA_ERROR;
                }
                Err(Failure::Image(_)) => self.status &= !BMIDEA,
            }
        }
        if let Err(Failure::Image(error)) = &result
            && self.logged < MAX_LOGGED
        {
            self.logged += 1;
            log::warn!("ide: {error}");
        }
        let next = unit.finish(job.work, result.map(|_| ()));
        self.go_on(job.drive, next);
    }

    pub(super) fn save(&self) -> State {
        State {
            selected: self.selected,
            control: self.control,
            interrupt: self.interrupt,
            command: self.command,
            status: self.status,
            table: self.table,
            job: self.job,
            drives: self.units.each_ref().map(|unit| unit.as_ref().map(|u| u.state.clone())),
        }
    }

    /// Whether the state is that of a channel with these drives, and can be.
    pub(super) fn fits(&self, state: &State) -> bool {
        state.selected < DRIVES
            && state.job.is_none_or(|job| self.job_fits(job, state))
            && self.units.iter().zip(&state.drives).all(|(unit, state)| match (unit, state) {
                (None, None) => true,
                (Some(unit), Some(state)) => unit.fits(state),
                _ => false,
            })
    }

    fn job_fits(&self, job: Job, state: &State) -> bool {
        let unit = self.units.get(job.drive).and_then(Option::as_ref);
        let drive = state.drives.get(job.drive).and_then(Option::as_ref);
        unit.zip(drive).is_some_and(|(unit, drive)| unit.holds(job.work, drive.buffer.len()))
    }

    pub(super) fn restore(&mut self, state: State) {
        self.cancel();
        for (unit, state) in self.units.iter_mut().zip(state.drives) {
            if let (Some(unit), Some(state)) = (unit, state) {
                unit.state = state;
            }
        }
        (self.selected, self.control) = (state.selected, state.control);
        (self.command, self.status, self.table) = (state.command, state.status, state.table);
        self.interrupt = state.interrupt;
        if let Some(job) = state.job {
            self.give(job);
        }
        if self.interrupt && self.control & NIEN == 0 {
            self.irq.raise();
        }
    }
}
