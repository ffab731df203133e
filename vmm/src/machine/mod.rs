//! A machine, from its configuration to its end.
//!
//! ```text
//!  inputs opened and checked ─► KVM ─► RAM ─► devices on the buses ─► kernel loaded
//!        │                                                                │
//!        └── any error: nothing was touched              vCPU threads ◄───┘
//!                                                     event loop (this thread) ─► Exit
//! ```

mod bios;
mod board;
mod console;
mod error;
mod limits;
mod operator;
mod pc;
mod pci;
mod slots;
mod usernet;

pub use error::Error;

use crate::config::{BoardKind, Config, Intr, MetricsTarget, NetBackend};
use crate::console::input::{Input, InputSink};
use crate::console::signals;
use crate::console::terminal::RawTerminal;
use crate::control::Server;
use crate::ending::Ending;
use crate::events::{EndWatch, ResizeWatch, SignalWatch};
use crate::exit::Exit;
use crate::host;
use crate::intr;
use crate::memory::{self, Ram};
use crate::metrics::kvm::Statistics;
use crate::metrics::{self, Metrics, Serve};
use crate::msi::Wiring;
use crate::record::Recorder;
use crate::sandbox;
use crate::vcpu::{self, Buses, Late, Running, Vcpu};
use crate::vm::{self, Chips, Vm};
use arch::registers::Entry;
use boot::{Firmware, Initrd, Kernel, Payload, Way, firmware};
use devices::backend::console::Loss;
use devices::backend::prepared::Prepared;
use devices::bus::lock;
use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use operator::{Operator, Parts};
use pc::Pc;
use pci::PciBus;
use slots::{Connected, Devices};
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress};

type Events = EventManager<Arc<Mutex<dyn MutEventSubscriber + Send>>>;

/// How long output may take to drain once the guest has ended.
const DRAIN: Duration = Duration::from_secs(5);

/// What the guest starts from.
enum What {
    Kernel(Kernel),
    Firmware(Firmware),
}

impl What {
    fn open(config: &Config) -> Result<Self, Error> {
        if config.choices().board != BoardKind::Bios {
            return Ok(Self::Kernel(Kernel::open(&config.kernel)?));
        }
        let path = config.firmware.as_deref().unwrap_or(firmware::STANDARD.as_ref());
        Ok(Self::Firmware(Firmware::open(path)?))
    }
}

/// What the user gave, opened and checked before anything else happens.
struct Inputs {
    what: What,
    initrd: Option<Initrd>,
    cmdline: String,
    devices: Devices,
    parts: pc::Parts,
    metrics: Option<metrics::Target>,
    control: Option<Server>,
}

impl Inputs {
    fn open(config: &Config, streams: Option<Prepared>) -> Result<Self, Error> {
        config.validate()?;
        let what = What::open(config)?;
        let initrd = config.initrd.as_deref().map(Initrd::open).transpose()?;
        let mut devices = slots::open(config, streams)?;
        let parts = pc::open(config, &mut devices.networks)?;
        let cmdline = board::cmdline(config, devices.slots.len());
        let metrics = config.metrics.as_ref().map(metrics::open).transpose()?;
        let control = config.control.as_deref().map(Server::listen).transpose()?;
        let inputs = Self { what, initrd, cmdline, devices, parts, metrics, control };
        if let What::Kernel(kernel) = &inputs.what {
            boot::load::check(&inputs.payload(kernel, config, 0))?;
        }
        Ok(inputs)
    }

    /// What is loaded, once it is known where the RSDP is.
    fn payload<'a>(&'a self, kernel: &'a Kernel, config: &Config, rsdp: u64) -> Payload<'a> {
        Payload {
            kernel,
            initrd: self.initrd.as_ref(),
            cmdline: &self.cmdline,
            memory: config.memory.0,
            rsdp,
            way: match config.choices().board {
                BoardKind::Real16 => Way::RealMode,
                _ => Way::Direct,
            },
        }
    }
}

