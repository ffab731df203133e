//! Carries out what is asked over the control socket.
//!
//! ```text
//!  event loop, a round ─► Server: lines ─► jobs
//!  between two rounds  ─► Operator::turn: what guests gave back, whose time is over, jobs
//! ```
//!
//! Between two rounds no device is in the middle of an event, so a worker can be
//! put on the loop or taken off it.

use super::Events;
use super::pci::{PciBus, Placed, Plugged};
use super::slots::{self, Slot};
use crate::config::{Config, Disk, Format, Net, Size};
use crate::control::Command;
use crate::control::server::{Job, Server};
use crate::ending::Ending;
use crate::exit::Exit;
use crate::metrics::Metrics;
use devices::backend::disk::{Qcow2Disk, RawDisk, SECTOR};
use devices::backend::tap::Tap;
use devices::bus::lock;
use devices::legacy::piix::pm::PowerManagement;
use devices::legacy::pm::PowerButton;
use devices::pci::hotplug::HotPlug;
use devices::virtio::DeviceId;
use devices::virtio::balloon::Balloon;
use devices::virtio::worker::Worker;
use event_manager::{SubscriberId, SubscriberOps};
use serde_json::{Value, json};
use std::fs::File;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Removals that wait for the guest at once.
const MAX_REMOVALS: usize = 64;

/// What is answered, or that it is answered later.
type Outcome = Result<Option<Value>, String>;

/// A device of the machine.
struct DeviceEntry {
    name: String,
    device: Slot,
    /// The image or the interface behind it.
    what: Option<String>,
    subscriber: SubscriberId,
    plugged: Option<Plugged>,
    /// Whether the guest was asked to let go of it.
    leaving: bool,
}

/// A removal that waits for the guest.
struct Waiting {
    client: u32,
    id: Value,
    name: String,
    deadline: Instant,
    force: bool,
}

/// The power button, as the machine has it.
#[derive(Clone)]
pub enum Button {
    /// An event of hardware-reduced ACPI, beside changes of slots.
    Event(Arc<Mutex<PowerButton>>),
    /// A motherboard's own.
    Fixed(Arc<Mutex<PowerManagement>>),
}

impl Button {
    fn press(&self) {
        match self {
            Self::Event(button) => lock(button).press(),
            Self::Fixed(power) => lock(power).press(),
        }
    }
}

/// All that a running machine is changed with.
pub struct Operator {
    server: Arc<Mutex<Server>>,
    attached: Vec<DeviceEntry>,
    waiting: Vec<Waiting>,
    cpus: u32,
    bus: Option<PciBus>,
    parts: Parts,
}

/// What the operator works on beside devices.
pub struct Parts {
    /// The PCI slots' registers.
    pub hot_plug: Option<Arc<Mutex<HotPlug>>>,
    /// The power button.
    pub button: Option<Button>,
    /// The balloon.
    pub balloon: Option<Arc<Mutex<Balloon>>>,
    /// The counters, which name devices.
    pub metrics: Arc<Metrics>,
    /// How the machine ends.
    pub ending: Ending,
}

impl Operator {
    /// An operator for the machine that `config` describes.
    pub fn new(
        server: Arc<Mutex<Server>>,
        config: &Config,
        bus: Option<PciBus>,
        parts: Parts,
    ) -> Self {
        let (attached, waiting) = (Vec::new(), Vec::new());
        Self { server, attached, waiting, cpus: config.cpus, bus, parts }
    }

    /// Puts a device's worker on the event loop; returns the device's name.
    pub fn attach(
        &mut self,
        worker: Worker,
        plugged: Option<Plugged>,
        what: Option<String>,
        events: &mut Events,
    ) -> String {
        let name = self.parts.metrics.add(&worker);
        let (device, ..) = worker.counted();
        let subscriber = events.add_subscriber(Arc::new(Mutex::new(worker)));
        let leaving = false;
        let new = DeviceEntry { name: name.clone(), device, what, subscriber, plugged, leaving };
        self.attached.push(new);
        name
    }

    /// Does what there is to do between two rounds of the event loop.
    pub fn turn(&mut self, events: &mut Events) {
        self.collect(events);
        self.give_up(events);
        loop {
            let job = lock(&self.server).next_job();
            let Some(job) = job else { break };
            let Job { client, request, files } = job;
            let id = request.id;
            let answer = match self.carry_out(client, &id, request.command, files, events) {
                Ok(None) => continue,
                Ok(Some(answer)) => Ok(answer),
                Err(why) => Err(why),
            };
            lock(&self.server).answer(client, &id, answer);
        }
        let next = self.waiting.iter().map(|waiting| waiting.deadline).min();
        lock(&self.server).wake_at(next);
    }

