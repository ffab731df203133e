//! The virtio devices of a machine: opened before anything else happens, then
//! put behind transports and tied to KVM.

use super::board::{self, Board};
use super::error::Error;
use crate::config::{self, Config, Format, Transport};
use crate::memory::Ram;
use crate::msi::{FunctionMessages, IoEvents, Messages};
use crate::vm::Vm;
use arch::layout;
use devices::backend::disk::{Disk, DiskError, Qcow2Disk, RawDisk, RawOptions};
use devices::backend::share::Share;
use devices::backend::tap::Tap;
use devices::backend::vsock::UnixSockets;
use devices::irq::IrqLine;
use devices::pci::root::{Root, SharedFunction};
use devices::rate::Limiter;
use devices::virtio::block::{Block, Options};
use devices::virtio::fs::Fs;
use devices::virtio::mmio::{MmioTransport, QUEUE_NOTIFY};
use devices::virtio::net::{Net, derived_mac};
use devices::virtio::pci::{BAR_SIZE, VirtioPci};
use devices::virtio::rng::Rng;
use devices::virtio::vsock::Vsock;
use devices::virtio::worker::Worker;
use devices::virtio::{Interrupt, SharedVirtio};
use std::sync::{Arc, Mutex};

/// A device that waits for its transport.
pub type Slot = SharedVirtio;

type SharedBlock = Arc<Mutex<Block>>;

/// Opens what is behind each device, in the order in which the guest numbers
/// them: disks, network cards, vsock, shares, entropy.
pub fn open(config: &Config) -> Result<Vec<Slot>, Error> {
    let mut slots: Vec<Slot> = Vec::new();
    for disk in config.all_disks() {
        slots.push(open_disk(config, disk)?);
    }
    for net in &config.nets {
        slots.push(open_net(net)?);
    }
    if let Some(vsock) = &config.vsock {
        slots.push(open_vsock(vsock)?);
    }
    for share in &config.shares {
        let directory = Share::open(&share.tag, &share.path, share.readonly)?;
        slots.push(Arc::new(Mutex::new(Fs::new(&share.tag, directory))));
    }
    slots.push(Arc::new(Mutex::new(Rng::new())));
    Ok(slots)
}

fn open_disk(config: &Config, disk: &config::Disk) -> Result<SharedBlock, Error> {
    let image: Box<dyn Disk> = match disk.format {
        Format::Raw => {
            let (offset, len) = (disk.offset.0, disk.size.map(|size| size.0));
            let options = RawOptions { read_only: disk.readonly, direct: disk.direct, offset, len };
            Box::new(RawDisk::open(&disk.path, options)?)
        }
        Format::Qcow2 => Box::new(Qcow2Disk::open(&disk.path, disk.readonly)?),
    };
    let host = |what| move |source| DiskError::Host { path: disk.path.clone(), what, source };
    let limiter = match (disk.rate, disk.ops) {
        (None, None) => None,
        (bytes, operations) => {
            let limiter = Limiter::new(bytes.map(|l| l.0), operations.map(|l| l.0));
            Some(limiter.map_err(host("timer"))?)
        }
    };
    let options = Options {
        serial: disk.serial.clone().unwrap_or_default(),
        queues: disk.queues.unwrap_or(config.cpus) as u16,
        engine: disk.engine,
        limiter,
    };
    let block = Block::new(image, options).map_err(host("io_uring"))?;
    Ok(Arc::new(Mutex::new(block)))
}

fn open_net(net: &config::Net) -> Result<Slot, Error> {
    let tap = Tap::open(&net.tap)?;
    let mac = net.mac_bytes().unwrap_or_else(|| derived_mac(&net.tap));
    let mtu = tap.mtu;
    Ok(Arc::new(Mutex::new(Net::new(mac, mtu, Box::new(tap)))))
}

fn open_vsock(vsock: &config::Vsock) -> Result<Slot, Error> {
    let sockets = UnixSockets::listen(&vsock.uds)?;
    Ok(Arc::new(Mutex::new(Vsock::new(vsock.cid, Box::new(sockets)))))
}

/// Puts each device on the board; returns what serves them on the event loop.
pub fn connect(
    config: &Config,
    slots: Vec<Slot>,
    vm: &Vm,
    ram: &Ram,
    board: &mut Board,
) -> Result<Vec<Worker>, Error> {
    match config.transport {
        Transport::Mmio => connect_mmio(slots, vm, ram, board),
        Transport::Pci => connect_pci(slots, vm, ram, board),
    }
}

fn connect_mmio(
    slots: Vec<Slot>,
    vm: &Vm,
    ram: &Ram,
    board: &mut Board,
) -> Result<Vec<Worker>, Error> {
    let mut workers = Vec::with_capacity(slots.len());
    for (number, device) in slots.into_iter().enumerate() {
        let slot = board::virtio_slot(number);
        let line = IrqLine::new().map_err(Error::host("eventfd"))?;
        vm.connect_irq(&line, slot.gsi)?;
        let interrupt = Arc::new(Interrupt::new(line));
        let transport = MmioTransport::new(ram.clone(), device, interrupt);
        let transport = transport.map_err(Error::host("eventfd"))?;
        vm.connect_doorbells(slot.base + QUEUE_NOTIFY, transport.doorbells())?;
        workers.push(transport.worker());
        board.add_virtio(number, Arc::new(Mutex::new(transport)))?;
    }
    Ok(workers)
}

/// A function each, whose vectors have GSIs of their own behind the IOAPIC's.
fn connect_pci(
    slots: Vec<Slot>,
    vm: &Vm,
    ram: &Ram,
    board: &mut Board,
) -> Result<Vec<Worker>, Error> {
    let messages = Messages::new(vm.fd.clone());
    let mut first_gsi = layout::IOAPIC_PINS;
    let mut functions: Vec<SharedFunction> = Vec::with_capacity(slots.len());
    let mut workers = Vec::with_capacity(slots.len());
    for (number, device) in slots.into_iter().enumerate() {
        let base = layout::PCI_WINDOW as u32 + number as u32 * BAR_SIZE;
        let routes = Box::new(FunctionMessages { machine: messages.clone(), first_gsi });
        let doorbells = Box::new(IoEvents(vm.fd.clone()));
        let function = VirtioPci::new(ram.clone(), device, base, routes, doorbells);
        let function = function.map_err(Error::host("eventfd"))?;
        for line in function.msix().lines() {
            vm.connect_irq(line, first_gsi)?;
            first_gsi += 1;
        }
        workers.push(function.worker());
        functions.push(Arc::new(Mutex::new(function)));
    }
    board.add_pci(Root::new(functions))?;
    Ok(workers)
}
