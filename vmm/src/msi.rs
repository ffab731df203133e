//! Messages (MSI-X) and doorbells of PCI functions, as KVM holds them.
//!
//! Every vector has an eventfd that is tied to a GSI of its own once and for
//! all; what the GSI means is in KVM's routing table, which is written whole
//! whenever a guest lets a vector go.

use arch::layout::IOAPIC_PINS;
use devices::bus::lock;
use devices::pci::msix::{Msix, Routes};
use devices::virtio::pci::Doorbells;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_msi,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::EventFd;

/// Lines of each 8259.
const PIC_LINES: u32 = 8;

/// GSIs end here: KVM takes no longer table (`KVM_MAX_IRQ_ROUTES`), and the PIC's
/// lines are in it, too.
const END: u32 = 4096 - 2 * PIC_LINES;

/// The messages of the whole machine.
pub struct Messages {
    vm: Arc<VmFd>,
    wiring: Wiring,
    /// Address and data by GSI.
    routes: Mutex<BTreeMap<u32, (u64, u32)>>,
    gsis: Mutex<Gsis>,
}

/// Which GSIs functions have, behind the IOAPIC's: ranges by their first.
#[derive(Debug, Default)]
struct Gsis(BTreeMap<u32, u32>);

impl Gsis {
    /// The first room for `count` of them.
    fn take(&mut self, count: u32) -> Option<Range<u32>> {
        let mut first = IOAPIC_PINS;
        for (start, end) in &self.0 {
            if start.checked_sub(first).is_some_and(|room| room >= count) {
                break;
            }
            first = *end;
        }
        let end = first.checked_add(count).filter(|end| *end <= END)?;
        self.0.insert(first, end);
        Some(first..end)
    }

    fn give_back(&mut self, range: &Range<u32>) {
        self.0.remove(&range.start);
    }
}

impl std::fmt::Debug for Messages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Messages").field("routes", &self.routes).finish_non_exhaustive()
    }
}

impl Messages {
    /// None yet.
    pub fn new(vm: Arc<VmFd>, wiring: Wiring) -> Arc<Self> {
        Arc::new(Self { vm, wiring, routes: Mutex::default(), gsis: Mutex::default() })
    }

    /// GSIs for so many vectors, one after the other.
    pub fn allocate(&self, vectors: usize) -> io::Result<Range<u32>> {
        let gsis = u32::try_from(vectors).ok().and_then(|count| lock(&self.gsis).take(count));
        gsis.ok_or_else(|| io::Error::other("all interrupts of the machine are taken"))
    }

    /// Ties a function's eventfds to its GSIs.
    pub fn connect(&self, msix: &Msix, gsis: &Range<u32>) -> io::Result<()> {
        let mut pairs = msix.lines().zip(gsis.clone());
        let tied = pairs.try_for_each(|(line, gsi)| self.vm.register_irqfd(line.eventfd(), gsi));
        tied.map_err(|e| io::Error::from_raw_os_error(e.errno()))
    }

    /// Unties them and takes the GSIs back.
    pub fn release(&self, msix: &Msix, gsis: &Range<u32>) {
        for (line, gsi) in msix.lines().zip(gsis.clone()) {
            // One that could not be tied can't be untied.
            let _ = self.vm.unregister_irqfd(line.eventfd(), gsi);
        }
        let mut routes = lock(&self.routes);
        let before = routes.len();
        routes.retain(|gsi, _| !gsis.contains(gsi));
        if routes.len() != before {
            self.write(&routes);
        }
        drop(routes);
        self.forget(gsis);
    }

    /// Takes GSIs back that nothing was ever tied to.
    pub fn forget(&self, gsis: &Range<u32>) {
        lock(&self.gsis).give_back(gsis);
    }

    /// Makes pins of an IOAPIC that is the monitor's known to KVM, which tells of
    /// the end of an interrupt only if it is one of these.
    pub fn set_pins(&self, pins: impl Iterator<Item = (u32, (u64, u32))>) {
        let mut routes = lock(&self.routes);
        let mut changed = false;
        for (pin, message) in pins {
            changed |= routes.insert(pin, message) != Some(message);
        }
        if changed {
            self.write(&routes);
        }
    }

    /// Sends a message.
    pub fn send(&self, (address, data): (u64, u32)) {
        let (address_lo, address_hi) = (address as u32, (address >> 32) as u32);
        let message = kvm_msi { address_lo, address_hi, data, ..Default::default() };
        if let Err(e) = self.vm.signal_msi(message) {
            log::error!("KVM_SIGNAL_MSI: {e}: an interrupt is lost");
        }
    }

    fn set(&self, gsi: u32, message: (u64, u32)) {
        let mut routes = lock(&self.routes);
        if routes.insert(gsi, message) != Some(message) {
            self.write(&routes);
        }
    }