/// What a machine has beside its configuration: things without a name.
#[derive(Default)]
pub struct Attached {
    /// Where the signals that end it are read
    /// ([`crate::console::signals::signal_fd`]), unless they are somebody else's.
    pub signals: Option<File>,
    /// What the guest reaches at the host's ports of a vsock.
    pub streams: Option<Prepared>,
    /// For whoever else may end it.
    pub ending: Option<Ending>,
    /// Gives up what a machine that is built needs no more.
    pub confine: Option<Confine>,
    /// Records what the guest does to its devices.
    pub recorder: Option<Arc<Recorder>>,
}

/// Done once everything is open and nothing of the guest has run.
pub type Confine = Box<dyn FnOnce() -> io::Result<()>>;

/// Runs the machine that `config` describes to its end.
pub fn run(config: &Config, attached: Attached) -> Result<Exit, Error> {
    limits::keep_one_heap();
    limits::raise_descriptors();
    let has_streams = attached.streams.is_some();
    let mut inputs = Inputs::open(config, attached.streams)?;
    let kvm = host::open_kvm(host::KVM_DEVICE.as_ref())?;
    if !config.skip_probe {
        host::can_run_linux(&kvm)?;
    }

    log::info!("mode {}: {}", config.mode, config.row());
    let choices = config.choices();
    let vm = Vm::new(&kvm, config.cpus, vm_options(config))?;
    let ram = memory::allocate(config.memory.0)?;
    vm.set_memory(&ram)?;
    let vcpus: Vec<_> =
        (0..config.cpus).map(|cpu| vm.vcpu(cpu, config.cpus)).collect::<Result<_, _>>()?;

    let ending = match attached.ending {
        Some(ending) => ending,
        None => Ending::new().map_err(Error::host("eventfd"))?,
    };
    let mut board = board::Board::new(config, &vm, &ending)?;
    if let Some(controllers) = &vm.controllers {
        pc::add_controllers(controllers, &mut board)?;
    }
    let pc = match choices.has_board() {
        true => Some(Pc::build(std::mem::take(&mut inputs.parts), &vm, &ram, &mut board)?),
        false => None,
    };
    // No handle on a device is left here: it could not leave the machine.
    let devices = std::mem::take(&mut inputs.devices.slots);
    let (virtio, bus) = slots::connect(config, devices, &vm, &ram, &mut board, pc.as_ref())?;
    let entry = match &inputs.what {
        What::Kernel(kernel) => {
            let rsdp = board.describe(&ram, config.cpus)?;
            boot::load(&ram, &inputs.payload(kernel, config, rsdp))?
        }
        // It puts the tables together by itself.
        What::Firmware(firmware) => {
            bios::add_devices(config, &ram, &mut board)?;
            firmware.shadow(&ram)?;
            let (base, image) = firmware.rom();
            vm.set_rom(base, image)?;
            Entry::Reset
        }
    };
    vm.enter(&vcpus[0], entry)?;

    let counters = Arc::new(Metrics::new(&vcpus));
    let mut events = Events::new().map_err(Error::events)?;
    let mut operator = match inputs.control.take() {
        Some(server) => {
            let parts = Parts {
                hot_plug: board.hot_plug(),
                button: board.button(pc.as_ref()),
                balloon: inputs.devices.balloon.clone(),
                metrics: counters.clone(),
                ending: ending.clone(),
            };
            Some(operate(server, config, bus, parts, virtio, &mut events)?)
        }
        None => {
            for Connected { worker, .. } in virtio {
                counters.add(&worker);
                add(&mut events, worker);
            }
            None
        }
    };
    if let Some(pc) = pc {
        pc.count(&counters);
        pc.drives.into_iter().for_each(|worker| add(&mut events, worker));
        pc.cards.into_iter().for_each(|worker| add(&mut events, worker));
    }
    add(&mut events, EndWatch(ending.clone()));
    if let Some(signals) = attached.signals {
        add(&mut events, SignalWatch { signals, ending: ending.clone() });
    }
    // Kept here, so that its last report comes after the end.
    let mut reports: Option<Arc<Mutex<Serve>>> = None;
    if let Some(target) = inputs.metrics.take() {
        let serve = Arc::new(Mutex::new(Serve::new(counters.clone(), target)));
        events.add_subscriber(serve.clone());
        reports = Some(serve);
    }
    // From here on the terminal is the guest's, until this function returns.
    let terminal = match config.uses_stdio() {
        true => take_terminal(&inputs.devices, &board, &ending, &mut events)?,
        false => None,
    };

    if let Some(confine) = attached.confine {
        confine().map_err(Error::Confine)?;
    }
    let (buses, serial_output) = board.finish();
    if let Some(controllers) = &vm.controllers {
        add(&mut events, intr::Watch(controllers.clone()));
    }
    if let Some(recorder) = &attached.recorder {
        recorder.watch(vcpus.iter().filter_map(Statistics::open).collect());
        recorder.entered();
    }
    let shared = Shared { buses, ending: ending.clone(), recorder: attached.recorder };
    let running = start(vcpus, &shared, &counters, &vm, choices.has_board())?;
    limits::give_back_code();
    sandbox::event_loop(needs(config, &inputs.devices, has_streams)).install()?;
    while !ending.has_ended() {
        // An interrupted wait is no error: the loop looks at `ending` again.
        let _ = events.run();
        if let Some(operator) = &mut operator {
            operator.turn(&mut events);
        }
    }
    if let Some(controllers) = &vm.controllers {
        controllers.stop();
    }
    let crashed = stop(running);
    drop((operator, events, reports));
    let console = inputs.devices.console.as_ref().map(|console| console.outputs.as_slice());
    let outputs = console.unwrap_or_default().iter().chain([&serial_output]);
    let loss = outputs.filter_map(|output| output.finish(DRAIN)).next();
    drop(terminal);
    counters.report();
    let exit = ending.how().unwrap_or(Exit::Quit);
    Ok(crashed.unwrap_or_else(|| final_exit(exit, config, &ram, loss)))
}

