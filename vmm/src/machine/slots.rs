//! The virtio devices of a machine: opened before anything else happens, then
//! put behind transports and tied to KVM.

use super::board::{self, Board};
use super::console;
use super::error::Error;
use super::pc::Pc;
use super::pci::{PciBus, Placed, Plugged};
use super::usernet;
use crate::config::{self, Config, Format, NetBackend, Transport, Vhost};
use crate::memory::Ram;
use crate::vm::Vm;
use devices::backend::disk::{Disk, DiskError, Qcow2Disk, RawDisk};
use devices::backend::prepared::Prepared;
use devices::backend::segment::{self, Segment};
use devices::backend::share::Share;
use devices::backend::tap::{Queues, Tap};
use devices::backend::user;
use devices::backend::vhost::VhostNet;
use devices::backend::vsock::UnixSockets;
use devices::irq::IrqLine;
use devices::rate::{Limiter, Rate};
use devices::virtio::balloon::{self, Balloon};
use devices::virtio::block::{Block, Options};
use devices::virtio::fs::Fs;
use devices::virtio::mmio::{INTERRUPT_ACK, MmioTransport, QUEUE_NOTIFY};
use devices::virtio::net::{self, Net, derived_mac};
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
    pub balloon: Option<Arc<Mutex<Balloon>>>,
    /// The console, with its end of the user's terminal.
    pub console: Option<console::Opened>,
    /// One of them makes connections for the guest.
    pub networks: bool,
}

/// What is behind the first devices, in their order, by name: images, then
/// interfaces.
pub fn backends(config: &Config) -> impl Iterator<Item = String> {
    let disks = config.all_disks().map(|disk| disk.path.display().to_string());
    disks.chain(config.nets.iter().map(|net| net.backend.name().to_owned()))
}

