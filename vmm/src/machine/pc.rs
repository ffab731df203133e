//! The motherboard of a PC: the chips of the i440FX and the PIIX, IDE drives,
//! and the cards that were made for it.
//!
//! ```text
//!  00:00.0 i440FX ─ 00:01 PIIX ─┬─ .0 ISA bridge: PIRQA..D ─► IRQ 10, 11 ─► PIC, IOAPIC
//!                               ├─ .1 IDE ─ 1F0, 170 ─► IRQ 14, 15
//!                               └─ .3 power management ─► SCI, IRQ 9
//!  00:02 and on: network cards, virtio devices
//! ```

use super::board::Board;
use super::error::Error;
use super::slots::{open_image, open_wire};
use crate::config::{Config, DiskBus, NetModel};
use crate::intr::{Controllers, IoApicPage, LocalApicPage, Ports};
use crate::memory::Ram;
use crate::metrics::Metrics;
use crate::vm::Vm;
use arch::acpi::{self, PciInterrupt};
use arch::layout;
use devices::backend::disk::{Disk, RawDisk, RawOptions};
use devices::bus::lock;
use devices::irq::IrqLine;
use devices::legacy::ide::{self, Channel, Ide, Kind, SharedChannel, Unit};
use devices::legacy::nic::{self, Ne2000, Place, Rtl8139};
use devices::legacy::piix::pm::{self, PowerManagement};
use devices::legacy::piix::{DEVICE as PIIX, HARD_RESET, HostBridge, IsaBridge, RESET_CONTROL};
use devices::legacy::{ioapic, lapic, pic, pit};
use devices::pci::intx::{InterruptInputs, Router, STANDARD_ROUTES, line_of};
use devices::pci::root::SharedFunction;
use devices::virtio::net::NetBackend;
use kvm_ioctls::VmFd;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

/// Drives and cards, opened before anything else happens.
#[derive(Default)]
pub struct Parts {
    drives: VecDeque<Drive>,
    cards: Vec<(Box<dyn NetBackend>, [u8; 6])>,
    model: Option<NetModel>,
}

struct Drive {
    kind: Kind,
    image: Box<dyn Disk>,
    serial: String,
    dma: bool,
}

/// Opens what is behind IDE drives and cards that are not virtio's.
/// Sets `networks` where the event loop will make connections for a card.
pub fn open(config: &Config, networks: &mut bool) -> Result<Parts, Error> {
    let choices = config.choices();
    let mut parts = Parts { model: Some(choices.net_model), ..Parts::default() };
    if !choices.virtio_disks() {
        for (number, disk) in config.all_disks().enumerate() {
            let serial = disk.serial.clone().unwrap_or_else(|| format!("MICROVM{number}"));
            let dma = choices.disk_bus != DiskBus::IdePio;
            let image = open_image(disk)?;
            parts.drives.push_back(Drive { kind: Kind::Disk, image, serial, dma });
        }
    }
    if let Some(path) = &config.cdrom {
        let options = RawOptions { read_only: true, ..RawOptions::default() };
        let image = Box::new(RawDisk::open(path, options)?);
        let (serial, dma) = ("MICROVMCD".to_owned(), choices.disk_bus != DiskBus::IdePio);
        parts.drives.push_back(Drive { kind: Kind::Cd, image, serial, dma });
    }
    for (number, net) in config.nets.iter().enumerate().filter(|_| !choices.virtio_nets()) {
        parts.cards.push(open_wire(net, number, networks)?);
    }
    Ok(parts)
}

/// KVM's interrupt controllers.
struct KvmInputs(Arc<VmFd>);

impl InterruptInputs for KvmInputs {
    fn set(&self, irq: u32, level: bool) {
        if let Err(e) = self.0.set_irq_line(irq, level) {
            log::error!("KVM_IRQ_LINE: {e}: interrupt {irq} will be lost");
        }
    }
}

/// Puts interrupt controllers and timers where KVM would have its own.
pub fn add_controllers(controllers: &Arc<Controllers>, board: &mut Board) -> Result<(), Error> {
    let ranges = [
        (pic::MASTER, pic::SIZE),
        (pic::SLAVE, pic::SIZE),
        (pic::ELCR, pic::SIZE),
        (pit::BASE, pit::SIZE),
        (pit::PORT_B, 1),
    ];
    for (base, size) in ranges {
        board.add_ports(base, size, Ports { controllers: controllers.clone(), base })?;
    }
    let page = IoApicPage(controllers.clone());
    board.add_memory(layout::IOAPIC.into(), ioapic::SIZE, page)?;
    if controllers.is_split() {
        return Ok(());
    }
    board.add_memory(layout::LOCAL_APIC.into(), lapic::SIZE, LocalApicPage(controllers.clone()))
}

/// A motherboard that is being put together.
pub struct Pc {
    /// The host bridge, device 0.
    pub bridge: SharedFunction,
    /// The devices behind it, from device 1 on.
    pub functions: Vec<SharedFunction>,
    /// What serves drives on the event loop.
    pub drives: Vec<ide::Worker>,
    /// What serves network cards.
    pub cards: Vec<nic::Worker>,
    /// Power management, with the power button.
    pub power: Arc<Mutex<PowerManagement>>,
}

