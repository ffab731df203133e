//! What every machine has beside its virtio devices: ports, power, the serial
//! console, and the tables that describe it all.

use super::bios;
use super::error::Error;
use super::operator::Button;
use super::pc::Pc;
use crate::config::{BoardKind, Config, Serial as SerialConfig, Transport};
use crate::console::input::{Input, InputSink};
use crate::ending::Ending;
use crate::exit::Exit;
use crate::memory::Ram;
use crate::sandbox;
use crate::vcpu::Buses;
use crate::vm::Vm;
use arch::acpi::{self, VirtioMmio};
use arch::{layout, mptable};
use boot::cmdline::{self, Completion};
use devices::backend::console::ConsoleOutput;
use devices::bus::{Bus, BusDevice, Part, SharedDevice, lock};
use devices::irq::IrqLine;
use devices::legacy::piix::ConfigAndReset;
use devices::legacy::power::{PowerLine, PowerRequest};
use devices::legacy::{debug, i8042, pm, port92, pvpanic, rtc, serial};
use devices::pci::hotplug::{self, HotPlug};
use devices::pci::root::{CONFIG_ADDRESS, CONFIG_PORTS, ConfigPorts, PortWindow, Root, Window};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

/// Where virtio-mmio device `number` is.
pub fn virtio_slot(number: usize) -> VirtioMmio {
    VirtioMmio {
        base: layout::VIRTIO_MMIO + number as u64 * layout::VIRTIO_MMIO_SIZE,
        size: layout::VIRTIO_MMIO_SIZE,
        gsi: layout::VIRTIO_GSIS[number % layout::VIRTIO_GSIS.len()],
    }
}

/// The whole kernel command line.
pub fn cmdline(config: &Config, virtio_devices: usize) -> String {
    let pci = config.transport() == Transport::Pci;
    let completion = Completion {
        root: config.rootfs.as_ref().map(|disk| disk.readonly),
        ide: !config.choices().virtio_disks(),
        serial: config.serial() != SerialConfig::Off,
        hvc: config.has_terminal(),
        pci,
    };
    let mut line = String::new();
    if cmdline::acpi_off(&config.cmdline) && !pci {
        for slot in (0..virtio_devices).map(virtio_slot) {
            line += &cmdline::virtio_mmio(slot.base, slot.size, slot.gsi);
            line.push(' ');
        }
    }
    line + &cmdline::complete(&config.cmdline, completion)
}

/// The machine's buses, while it is being built.
pub struct Board {
    ports: Bus,
    memory: Bus,
    serial: Arc<Mutex<serial::Serial>>,
    output: ConsoleOutput,
    describe: Describe,
    virtio_mmio: usize,
    pci: bool,
    power: PowerLine,
    pvpanic: bool,
    pc: Option<acpi::Pc>,
    /// Whether firmware places BARs where it likes.
    firmware: bool,
    button: Option<Arc<Mutex<pm::PowerButton>>>,
    hot_plug: Option<Arc<Mutex<HotPlug>>>,
}

/// How the guest is told what there is.
#[derive(PartialEq)]
enum Describe {
    Acpi,
    MpTable,
}

