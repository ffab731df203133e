//! MSI-X (PCI 3.0, 6.8.2): a table of messages, each with a mask, and a bit for
//! each message that came while it was masked.
//!
//! A message that may be sent is one write to an eventfd that the machine has
//! tied to it; the guest's changes of the table reach the machine through
//! [`Routes`].

use crate::irq::IrqLine;
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Capability ID.
pub const CAPABILITY: u8 = 0x11;
/// Bytes of a table entry.
pub const ENTRY_SIZE: u64 = 16;
/// No vector: what a driver writes to have no interrupt.
pub const NO_VECTOR: u16 = 0xffff;
/// `Message Control`: MSI-X enable.
const ENABLE: u16 = 1 << 15;
/// `Message Control`: all vectors are masked.
const FUNCTION_MASK: u16 = 1 << 14;
/// `Vector Control`: this vector is masked.
const MASKED: u32 = 1;

/// Where the machine learns what the eventfds mean.
pub trait Routes: Send + Sync + std::fmt::Debug {
    /// From now on, vector `vector` of this function is a write of `data` to
    /// `address`.
    fn set(&self, vector: usize, address: u64, data: u32);
}

/// The messages of one function.
#[derive(Debug)]
pub struct Msix {
    vectors: Vec<Vector>,
    of_queue: Vec<AtomicU16>,
    of_config: AtomicU16,
    table: Mutex<Table>,
    routes: Box<dyn Routes>,
}

#[derive(Debug)]
struct Vector {
    line: IrqLine,
    /// Masked by itself, with all others, or because MSI-X is off.
    held: AtomicBool,
    pending: AtomicBool,
}

/// What the guest has written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Table {
    entries: Vec<[u32; 4]>,
    control: u16,
}

/// The saved state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MsixState {
    table: Table,
    pending: Vec<bool>,
    of_queue: Vec<u16>,
    of_config: u16,
}

impl Msix {
    /// Messages for `queues` queues and the configuration: a vector each. Fails
    /// when the host is out of file descriptors.
    pub fn new(queues: usize, routes: Box<dyn Routes>) -> io::Result<Self> {
        let count = queues + 1;
        let vectors = (0..count).map(|_| {
            let line = IrqLine::new()?;
            Ok(Vector { line, held: true.into(), pending: false.into() })
        });
        let entries = vec![[0, 0, 0, MASKED]; count];
        Ok(Self {
            vectors: vectors.collect::<io::Result<_>>()?,
            of_queue: (0..queues).map(|_| NO_VECTOR.into()).collect(),
            of_config: NO_VECTOR.into(),
            table: Mutex::new(Table { entries, control: 0 }),
            routes,
        })
    }

    /// An eventfd for each vector, to be tied to a GSI.
    pub fn lines(&self) -> impl Iterator<Item = &IrqLine> {
        self.vectors.iter().map(|vector| &vector.line)
    }

    /// How many vectors there are.
    pub fn len(&self) -> usize {
        self.vectors.len()
    }

    /// Whether there are none; there is always one.
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fire(&self, vector: u16) {
        let Some(vector) = self.vectors.get(usize::from(vector)) else { return };
        if !vector.held.load(Ordering::SeqCst) {
            return vector.line.raise();
        }
        vector.pending.store(true, Ordering::SeqCst);
        // It may have been let go in between, before the bit was there to see.
        if !vector.held.load(Ordering::SeqCst) && vector.pending.swap(false, Ordering::SeqCst) {
            vector.line.raise();
        }
    }

    /// Used buffers are in a queue.
    pub fn queue(&self, queue: usize) {
        if let Some(vector) = self.of_queue.get(queue) {
            self.fire(vector.load(Ordering::SeqCst));
        }
    }

    /// The same for all queues.
    pub fn all_queues(&self) {
        (0..self.of_queue.len()).for_each(|queue| self.queue(queue));
    }

    /// The configuration changed.
    pub fn config(&self) {
        self.fire(self.of_config.load(Ordering::SeqCst));
    }

    /// The vector of a queue and its line, while a write to that is all that its
    /// interrupt takes.
    pub fn direct(&self, queue: usize) -> Option<(u16, &IrqLine)> {
        let number = self.vector(Some(queue));
        let vector = self.vectors.get(usize::from(number))?;
        (!vector.held.load(Ordering::SeqCst)).then_some((number, &vector.line))
    }

    /// The vector of a queue, or of the configuration.
    pub fn vector(&self, queue: Option<usize>) -> u16 {
        self.slot(queue).map_or(NO_VECTOR, |slot| slot.load(Ordering::SeqCst))
    }