    fn carry_out(
        &mut self,
        client: u32,
        id: &Value,
        command: Command,
        files: Vec<File>,
        events: &mut Events,
    ) -> Outcome {
        match command {
            Command::Status {} => Ok(Some(self.status())),
            Command::AddDisk { disk, files: wanted } => {
                let path = disk.path.display();
                self.may_add(files.len(), wanted as usize)
                    .map_err(|why| format!("disk {path}: {why}"))?;
                self.add_disk(&disk, files, events).map(Some)
            }
            Command::AddNet { net, mtu } => self.add_net(&net, mtu, files, events).map(Some),
            Command::Remove { name, timeout, force } => {
                let deadline = Instant::now() + Duration::from_secs(timeout.into());
                let id = id.clone();
                self.remove(Waiting { client, id, name, deadline, force }, events)
            }
            Command::ResizeDisk { name, size } => self.resize(&name, size).map(Some),
            Command::Balloon { size } => self.balloon(size).map(Some),
            Command::PowerButton {} => {
                let button = self.parts.button.as_ref();
                button.ok_or("power-button: needs ACPI: leave out acpi=off")?.press();
                Ok(Some(json!({})))
            }
            Command::Quit {} => {
                self.parts.ending.end(Exit::Told);
                Ok(Some(json!({})))
            }
        }
    }

    fn status(&self) -> Value {
        let devices: Vec<Value> = self.attached.iter().map(DeviceEntry::status).collect();
        let mut status = json!({
            "devices": devices,
            "hot_plug": self.parts.hot_plug.is_some(),
        });
        if let Some(balloon) = &self.parts.balloon {
            let balloon = lock(balloon);
            status["balloon"] = json!({"target": balloon.target(), "actual": balloon.actual()});
        }
        status
    }

    /// Whether anything can be added at all, before a descriptor is looked at.
    fn may_add(&self, files: usize, wanted: usize) -> Result<(), String> {
        if self.bus.is_none() {
            return Err("hot plug needs a PCI bus: start the machine with --transport pci".into());
        }
        self.slots_are_there()?;
        if files != wanted {
            let how = "open, as SCM_RIGHTS descriptors: see microvm ctl";
            return Err(format!("{files} of {wanted} came along {how}"));
        }
        Ok(())
    }

    /// Whether functions can come and go.
    fn slots_are_there(&self) -> Result<(), String> {
        if matches!(self.parts.button, Some(Button::Fixed(_))) {
            return Err("hot plug is not for motherboards, whose slots are soldered: use \
                        --mode pv with --transport pci"
                .into());
        }
        if self.parts.hot_plug.is_none() {
            return Err("hot plug needs --transport pci, and ACPI: start the machine with \
                        neither --transport mmio nor acpi=off"
                .into());
        }
        Ok(())
    }

    fn add_disk(
        &mut self,
        disk: &Disk,
        files: Vec<File>,
        events: &mut Events,
    ) -> Result<Value, String> {
        let image = adopt(disk, files)?;
        let block = slots::block(self.cpus, disk, image).map_err(|e| e.to_string())?;
        self.add(block, disk.path.display().to_string(), events)
    }

    fn add_net(
        &mut self,
        net: &Net,
        mtu: Option<u16>,
        files: Vec<File>,
        events: &mut Events,
    ) -> Result<Value, String> {
        let name = net.backend.name();
        let queues = net.queues.unwrap_or(1) as usize;
        self.may_add(files.len(), queues).map_err(|why| format!("net {name}: {why}"))?;
        let taps = files.into_iter().map(|file| Tap::adopt(name, file, mtu));
        let taps: Vec<Tap> = taps.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
        let card = slots::tap_card(net, name, taps, Vec::new()).map_err(|e| e.to_string())?;
        self.add(card, name.to_owned(), events)
    }

    /// Puts a device on the bus and tells the guest to look.
    fn add(&mut self, device: Slot, what: String, events: &mut Events) -> Result<Value, String> {
        let bus = self.bus.as_mut().ok_or("no PCI bus")?;
        let (plugged, worker) = bus.plug(device, Placed::Later).map_err(|e| e.to_string())?;
        let slot = plugged.slot;
        let name = self.attach(worker, Some(plugged), Some(what), events);
        self.tell(|registers| registers.plugged(slot));
        Ok(json!({"name": name, "slot": slot}))
    }

    /// Changes the slots' registers and has the guest read them.
    fn tell(&self, change: impl FnOnce(&mut HotPlug)) {
        if let (Some(registers), Some(Button::Event(button))) =
            (&self.parts.hot_plug, &self.parts.button)
        {
            change(&mut lock(registers));
            lock(button).slots_changed();
        }
    }

    /// Asks the guest to let go of a device. The answer comes when it has.
    fn remove(&mut self, waiting: Waiting, events: &mut Events) -> Outcome {
        let name = &waiting.name;
        // Those of clients that have gone count, too.
        if self.waiting.len() >= MAX_REMOVALS {
            return Err(format!("remove {name}: {MAX_REMOVALS} removals wait for the guest"));
        }
        self.slots_are_there().map_err(|why| format!("remove {name}: {why}"))?;
        let attached = self.attached.iter_mut().find(|attached| attached.name == *name);
        let attached = attached.ok_or_else(|| format!("remove {name}: there is no such device"))?;
        if !matches!(lock(&attached.device).id(), DeviceId::Block | DeviceId::Net) {
            return Err(format!("remove {name}: only disks and network cards can be removed"));
        }
        attached.leaving = true;
        let slot = attached.plugged.as_ref().map_or(0, |plugged| plugged.slot);
        self.tell(|registers| registers.release(slot));
        self.waiting.push(waiting);
        self.give_up(events);
        Ok(None)
    }