impl Board {
    /// The devices that every machine has.
    pub fn new(config: &Config, vm: &Vm, ending: &Ending) -> Result<Self, Error> {
        let describe = match cmdline::acpi_off(&config.cmdline) {
            true => Describe::MpTable,
            false => Describe::Acpi,
        };
        let output = console_output(&config.serial())?;
        let irq = IrqLine::new().map_err(Error::host("eventfd"))?;
        vm.connect_irq(&irq, layout::COM1_GSI)?;
        let serial = serial::Serial::new(irq, output.clone()).map_err(Error::host("eventfd"))?;
        let serial = Arc::new(Mutex::new(serial));
        let port = Arc::downgrade(&serial);
        output.on_room(move || {
            if let Some(port) = port.upgrade() {
                lock(&port).resume();
            }
        });

        let power = power_line(ending.clone());
        let mut ports = Bus::new();
        let mut put = |base: u16, len, device: SharedDevice| ports.insert(base.into(), len, device);
        put(layout::COM1, serial::SIZE, serial.clone())?;
        let keyboard = shared(i8042::I8042::new(power.clone()));
        if vm.controllers.is_some() {
            // Port B, between its two, is the timer's then.
            for port in [i8042::DATA, i8042::COMMAND] {
                put(i8042::BASE + port as u16, 1, shared(Part::new(keyboard.clone(), port)))?;
            }
        } else {
            put(i8042::BASE, i8042::SIZE, keyboard)?;
        }
        let firmware = config.choices().board == BoardKind::Bios;
        let clock = if firmware { bios::clock(config) } else { rtc::Rtc::new() };
        put(rtc::BASE, rtc::SIZE, shared(clock))?;
        put(debug::PORT, 1, shared(debug::PostCodes::new()))?;
        let choices = config.choices();
        // No PC has one.
        let pvpanic = choices.paravirtual;
        if pvpanic {
            put(pvpanic::PORT, 1, shared(pvpanic::PvPanic::new(power.clone())))?;
        }
        if choices.has_board() {
            put(port92::PORT, 1, shared(port92::SystemControlA::new(power.clone())))?;
        }
        if !choices.has_board() {
            let sleep = pm::PowerManagement::new(power.clone());
            put(pm::SLEEP_CONTROL, pm::SIZE, shared(sleep))?;
        }
        // Without somebody to press it there is no button, and without ACPI
        // nobody would know what it is. A motherboard has its own.
        let mut button = None;
        if config.control.is_some() && describe == Describe::Acpi && !choices.has_board() {
            let irq = IrqLine::new().map_err(Error::host("eventfd"))?;
            vm.connect_irq(&irq, layout::GED_GSI)?;
            let events = Arc::new(Mutex::new(pm::PowerButton::new(irq)));
            ports.insert(pm::GED_EVENTS.into(), pm::GED_SIZE, events.clone())?;
            button = Some(events);
        }
        let memory = Bus::new();
        Ok(Self {
            ports,
            memory,
            serial,
            output,
            describe,
            virtio_mmio: 0,
            pci: false,
            power,
            pvpanic,
            pc: None,
            button,
            hot_plug: None,
            firmware,
        })
    }

    /// Whether firmware starts the guest, and finds places for things by itself.
    pub fn has_firmware(&self) -> bool {
        self.firmware
    }

    /// The power button, if there is one that the guest knows.
    pub fn button(&self, pc: Option<&Pc>) -> Option<Button> {
        if self.describe != Describe::Acpi {
            return None;
        }
        let fixed = pc.map(|pc| Button::Fixed(pc.power.clone()));
        fixed.or_else(|| self.button.clone().map(Button::Event))
    }

    /// The registers of the PCI slots, if functions may come and go.
    pub fn hot_plug(&self) -> Option<Arc<Mutex<HotPlug>>> {
        self.hot_plug.clone()
    }

    /// What the guest's power requests go over.
    pub fn power(&self) -> PowerLine {
        self.power.clone()
    }

    /// Puts a device at ports.
    pub fn add_ports(
        &mut self,
        base: u16,
        len: u64,
        device: impl BusDevice + 'static,
    ) -> Result<(), Error> {
        self.add_shared(base, len, shared(device))
    }

    /// Puts a device at memory addresses.
    pub fn add_memory(
        &mut self,
        base: u64,
        len: u64,
        device: impl BusDevice + 'static,
    ) -> Result<(), Error> {
        Ok(self.memory.insert(base, len, shared(device))?)
    }

    /// The same for one that is elsewhere, too.
    pub fn add_shared(&mut self, base: u16, len: u64, device: SharedDevice) -> Result<(), Error> {
        Ok(self.ports.insert(base.into(), len, device)?)
    }

    /// Has the tables describe a motherboard.
    pub fn describe_pc(&mut self, pc: acpi::Pc) {
        self.pc = Some(pc);
    }

    /// Puts a virtio-mmio device in its place.
    pub fn add_virtio(&mut self, number: usize, device: SharedDevice) -> Result<(), Error> {
        let slot = virtio_slot(number);
        self.virtio_mmio += 1;
        Ok(self.memory.insert(slot.base, slot.size, device)?)
    }

    /// Puts a PCI bus in its place.
    pub fn add_pci(&mut self, root: Arc<Root>) -> Result<(), Error> {
        self.pci = true;
        if self.button.is_some() {
            let registers = HotPlug::new(root.clone()).map_err(Error::host("eventfd"))?;
            let registers = Arc::new(Mutex::new(registers));
            self.ports.insert(hotplug::BASE.into(), hotplug::SIZE, registers.clone())?;
            self.hot_plug = Some(registers);
        }
        let ports = ConfigPorts::new(root.clone());
        let ports = match self.pc {
            Some(_) => shared(ConfigAndReset::new(ports, self.power.clone())),
            None => shared(ports),
        };
        self.ports.insert(CONFIG_ADDRESS.into(), CONFIG_PORTS, ports)?;
        if self.pc.is_some() {
            let window = PortWindow::new(root.clone(), layout::PCI_PORTS);
            self.add_ports(layout::PCI_PORTS, layout::PCI_PORTS_SIZE, window)?;
        }
        if self.firmware {
            let (base, size) = (layout::PCI_FIRMWARE_WINDOW, layout::PCI_FIRMWARE_WINDOW_SIZE);
            self.add_memory(base, size, Window::new(root.clone(), base))?;
        }
        let window = shared(Window::new(root, layout::PCI_WINDOW));
        Ok(self.memory.insert(layout::PCI_WINDOW, layout::PCI_WINDOW_SIZE, window)?)
    }