/// Opens what is behind each device: disks, network cards, vsock, shares,
/// balloon, console, entropy.
pub fn open(config: &Config, streams: Option<Prepared>) -> Result<Devices, Error> {
    let mut devices = Devices::default();
    let choices = config.choices();
    for disk in config.all_disks().filter(|_| choices.virtio_disks()) {
        devices.slots.push(open_disk(config, disk)?);
    }
    for (number, net) in config.nets.iter().enumerate().filter(|_| choices.virtio_nets()) {
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
    if config.has_rng() {
        slots.push(open_rng(config.rng.as_ref())?);
    }
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

/// Opens and locks a disk's image.
pub fn open_image(disk: &config::Disk) -> Result<Box<dyn Disk>, Error> {
    Ok(match disk.format {
        Format::Raw => Box::new(RawDisk::open(&disk.path, disk.raw_options())?),
        Format::Qcow2 => Box::new(Qcow2Disk::open(&disk.path, disk.readonly)?),
    })
}

fn open_disk(config: &Config, disk: &config::Disk) -> Result<SharedBlock, Error> {
    block(config.cpus, disk, open_image(disk)?)
}

/// The block device on an image.
pub fn block(cpus: u32, disk: &config::Disk, image: Box<dyn Disk>) -> Result<SharedBlock, Error> {
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
        queues: disk.queues.unwrap_or(cpus) as u16,
        engine: disk.engine,
        limiter,
    };
    let block = Block::new(image, options).map_err(host("io_uring"))?;
    Ok(Arc::new(Mutex::new(block)))
}

/// Opens what a card without offloads is connected to; with the card's address.
pub fn open_wire(
    net: &config::Net,
    number: usize,
    networks: &mut bool,
) -> Result<(Box<dyn net::NetBackend>, [u8; 6]), Error> {
    Ok(match &net.backend {
        NetBackend::User(user) => {
            let mac = net.mac_bytes().unwrap_or_else(|| derived_mac(&format!("user{number}")));
            (usernet::open(user, mac, networks)?, mac)
        }
        NetBackend::Segment(segment) => (open_segment(segment)?, segment::mac(segment.station)),
        NetBackend::Tap(name) => {
            let mac = net.mac_bytes().unwrap_or_else(|| derived_mac(name));
            (Box::new(Tap::open(name)?), mac)
        }
    })
}

fn open_segment(segment: &config::Segment) -> Result<Box<dyn net::NetBackend>, Error> {
    Ok(Box::new(Segment::open(&segment.path, segment.station, segment.stations)?))
}

fn open_net(
    config: &Config,
    net: &config::Net,
    number: usize,
    networks: &mut bool,
) -> Result<Slot, Error> {
    match &net.backend {
        NetBackend::User(user) => {
            // Each card of the guest needs another address.
            let mut options = card_options(net, &format!("user{number}"))?;
            options.mtu = Some(user::MTU);
            let network = usernet::open(user, options.mac, networks)?;
            card(options, vec![network])
        }
        NetBackend::Segment(segment) => {
            let mut options = card_options(net, "segment")?;
            // By its address others find the station's socket.
            options.mac = segment::mac(segment.station);
            options.mtu = Some(segment::MTU);
            card(options, vec![open_segment(segment)?])
        }
        NetBackend::Tap(tap) => {
            let (pairs, fewer) = net.pairs(config.cpus);
            let wanted = if fewer { Queues::UpTo(pairs) } else { Queues::Exactly(pairs) };
            let mut taps = Tap::open_queues(tap, wanted)?;
            if let (Some(mtu), Some(tap)) = (net.mtu, taps.first_mut()) {
                tap.require_mtu(mtu)?;
            }
            let vhost = open_vhost(net, taps.len())?;
            tap_card(net, tap, taps, vhost)
        }
    }
}

/// The network card on the queues of an interface.
pub fn tap_card(
    net: &config::Net,
    name: &str,
    taps: Vec<Tap>,
    vhost: Vec<VhostNet>,
) -> Result<Slot, Error> {
    let mut options = card_options(net, name)?;
    options.mtu = taps.first().and_then(|tap| tap.mtu);
    options.vhost = vhost;
    card(options, taps.into_iter().map(|tap| Box::new(tap) as Box<_>).collect())
}

fn card(options: net::Options, backends: Vec<Box<dyn net::NetBackend>>) -> Result<Slot, Error> {
    let net = Net::new(options, backends).map_err(Error::host("eventfd"))?;
    Ok(Arc::new(Mutex::new(net)))
}

/// Address and limits of a card; without an address of its own it has one that
/// is made of `name`.
fn card_options(net: &config::Net, name: &str) -> Result<net::Options, Error> {
    let mac = net.mac_bytes().unwrap_or_else(|| derived_mac(name));
    let limiter = || -> Result<Option<Limiter>, Error> {
        let (bytes, frames) = (net.rate.map(|l| l.0), net.ops.map(|l| l.0));
        let wanted = bytes.is_some() || frames.is_some();
        wanted.then(|| Limiter::new(bytes, frames)).transpose().map_err(Error::host("timerfd"))
    };
    // Each direction has its own.
    let (receive, transmit) = (limiter()?, limiter()?);
    Ok(net::Options { mac, receive, transmit, ..net::Options::default() })
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

/// A device on the board, with what serves it on the event loop.
pub struct Connected {
    /// What serves it.
    pub worker: Worker,
    /// Its function, if it is one.
    pub plugged: Option<Plugged>,
}

/// Puts each device on the board; with PCI, also returns the bus for others to
/// be put on later.
pub fn connect(
    config: &Config,
    slots: Vec<Slot>,
    vm: &Vm,
    ram: &Ram,
    board: &mut Board,
    pc: Option<&Pc>,
) -> Result<(Vec<Connected>, Option<PciBus>), Error> {
    match config.transport() {
        Transport::Mmio => Ok((connect_mmio(slots, vm, ram, board)?, None)),
        Transport::Pci => {
            let bus = PciBus::new(vm, ram.clone(), pc);
            let mut connected = Vec::with_capacity(slots.len());
            for device in slots.into_iter() {
                let (plugged, worker) = bus.plug(device, Placed::Already)?;
                connected.push(Connected { worker, plugged: Some(plugged) });
            }
            board.add_pci(bus.root())?;
            Ok((connected, Some(bus)))
        }
    }
}

fn connect_mmio(
    slots: Vec<Slot>,
    vm: &Vm,
    ram: &Ram,
    board: &mut Board,
) -> Result<Vec<Connected>, Error> {
    let mut connected = Vec::with_capacity(slots.len());
    for (number, device) in slots.into_iter().enumerate() {
        let slot = board::virtio_slot(number);
        let line = IrqLine::new().map_err(Error::host("eventfd"))?;
        vm.connect_irq(&line, slot.gsi)?;
        let interrupt = Arc::new(Interrupt::new(line));
        let transport = MmioTransport::new(ram.clone(), device, interrupt);
        let transport = transport.map_err(Error::host("eventfd"))?;
        vm.connect_doorbells(slot.base + QUEUE_NOTIFY, transport.doorbells())?;
        // An acknowledgement counts when the causes are read again.
        vm.take_writes(slot.base + INTERRUPT_ACK)?;
        connected.push(Connected { worker: transport.worker(), plugged: None });
        board.add_virtio(number, Arc::new(Mutex::new(transport)))?;
    }
    Ok(connected)
}