    /// Takes apart what the guest has let go of.
    fn collect(&mut self, events: &mut Events) {
        let Some(registers) = self.parts.hot_plug.clone() else { return };
        let given_back = lock(&registers).given_back();
        for (_, function) in given_back {
            let is =
                |a: &DeviceEntry| a.plugged.as_ref().is_some_and(|plugged| plugged.is(&function));
            let at = self.attached.iter().position(is);
            // It holds the device, which is to go before anybody is told.
            drop(function);
            if let Some(at) = at {
                self.detach(at, false, events);
            }
        }
    }

    /// Answers those whose guest has not let go in time, or takes the device
    /// away if that is what was asked for.
    fn give_up(&mut self, events: &mut Events) {
        let now = Instant::now();
        while let Some(at) = self.waiting.iter().position(|waiting| waiting.deadline <= now) {
            let waiting = self.waiting.swap_remove(at);
            let name = &waiting.name;
            let device = self.attached.iter().position(|attached| attached.name == *name);
            let (client, id) = (waiting.client, &waiting.id);
            match device {
                Some(device) if waiting.force => {
                    // It is this one's answer, too.
                    self.waiting.push(waiting);
                    self.detach(device, true, events);
                }
                _ => {
                    let why = "the guest has not let go of it (yet): try again, or with force";
                    let answer = Err(format!("remove {name}: {why}"));
                    lock(&self.server).answer(client, id, answer);
                }
            }
        }
    }

    /// A device leaves the machine: off the event loop, off the bus, its
    /// interrupts and its image given back; and who waited for it is told.
    fn detach(&mut self, at: usize, forced: bool, events: &mut Events) {
        let DeviceEntry { name, subscriber, plugged, device, .. } = self.attached.swap_remove(at);
        // Before anything that it watches is closed.
        let _ = events.remove_subscriber(subscriber);
        let mut flushed = Ok(());
        if let (Some(plugged), Some(bus)) = (plugged, &mut self.bus) {
            if let Some(registers) = &self.parts.hot_plug {
                lock(registers).forget(plugged.slot);
            }
            flushed = bus.unplug(plugged);
        }
        self.parts.metrics.remove(&name);
        // The last of it: the image's lock ends here.
        drop(device);
        let answer = match flushed {
            Ok(()) => Ok(json!({"name": name, "forced": forced})),
            Err(e) => {
                Err(format!("remove {name}: gone, but what was written may not be safe: {e}"))
            }
        };
        let mut server = lock(&self.server);
        self.waiting.retain(|waiting| {
            if waiting.name == name {
                server.answer(waiting.client, &waiting.id, answer.clone());
            }
            waiting.name != name
        });
    }

    fn resize(&self, name: &str, size: Option<Size>) -> Result<Value, String> {
        let attached = self.attached.iter().find(|attached| attached.name == name);
        let attached = attached.ok_or_else(|| format!("resize-disk {name}: no such device"))?;
        let resized = lock(&attached.device).resize(size.map(|size| size.0));
        let size = resized.map_err(|e| format!("resize-disk {name}: {e}"))?;
        Ok(json!({"name": name, "size": size}))
    }

    fn balloon(&self, size: Size) -> Result<Value, String> {
        let none = "balloon: the machine has none: start it with --balloon size=0";
        let mut balloon = lock(self.parts.balloon.as_ref().ok_or(none)?);
        balloon.set_target(size.0).map_err(|e| e.to_string())?;
        Ok(json!({"target": balloon.target(), "actual": balloon.actual()}))
    }
}

/// The image in files that came along.
fn adopt(disk: &Disk, files: Vec<File>) -> Result<Box<dyn devices::backend::disk::Disk>, String> {
    let (path, read_only) = (&disk.path, disk.readonly);
    Ok(match disk.format {
        Format::Raw => {
            let file = files.into_iter().next().ok_or("no image came along")?;
            let image = RawDisk::adopt(path, file, disk.raw_options());
            Box::new(image.map_err(|e| e.to_string())?)
        }
        Format::Qcow2 => {
            let image = Qcow2Disk::adopt(path, files, read_only);
            Box::new(image.map_err(|e| e.to_string())?)
        }
    })
}

impl DeviceEntry {
    fn status(&self) -> Value {
        let device = lock(&self.device);
        let state = match (self.leaving, device.queues().is_some()) {
            (true, _) => "leaving",
            (false, true) => "in use",
            // The guest has no driver for it, or not yet.
            (false, false) => "idle",
        };
        let mut status = json!({"name": self.name, "state": state});
        if let Some(plugged) = &self.plugged {
            status["slot"] = plugged.slot.into();
        }
        if let Some(what) = &self.what {
            status["backend"] = what.as_str().into();
        }
        if device.id() == DeviceId::Block {
            let mut capacity = [0; 8];
            device.read_config(0, &mut capacity);
            status["size"] = (u64::from_le_bytes(capacity) * SECTOR).into();
        }
        status
    }
}