/// What of the machine is KVM's business.
fn vm_options(config: &Config) -> vm::Options {
    let choices = config.choices();
    vm::Options {
        wiring: if choices.has_board() { Wiring::Pc } else { Wiring::Straight },
        chips: match choices.intr {
            Intr::User => Chips::User,
            Intr::Split => Chips::Split,
            Intr::Kernel | Intr::Pv => Chips::Kernel,
        },
        paravirtual: choices.paravirtual.then_some(config.pv_features.mask()),
    }
}

/// Puts the control socket and all devices on the event loop.
fn operate(
    mut server: Server,
    config: &Config,
    bus: Option<PciBus>,
    parts: Parts,
    devices: Vec<Connected>,
    events: &mut Events,
) -> Result<Operator, Error> {
    if let Some(registers) = &parts.hot_plug {
        server.wake_by(lock(registers).event().map_err(Error::host("eventfd"))?);
    }
    let server = Arc::new(Mutex::new(server));
    events.add_subscriber(server.clone());
    let mut operator = Operator::new(server, config, bus, parts);
    let mut backends = slots::backends(config);
    for Connected { worker, plugged } in devices {
        operator.attach(worker, plugged, backends.next(), events);
    }
    Ok(operator)
}

/// What the event loop does in this machine beside what it always does.
fn needs(config: &Config, devices: &Devices, streams: bool) -> sandbox::Needs {
    let target = config.metrics.as_ref().map(|metrics| &metrics.target);
    sandbox::Needs {
        local_sockets: config.has_sockets(),
        listening: matches!(target, Some(MetricsTarget::Socket(_))),
        shares: !config.shares.is_empty(),
        control: config.control.is_some(),
        networks: devices.networks,
        streams,
        segments: config.nets.iter().any(|net| matches!(net.backend, NetBackend::Segment(_))),
    }
}