    /// The driver gives a queue, or the configuration, a vector. One that does
    /// not exist becomes [`NO_VECTOR`], which the driver reads back.
    pub fn set_vector(&self, queue: Option<usize>, vector: u16) {
        let exists = usize::from(vector) < self.vectors.len();
        if let Some(slot) = self.slot(queue) {
            slot.store(if exists { vector } else { NO_VECTOR }, Ordering::SeqCst);
        }
    }

    fn slot(&self, queue: Option<usize>) -> Option<&AtomicU16> {
        match queue {
            Some(queue) => self.of_queue.get(queue),
            None => Some(&self.of_config),
        }
    }

    /// A reset of the device takes all vectors away; the table stays.
    pub fn forget_vectors(&self) {
        self.of_queue.iter().for_each(|slot| slot.store(NO_VECTOR, Ordering::SeqCst));
        self.of_config.store(NO_VECTOR, Ordering::SeqCst);
    }

    /// `Message Control` was written.
    pub fn set_control(&self, control: u16) {
        let mut table = self.table();
        table.control = control & (ENABLE | FUNCTION_MASK);
        self.apply(&table);
    }

    /// Reads the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let table = self.table();
        let bytes = |at: u64| {
            let entry = table.entries.get((at / ENTRY_SIZE) as usize)?;
            let word = entry[(at % ENTRY_SIZE / 4) as usize];
            Some(word.to_le_bytes()[(at % 4) as usize])
        };
        for (i, to) in data.iter_mut().enumerate() {
            *to = bytes(offset + i as u64).unwrap_or(0);
        }
    }

    /// Writes the table: aligned words and pairs of them (6.8.2).
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        let mut table = self.table();
        for (i, word) in data.chunks_exact(4).enumerate() {
            let at = offset + i as u64 * 4;
            let entry = table.entries.get_mut((at / ENTRY_SIZE) as usize);
            if let (Some(entry), Ok(word)) = (entry, <[u8; 4]>::try_from(word)) {
                entry[(at % ENTRY_SIZE / 4) as usize] = u32::from_le_bytes(word);
            }
        }
        self.apply(&table);
    }

    /// Reads the pending bits.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (i, to) in data.iter_mut().enumerate() {
            let first = (offset as usize + i) * 8;
            *to = (0..8).fold(0, |byte, bit| {
                let vector = self.vectors.get(first + bit);
                byte | u8::from(vector.is_some_and(|v| v.pending.load(Ordering::SeqCst))) << bit
            });
        }
    }

    /// Lets go what is no longer masked, and holds what is.
    fn apply(&self, table: &Table) {
        let all = table.control & ENABLE == 0 || table.control & FUNCTION_MASK != 0;
        for (number, (vector, entry)) in self.vectors.iter().zip(&table.entries).enumerate() {
            let [low, high, data, control] = *entry;
            let hold = all || control & MASKED != 0;
            let held = vector.held.load(Ordering::SeqCst);
            if held && !hold {
                self.routes.set(number, u64::from(high) << 32 | u64::from(low), data);
            }
            vector.held.store(hold, Ordering::SeqCst);
            if !hold && vector.pending.swap(false, Ordering::SeqCst) {
                vector.line.raise();
            }
        }
    }

    /// The state, while nothing happens.
    pub fn save(&self) -> MsixState {
        let load = |slot: &AtomicU16| slot.load(Ordering::SeqCst);
        MsixState {
            table: self.table().clone(),
            pending: self.vectors.iter().map(|v| v.pending.load(Ordering::SeqCst)).collect(),
            of_queue: self.of_queue.iter().map(load).collect(),
            of_config: load(&self.of_config),
        }
    }

    /// Takes over a saved state; whether it fits.
    pub fn restore(&self, state: &MsixState) -> bool {
        let fits = state.table.entries.len() == self.vectors.len()
            && state.pending.len() == self.vectors.len()
            && state.of_queue.len() == self.of_queue.len();
        if !fits {
            return false;
        }
        for (queue, vector) in state.of_queue.iter().enumerate() {
            self.set_vector(Some(queue), *vector);
        }
        self.set_vector(None, state.of_config);
        for (vector, pending) in self.vectors.iter().zip(&state.pending) {
            vector.pending.store(*pending, Ordering::SeqCst);
        }
        let mut table = self.table();
        *table = state.table.clone();
        self.apply(&table);
        true
    }
}
