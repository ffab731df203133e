//! Messages (MSI-X) and doorbells of PCI functions, as KVM holds them.
//!
//! Every vector has an eventfd that is tied to a GSI of its own once and for
//! all; what the GSI means is in KVM's routing table, which is written whole
//! whenever a guest lets a vector go.

use arch::layout::IOAPIC_PINS;
use devices::pci::msix::Routes;
use devices::virtio::pci::Doorbells;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// Lines of each 8259.
const PIC_LINES: u32 = 8;

/// The messages of the whole machine.
pub struct Messages {
    vm: Arc<VmFd>,
    wiring: Wiring,
    /// Address and data by GSI.
    routes: Mutex<BTreeMap<u32, (u64, u32)>>,
}

impl std::fmt::Debug for Messages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Messages").field("routes", &self.routes).finish_non_exhaustive()
    }
}

impl Messages {
    /// None yet.
    pub fn new(vm: Arc<VmFd>, wiring: Wiring) -> Arc<Self> {
        Arc::new(Self { vm, wiring, routes: Mutex::default() })
    }

    fn set(&self, gsi: u32, message: (u64, u32)) {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if routes.insert(gsi, message) == Some(message) {
            return;
        }
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
}

/// The routes of the interrupt controllers, which are replaced together with
/// those of messages.
pub fn irqchip_routes(wiring: Wiring) -> Vec<kvm_irq_routing_entry> {
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
}