    /// Gives KVM the whole table.
    fn write(&self, routes: &BTreeMap<u32, (u64, u32)>) {
        let mut entries = irqchip_routes(self.wiring);
        entries.extend(routes.iter().map(|(gsi, message)| message_route(*gsi, *message)));
        let table = KvmIrqRouting::from_entries(&entries);
        let done = table.map_err(|_| kvm_ioctls::Error::new(libc::E2BIG));
        if let Err(e) = done.and_then(|table| self.vm.set_gsi_routing(&table)) {
            log::error!("KVM_SET_GSI_ROUTING: {e}: an interrupt will be lost");
        }
    }
}

/// How interrupts reach the IOAPIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wiring {
    /// Each its own pin, as KVM_CREATE_IRQCHIP sets it up (`default_routing` in
    /// `irq_comm.c`).
    Straight,
    /// As on a PC: the timer's, 0, comes to pin 2.
    Pc,
    /// The IOAPIC is the monitor's: to KVM its pins are messages like all others.
    Messages,
}

/// The routes of the interrupt controllers, which are replaced together with
/// those of messages.
pub fn irqchip_routes(wiring: Wiring) -> Vec<kvm_irq_routing_entry> {
    if wiring == Wiring::Messages {
        return Vec::new();
    }
    let entry = |gsi, irqchip, pin| {
        let mut entry =
            kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
        entry.u.irqchip.irqchip = irqchip;
        entry.u.irqchip.pin = pin;
        entry
    };
    let pic = (0..2 * PIC_LINES).map(|gsi| match gsi {
        0..PIC_LINES => entry(gsi, KVM_IRQCHIP_PIC_MASTER, gsi),
        _ => entry(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - PIC_LINES),
    });
    let ioapic = (0..IOAPIC_PINS).filter_map(|gsi| match (wiring, gsi) {
        (Wiring::Pc, 0) => Some(entry(0, KVM_IRQCHIP_IOAPIC, 2)),
        (Wiring::Pc, 2) => None,
        _ => Some(entry(gsi, KVM_IRQCHIP_IOAPIC, gsi)),
    });
    pic.chain(ioapic).collect()
}

fn message_route(gsi: u32, (address, data): (u64, u32)) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = address as u32;
    entry.u.msi.address_hi = (address >> 32) as u32;
    entry.u.msi.data = data;
    entry
}

/// The messages of one function, whose vectors have consecutive GSIs.
#[derive(Debug)]
pub struct FunctionMessages {
    /// All of them.
    pub machine: Arc<Messages>,
    /// The GSI of vector 0.
    pub first_gsi: u32,
}

impl Routes for FunctionMessages {
    fn set(&self, vector: usize, address: u64, data: u32) {
        self.machine.set(self.first_gsi + vector as u32, (address, data));
    }
}

/// Doorbells as ioeventfds.
pub struct IoEvents(pub Arc<VmFd>);

impl Doorbells for IoEvents {
    fn moved(&self, doorbells: &[Arc<EventFd>], step: u64, from: Option<u64>, to: u64) {
        for (doorbell, at) in doorbells.iter().zip((0u64..).map(|i| i * step)) {
            if let Some(from) = from {
                let old = IoEventAddress::Mmio(from + at);
                let _ = self.0.unregister_ioevent(doorbell, &old, NoDatamatch);
            }
            let new = IoEventAddress::Mmio(to + at);
            // Without it a doorbell is an exit, and the transport rings it.
            if let Err(e) = self.0.register_ioevent(doorbell.as_ref(), &new, NoDatamatch) {
                log::warn!("KVM_IOEVENTFD: {e}: doorbells at {to:#x} are slow");
            }
        }
    }

    fn removed(&self, doorbells: &[Arc<EventFd>], step: u64, from: u64) {
        for (doorbell, at) in doorbells.iter().zip((0u64..).map(|i| i * step)) {
            // One that could not be tied can't be untied.
            let old = IoEventAddress::Mmio(from + at);
            let _ = self.0.unregister_ioevent(doorbell, &old, NoDatamatch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn gsis_are_never_given_twice_and_come_back(
            steps in prop::collection::vec((0usize..8, 1u32..400), 0..80)
        ) {
            let mut gsis = Gsis::default();
            let mut held: Vec<Range<u32>> = Vec::new();
            for (which, count) in steps {
                if which < held.len() {
                    gsis.give_back(&held.swap_remove(which));
                } else if let Some(new) = gsis.take(count) {
                    prop_assert!(new.start >= IOAPIC_PINS && new.end <= END);
                    prop_assert_eq!(new.len(), count as usize);
                    prop_assert!(held.iter().all(|h| h.end <= new.start || new.end <= h.start));
                    held.push(new);
                }
            }
            held.iter().for_each(|range| gsis.give_back(range));
            prop_assert_eq!(gsis.take(END - IOAPIC_PINS), Some(IOAPIC_PINS..END));
        }
    }
}