/// Where the BARs of device `number` are first: a part of each window.
pub fn bars(number: u8) -> (u32, u16) {
    const MEMORY: u32 = (layout::PCI_WINDOW_SIZE / 32) as u32;
    const PORTS: u16 = (layout::PCI_PORTS_SIZE / 32) as u16;
    let place = u32::from(number.saturating_sub(1));
    (layout::PCI_WINDOW as u32 + place * MEMORY, layout::PCI_PORTS + place as u16 * PORTS)
}

impl Pc {
    /// Puts the chips on the board.
    pub fn build(parts: Parts, vm: &Vm, ram: &Ram, board: &mut Board) -> Result<Self, Error> {
        let inputs: Arc<dyn InterruptInputs> = match &vm.controllers {
            Some(controllers) => controllers.clone(),
            None => Arc::new(KvmInputs(vm.fd.clone())),
        };
        let router = Router::new(inputs.clone());
        let Parts { drives, cards, model } = parts;
        let channels = channels(drives, vm)?;
        let mut workers = Vec::new();
        for (i, channel) in channels.iter().enumerate() {
            board.add_ports(
                ide::COMMAND_PORTS[i],
                ide::COMMAND_SIZE,
                ide::CommandPorts(channel.clone()),
            )?;
            board.add_ports(ide::CONTROL_PORTS[i], 1, ide::ControlPort(channel.clone()))?;
            workers.push(ide::Worker::new(channel.clone(), ram.clone()));
        }
        let power = Arc::new(Mutex::new(PowerManagement::new(inputs, board.power())));
        board.add_shared(pm::BASE, pm::SIZE, power.clone())?;
        if board.has_firmware() {
            board.add_shared(pm::FIRMWARE_BASE, pm::SIZE, power.clone())?;
        }
        let ide: SharedFunction = Arc::new(Mutex::new(Ide::new(channels, bars(PIIX).1)));
        let isa = IsaBridge::new(router.clone(), Some(ide), power.clone());
        let mut functions: Vec<SharedFunction> = vec![Arc::new(Mutex::new(isa))];
        let (mut interrupts, mut served) = (Vec::new(), Vec::new());
        for (device, (wire, mac)) in (PIIX + 1..).zip(cards) {
            let irq = STANDARD_ROUTES[line_of(device, INTA)];
            interrupts.push(PciInterrupt { device, pin: INTA, gsi: irq.into() });
            let (memory, ports) = bars(device);
            let place = Place { memory, ports, pin: router.pin(device, INTA), irq, mac };
            let (function, worker) = card(model, place, wire, ram).map_err(Error::host("net"))?;
            functions.push(function);
            served.push(worker);
        }
        board.describe_pc(acpi::Pc {
            event_block: pm::EVENT_BLOCK,
            control_block: pm::CONTROL_BLOCK,
            timer_block: pm::TIMER_BLOCK,
            sci: pm::SCI as u8,
            soft_off: pm::SUS_TYP_OFF,
            reset: (RESET_CONTROL, HARD_RESET),
            interrupts,
            window: match board.has_firmware() {
                true => (layout::PCI_FIRMWARE_WINDOW, layout::PCI_FIRMWARE_WINDOW_SIZE),
                false => (layout::PCI_WINDOW, layout::PCI_WINDOW_SIZE),
            },
        });
        let bridge: SharedFunction = Arc::new(Mutex::new(HostBridge::new()));
        Ok(Self { bridge, functions, drives: workers, cards: served, power })
    }
}

impl Pc {
    /// Has drives and cards counted.
    pub fn count(&self, metrics: &Metrics) {
        for worker in &self.drives {
            for drive in 0..ide::DRIVES {
                let channel = worker.channel();
                if lock(&channel).counters(drive).is_none() {
                    continue;
                }
                let counters = move || lock(&channel).counters(drive).unwrap_or_default();
                metrics.add_part("ide", Box::new(counters));
            }
        }
        for worker in &self.cards {
            let card = worker.card();
            metrics.add_part("net", Box::new(move || lock(&card).wire().counters()));
        }
    }
}

/// The pin of a card of one function.
const INTA: u8 = 1;

/// A card of the model that was asked for.
fn card(
    model: Option<NetModel>,
    place: Place,
    wire: Box<dyn NetBackend>,
    ram: &Ram,
) -> io::Result<(SharedFunction, nic::Worker)> {
    if model == Some(NetModel::Ne2000) {
        let card = Arc::new(Mutex::new(Ne2000::new(place, wire)?));
        return Ok((card.clone(), nic::Worker::new(card)));
    }
    let card = Arc::new(Mutex::new(Rtl8139::new(place, ram.clone(), wire)?));
    Ok((card.clone(), nic::Worker::new(card)))
}

/// The channels with their drives: as many on each, in the order of their names
/// in the guest.
fn channels(mut drives: VecDeque<Drive>, vm: &Vm) -> Result<[SharedChannel; ide::CHANNELS], Error> {
    let first_half = drives.len().div_ceil(2);
    let mut channel = |irq: u32, count: usize| {
        let line = IrqLine::new().map_err(Error::host("eventfd"))?;
        vm.connect_irq(&line, irq)?;
        let units = std::array::from_fn(|number| {
            let drive = (number < count).then(|| drives.pop_front()).flatten()?;
            let Drive { kind, image, serial, dma } = drive;
            Some(Unit::new(kind, image, serial, dma))
        });
        let channel = Channel::new(units, line).map_err(Error::host("eventfd"))?;
        Ok::<_, Error>(Arc::new(Mutex::new(channel)))
    };
    let [first, second] = ide::IRQS;
    Ok([channel(first, first_half)?, channel(second, ide::DRIVES)?])
}