    /// Writes the tables that describe the machine; returns the RSDP's address,
    /// 0 without ACPI.
    pub fn describe(&self, ram: &Ram, cpus: u32) -> Result<u64, Error> {
        // Beside ACPI, too: Linux maps and looks at every 16 bytes of the BIOS
        // area until it finds one, which takes longer than reading the disk.
        let interrupts = self.pc.as_ref().map(|pc| pc.interrupts.as_slice());
        let table = mptable::table(cpus as u8, interrupts.unwrap_or_default());
        let written = ram.write_slice(&table, GuestAddress(layout::MP_TABLE));
        written.map_err(arch::acpi::AcpiError::from)?;
        if self.describe == Describe::MpTable {
            return Ok(0);
        }
        Ok(acpi::write(ram, &self.machine(cpus))?)
    }

    /// The machine as ACPI tells it.
    pub fn machine(&self, cpus: u32) -> acpi::Machine {
        acpi::Machine {
            cpus,
            virtio: (0..self.virtio_mmio).map(virtio_slot).collect(),
            serial: true,
            sleep_port: pm::SLEEP_CONTROL,
            reset_port: pm::RESET,
            pvpanic_port: self.pvpanic.then_some(pvpanic::PORT),
            pci: self.pci,
            pc: self.pc.clone(),
            events: self.button.as_ref().map(|_| acpi::Events {
                gsi: layout::GED_GSI,
                port: pm::GED_EVENTS,
                slots: self.hot_plug.as_ref().map(|_| hotplug::BASE),
            }),
        }
    }

    /// The monitor's standard input for the serial port; `terminal` when it is one.
    pub fn input(&self, terminal: bool, ending: &Ending) -> Result<Input, Error> {
        let room = lock(&self.serial).room().map_err(Error::host("eventfd"))?;
        let sink: Box<dyn InputSink> = Box::new(SerialSink { serial: self.serial.clone(), room });
        let quit = ending.clone();
        Ok(Input::stdin(sink, terminal, move || quit.end(Exit::Quit)))
    }

    /// The finished buses, and the console's output to be drained at the end.
    pub fn finish(self) -> (Buses, ConsoleOutput) {
        let buses = Buses { ports: Arc::new(self.ports), memory: Arc::new(self.memory) };
        (buses, self.output)
    }
}

fn shared(device: impl BusDevice + 'static) -> SharedDevice {
    Arc::new(Mutex::new(device))
}

/// What the guest's power requests mean for the machine.
fn power_line(ending: Ending) -> PowerLine {
    PowerLine::new(move |request| {
        ending.end(match request {
            PowerRequest::PowerOff => Exit::PowerOff,
            PowerRequest::Reset => Exit::Reboot,
            PowerRequest::Panic => Exit::Panic,
        });
    })
}

pub fn console_output(serial: &SerialConfig) -> Result<ConsoleOutput, Error> {
    let fd: OwnedFd = match serial {
        SerialConfig::Off => return Ok(ConsoleOutput::discard()),
        SerialConfig::Stdio => match std::io::stdout().as_fd().try_clone_to_owned() {
            Ok(fd) => fd,
            // Standard output is closed: the guest runs all the same.
            Err(_) => return Ok(ConsoleOutput::discard()),
        },
        SerialConfig::File(path) => {
            let file = File::options().append(true).create(true).open(path);
            let error = |source| Error::Serial { path: path.display().to_string(), source };
            file.map_err(error)?.into()
        }
    };
    let filter = sandbox::console();
    let before = move || filter.install().expect("the filters of other threads can be installed");
    ConsoleOutput::to(fd, before).map_err(Error::host("console thread"))
}

/// The serial port as the input side sees it.
struct SerialSink {
    serial: Arc<Mutex<serial::Serial>>,
    room: EventFd,
}

impl InputSink for SerialSink {
    fn enqueue(&mut self, bytes: &[u8]) -> usize {
        lock(&self.serial).enqueue(bytes)
    }

    fn room(&self) -> &EventFd {
        &self.room
    }
}