/// Takes standard input, for whichever console it is.
fn take_terminal(
    devices: &Devices,
    board: &board::Board,
    ending: &Ending,
    events: &mut Events,
) -> Result<Option<RawTerminal>, Error> {
    let terminal = RawTerminal::stdin();
    let raw = terminal.is_some();
    let console = devices.console.as_ref();
    let Some((console, input)) = console.and_then(|c| Some((c, c.input.clone()?))) else {
        add(events, board.input(raw, ending)?);
        return Ok(terminal);
    };
    let quit = ending.clone();
    let sink: Box<dyn InputSink> = Box::new(console::PortSink(input));
    add(events, Input::stdin(sink, raw, move || quit.end(Exit::Quit)));
    if raw {
        let signals = signals::resize_fd().map_err(Error::host("signalfd"))?;
        add(events, ResizeWatch { signals, console: console.device.clone() });
    }
    Ok(terminal)
}

fn add(events: &mut Events, subscriber: impl MutEventSubscriber + Send + 'static) {
    events.add_subscriber(Arc::new(Mutex::new(subscriber)));
}

/// What all vCPUs have.
struct Shared {
    buses: Buses,
    ending: Ending,
    recorder: Option<Arc<Recorder>>,
}

/// Starts a thread for each vCPU.
fn start(
    vcpus: Vec<kvm_ioctls::VcpuFd>,
    shared: &Shared,
    counters: &Metrics,
    vm: &Vm,
    board: bool,
) -> Result<Vec<Running>, Error> {
    vcpu::install_kick_handler().map_err(Error::host("signal handler"))?;
    let needs =
        sandbox::VcpuNeeds { board, chips: vm.chips(), statistics: shared.recorder.is_some() };
    let filter = Arc::new(sandbox::vcpu(needs));
    let late = vm.takes_writes.then(Late::default);
    let mut running = Vec::with_capacity(vcpus.len());
    for (id, mut fd) in vcpus.into_iter().enumerate() {
        if late.is_some() {
            let failed = |e: kvm_ioctls::Error| io::Error::from_raw_os_error(e.errno());
            fd.map_coalesced_mmio_ring().map_err(failed).map_err(Error::host("KVM's ring"))?;
        }
        let vcpu = Vcpu {
            id: id as u32,
            fd,
            buses: shared.buses.clone(),
            ending: shared.ending.clone(),
            counts: counters.exits(id),
            controllers: vm.controllers.clone(),
            late: late.clone(),
            recorder: shared.recorder.clone(),
        };
        let (filter, failed) = (filter.clone(), shared.ending.clone());
        let before = move || {
            if let Err(e) = filter.install() {
                failed.end(Exit::Crash { vcpu: id as u32, rip: None, reason: e.to_string() });
            }
        };
        running.push(vcpu.start(before).map_err(Error::host("vCPU thread"))?);
    }
    Ok(running)
}

/// Stops all vCPUs; a thread that panicked is how the machine ended.
fn stop(running: Vec<Running>) -> Option<Exit> {
    let mut crashed = None;
    for (id, vcpu) in running.into_iter().enumerate() {
        if vcpu.stop().is_err() {
            let reason = "its thread panicked".to_owned();
            crashed = Some(Exit::Crash { vcpu: id as u32, rip: None, reason });
        }
    }
    crashed
}

/// What the end really was: a reset may have been a panic's, and an orderly
/// end is none if the console's output was lost.
fn final_exit(exit: Exit, config: &Config, ram: &Ram, loss: Option<Loss>) -> Exit {
    use boot::cmdline::{WARM, WARM_WORD, tells_panics};
    let exit = match exit {
        Exit::Reboot
            if config.choices().board != BoardKind::Bios && tells_panics(&config.cmdline) =>
        {
            match ram.read_obj::<u16>(GuestAddress(WARM_WORD)) {
                Ok(WARM) => Exit::Panic,
                _ => Exit::Reboot,
            }
        }
        other => other,
    };
    match (exit, loss) {
        (Exit::PowerOff | Exit::Reboot, Some(Loss { bytes, error })) => {
            Exit::OutputLost { bytes, error }
        }
        (exit, _) => exit,
    }
}
