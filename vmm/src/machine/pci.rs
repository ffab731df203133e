//! Putting devices on the PCI bus and taking them off, before the guest runs and
//! while it does.
//!
//! ```text
//!  plug:   GSIs ─► function ─► irqfds ─► into its slot
//!  unplug: off the bus ─► queues dropped, ioeventfds untied, flushed ─► irqfds, GSIs
//! ```

use super::error::Error;
use super::pc::Pc;
use crate::memory::Ram;
use crate::msi::{FunctionMessages, IoEvents, Messages};
use crate::vm::Vm;
use arch::layout;
use devices::bus::lock;
use devices::pci::root::{Root, SharedFunction};
use devices::virtio::SharedVirtio;
use devices::virtio::pci::{BAR_SIZE, VirtioPci};
use devices::virtio::worker::Worker;
use kvm_ioctls::VmFd;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// The PCI bus of a machine.
pub struct PciBus {
    vm: Arc<VmFd>,
    ram: Ram,
    root: Arc<Root>,
    messages: Arc<Messages>,
    /// Slots that a function was torn out of: the guest may still believe that
    /// it is there, and would not look at another one.
    torn: u32,
}

/// Who finds a place for a function's BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// We do, as firmware does before the guest starts.
    Already,
    /// The guest does, as it finds the function.
    Later,
}

/// A device on the bus.
pub struct Plugged {
    /// Its slot.
    pub slot: usize,
    function: Arc<Mutex<VirtioPci>>,
    gsis: Range<u32>,
}

impl PciBus {
    /// A bus with nothing on it, or with what is on a motherboard.
    pub fn new(vm: &Vm, ram: Ram, pc: Option<&Pc>) -> Self {
        let messages = vm.messages.clone();
        let root = match pc {
            Some(pc) => Root::behind(pc.bridge.clone(), pc.functions.clone()),
            None => Root::new(Vec::new()),
        };
        Self { vm: vm.fd.clone(), ram, root, messages, torn: 0 }
    }

    /// The bus as the guest sees it.
    pub fn root(&self) -> Arc<Root> {
        self.root.clone()
    }

    /// Puts a device into the first slot that is free; `worker` is yet to be
    /// added to an event loop.
    pub fn plug(&self, device: SharedVirtio, bar: Placed) -> Result<(Plugged, Worker), Error> {
        let full = || io::Error::other("all slots of the PCI bus are taken");
        let slot = self.root.free_slot(self.torn).ok_or_else(full).map_err(Error::host("PCI"))?;
        let vectors = lock(&device).queue_max_sizes().len() + 1;
        let gsis = self.messages.allocate(vectors).map_err(Error::host("PCI"))?;
        let function = self.function(device, slot, bar, gsis.start);
        let function = match function {
            Ok(function) => function,
            Err(error) => {
                self.messages.forget(&gsis);
                return Err(error);
            }
        };
        let worker = function.worker();
        let msix = function.msix().clone();
        if let Err(error) = self.messages.connect(&msix, &gsis) {
            self.messages.release(&msix, &gsis);
            return Err(Error::host("KVM_IRQFD")(error));
        }
        let function = Arc::new(Mutex::new(function));
        self.root.insert(slot, function.clone());
        Ok((Plugged { slot, function, gsis }, worker))
    }

    fn function(
        &self,
        device: SharedVirtio,
        slot: usize,
        bar: Placed,
        first_gsi: u32,
    ) -> Result<VirtioPci, Error> {
        let base = match bar {
            // Device 0 is the bridge, which has none.
            Placed::Already => layout::PCI_WINDOW as u32 + (slot as u32 - 1) * BAR_SIZE,
            Placed::Later => 0,
        };
        let routes = Box::new(FunctionMessages { machine: self.messages.clone(), first_gsi });
        let doorbells = Box::new(IoEvents(self.vm.clone()));
        let function = VirtioPci::new(self.ram.clone(), device, base, routes, doorbells);
        function.map_err(Error::host("eventfd"))
    }

    /// Takes a device off the bus, whether or not the guest has let it go. Its
    /// worker is on no event loop any more. Fails when what the guest wrote could
    /// not be made durable; gone it is all the same.
    pub fn unplug(&mut self, plugged: Plugged) -> io::Result<()> {
        if self.root.remove(plugged.slot).is_some() {
            self.torn |= 1 << plugged.slot;
        }
        let mut function = lock(&plugged.function);
        let flushed = function.retire();
        self.messages.release(function.msix(), &plugged.gsis);
        flushed
    }
}

impl Plugged {
    /// Whether this is the function.
    pub fn is(&self, function: &SharedFunction) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.function), Arc::as_ptr(function))
    }
}
