//! The virtio devices of a machine: opened before anything else happens, then
//! put behind transports and tied to KVM.

use super::board::{self, Board};
use super::console;
use super::error::Error;
use super::usernet;
use crate::config::{self, Config, Format, NetBackend, Transport, Vhost};
use crate::memory::Ram;
use crate::msi::{FunctionMessages, IoEvents, Messages};
use crate::vm::Vm;
use arch::layout;
use devices::backend::disk::{Disk, DiskError, Qcow2Disk, RawDisk, RawOptions};
use devices::backend::prepared::Prepared;
use devices::backend::share::Share;
use devices::backend::tap::{Queues, Tap};
use devices::backend::user;
use devices::backend::vhost::VhostNet;
use devices::backend::vsock::UnixSockets;
use devices::bus::lock;
use devices::irq::IrqLine;
use devices::pci::root::{Root, SharedFunction};
use devices::rate::{Limiter, Rate};
use devices::virtio::balloon::{self, Balloon};
use devices::virtio::block::{Block, Options};
use devices::virtio::fs::Fs;
use devices::virtio::mmio::{MmioTransport, QUEUE_NOTIFY};
use devices::virtio::net::{self, Net, derived_mac};
use devices::virtio::pci::{BAR_SIZE, VirtioPci};
use devices::virtio::rng::Rng;
use devices::virtio::vsock::{CIDS, Vsock};
use devices::virtio::worker::Worker;
use devices::virtio::{Interrupt, SharedVirtio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A device that waits for its transport.
pub type Slot = SharedVirtio;

type SharedBlock = Arc<Mutex<Block>>;

/// All of them, and those that someone has more to say to.
#[derive(Default)]
pub struct Devices {
    /// In the order in which the guest numbers them.
    pub slots: Vec<Slot>,
    /// For whoever changes its target while the machine runs.
    #[allow(dead_code)] // Nobody does yet.
    pub balloon: Option<Arc<Mutex<Balloon>>>,
    /// The console, with its end of the user's terminal.
    pub console: Option<console::Opened>,
    /// One of them makes connections for the guest.
    pub networks: bool,
}

impl Devices {
    /// Reports what each device has done.
    pub fn report(&self) {
        for slot in &self.slots {
            let device = lock(slot);
            let all = device.counters();
            if !all.is_empty() {
                let all: Vec<_> = all.iter().map(|(name, n)| format!("{name}={n}")).collect();
                log::info!("virtio {:?}: {}", device.id(), all.join(" "));
            }
        }
    }
}

/// Opens what is behind each device: disks, network cards, vsock, shares,
/// balloon, console, entropy.
pub fn open(config: &Config, streams: Option<Prepared>) -> Result<Devices, Error> {
    let mut devices = Devices::default();
    for disk in config.all_disks() {
        devices.slots.push(open_disk(config, disk)?);
    }
    for (number, net) in config.nets.iter().enumerate() {
        devices.slots.push(open_net(config, net, number, &mut devices.networks)?);
    }
    let Devices { slots, balloon, console, .. } = &mut devices;
    if let Some(vsock) = &config.vsock {
        slots.push(open_vsock(vsock)?);
    }
    if let Some(streams) = streams {
        let device = Vsock::new(*CIDS.start(), Box::new(streams));
        slots.push(Arc::new(Mutex::new(device)));
    }
    for share in &config.shares {
        let directory = Share::open(&share.tag, &share.path, share.readonly)?;
        slots.push(Arc::new(Mutex::new(Fs::new(&share.tag, directory))));
    }
    *balloon = config.balloon.as_ref().map(|b| open_balloon(b, config)).transpose()?;
    if let Some(balloon) = balloon {
        slots.push(balloon.clone());
    }
    *console = console::open(config)?;
    if let Some(console) = console {
        slots.push(console.device.clone());
    }
    slots.push(open_rng(config.rng.as_ref())?);
    Ok(devices)
}

fn open_balloon(wanted: &config::Balloon, config: &Config) -> Result<Arc<Mutex<Balloon>>, Error> {
    let options = balloon::Options {
        target: wanted.size.0,
        memory: config.memory.0,
        deflate_on_oom: wanted.deflate_on_oom,
        stats: wanted.stats.map(|seconds| Duration::from_secs(seconds.into())),
        reporting: wanted.free_page_reporting,
    };
    let balloon = Balloon::new(options).map_err(Error::host("timerfd"))?;
    Ok(Arc::new(Mutex::new(balloon)))
}

fn open_rng(wanted: Option<&config::Rng>) -> Result<Slot, Error> {
    let rng = match wanted {
        None => Rng::new(),
        Some(config::Rng { rate, burst }) => {
            let steady = Rate::steady(rate.0);
            let rate = Rate { burst: burst.map_or(steady.burst, |burst| burst.0), ..steady };
            let limiter = Limiter::new(Some(rate), None).map_err(Error::host("timerfd"))?;
            Rng::limited(limiter)
        }
    };
    Ok(Arc::new(Mutex::new(rng)))
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

fn open_net(
    config: &Config,
    net: &config::Net,
    number: usize,
    networks: &mut bool,
) -> Result<Slot, Error> {
    let name = match &net.backend {
        NetBackend::Tap(tap) => tap.clone(),
        // Each card of the guest needs another address.
        NetBackend::User(_) => format!("user{number}"),
    };
    let mac = net.mac_bytes().unwrap_or_else(|| derived_mac(&name));
    let limiter = || -> Result<Option<Limiter>, Error> {
        let (bytes, frames) = (net.rate.map(|l| l.0), net.ops.map(|l| l.0));
        let wanted = bytes.is_some() || frames.is_some();
        wanted.then(|| Limiter::new(bytes, frames)).transpose().map_err(Error::host("timerfd"))
    };
    // Each direction has its own.
    let (receive, transmit) = (limiter()?, limiter()?);
    let mut options = net::Options { mac, receive, transmit, ..net::Options::default() };
    let mut backends: Vec<Box<dyn net::NetBackend>> = Vec::new();
    match net.user() {
        Some(user) => {
            options.mtu = Some(user::MTU);
            backends.push(usernet::open(user, mac, networks)?);
        }
        None => {
            let (pairs, fewer) = net.pairs(config.cpus);
            let wanted = if fewer { Queues::UpTo(pairs) } else { Queues::Exactly(pairs) };
            let mut taps = Tap::open_queues(&name, wanted)?;
            if let (Some(mtu), Some(tap)) = (net.mtu, taps.first_mut()) {
                tap.require_mtu(mtu)?;
            }
            options.mtu = taps.first().and_then(|tap| tap.mtu);
            options.vhost = open_vhost(net, taps.len())?;
            backends.extend(taps.into_iter().map(|tap| Box::new(tap) as Box<_>));
        }
    }
    let net = Net::new(options, backends).map_err(Error::host("eventfd"))?;
    Ok(Arc::new(Mutex::new(net)))
}

/// The kernel's data path for each pair of queues, if it is wanted and can be had.
fn open_vhost(net: &config::Net, pairs: usize) -> Result<Vec<VhostNet>, Error> {
    let unlimited = net.rate.is_none() && net.ops.is_none();
    if net.vhost == Vhost::Off || !unlimited {
        return Ok(Vec::new());
    }
    let opened: std::io::Result<Vec<_>> = (0..pairs).map(|_| VhostNet::open()).collect();
    match opened {
        Err(e) if net.vhost == Vhost::Auto => {
            log::info!("net {}: without vhost: {e}", net.backend.name());
            Ok(Vec::new())
        }
        Err(source) => Err(Error::Vhost { net: net.backend.name().to_owned(), source }),
        Ok(vhost) => Ok(vhost),
    }
}

fn open_vsock(vsock: &config::Vsock) -> Result<Slot, Error> {
    let sockets = UnixSockets::listen(&vsock.uds)?;
    Ok(Arc::new(Mutex::new(Vsock::new(vsock.cid, Box::new(sockets)))))
}

/// Puts each device on the board; returns what serves them on the event loop.
pub fn connect(
    config: &Config,
    slots: &[Slot],
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
    slots: &[Slot],
    vm: &Vm,
    ram: &Ram,
    board: &mut Board,
) -> Result<Vec<Worker>, Error> {
    let mut workers = Vec::with_capacity(slots.len());
    for (number, device) in slots.iter().cloned().enumerate() {
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
    slots: &[Slot],
    vm: &Vm,
    ram: &Ram,
    board: &mut Board,
) -> Result<Vec<Worker>, Error> {
    let messages = Messages::new(vm.fd.clone());
    let mut first_gsi = layout::IOAPIC_PINS;
    let mut functions: Vec<SharedFunction> = Vec::with_capacity(slots.len());
    let mut workers = Vec::with_capacity(slots.len());
    for (number, device) in slots.iter().cloned().enumerate() {
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
