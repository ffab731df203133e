//! What the machine has done: counters of every device, queue and vCPU, and of
//! KVM itself.
//!
//! ```text
//!  devices, queues, vCPUs, KVM ─► samples ─┬─► JSON, a line each time ─┬─► a file, every so often
//!                                          └─► Prometheus's text form ─┴─► whoever connects to a socket
//! ```
//!
//! Counters start at 0 with the machine and only grow; what may fall is a gauge,
//! and its name says what it is. Nothing is counted that is not counted anyway:
//! reports cost what reading costs.

pub(crate) mod kvm;
mod report;
mod serve;

pub use serve::{Serve, ServeError, Target, open};

use crate::vcpu::ExitCounts;
use devices::bus::lock;
use devices::virtio::worker::Worker;
use devices::virtio::{Interrupt, SharedVirtio};
use kvm::Statistics;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// A number, what it counts and of which part of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The family: `device`, `queue`, `vcpu` or `kvm`.
    pub family: &'static str,
    /// The part, as label and value: `device="block0"`.
    pub labels: Vec<(&'static str, String)>,
    /// What is counted: `bytes_read`.
    pub name: String,
    /// How much of it there was.
    pub value: u64,
}

/// Everything that is counted.
pub struct Metrics {
    start: Instant,
    devices: Mutex<Vec<Device>>,
    parts: Mutex<Vec<(String, Counters)>>,
    vcpus: Vec<(Arc<ExitCounts>, Option<Statistics>)>,
}

/// Reads the counters of something that is no virtio device.
pub type Counters = Box<dyn Fn() -> Vec<(&'static str, u64)> + Send>;

struct Device {
    name: String,
    device: SharedVirtio,
    interrupt: Arc<Interrupt>,
    queues: usize,
}

impl Metrics {
    /// The counters of a machine without devices.
    pub fn new(vcpus: &[kvm_ioctls::VcpuFd]) -> Self {
        let vcpus = vcpus.iter().map(|vcpu| (Arc::default(), Statistics::open(vcpu))).collect();
        Self { start: Instant::now(), devices: Mutex::default(), parts: Mutex::default(), vcpus }
    }

    /// Counts a device, too; returns its name: its kind, and the first number
    /// that no other of that kind has.
    pub fn add(&self, worker: &Worker) -> String {
        let (device, interrupt, queues) = worker.counted();
        let kind = lock(&device).id().name();
        let name = self.free_name(kind);
        lock(&self.devices).push(Device { name: name.clone(), device, interrupt, queues });
        name
    }

    /// Counts something that is no virtio device, and stays.
    pub fn add_part(&self, kind: &str, counters: Counters) {
        let name = self.free_name(kind);
        lock(&self.parts).push((name, counters));
    }

    fn free_name(&self, kind: &str) -> String {
        let (devices, parts) = (lock(&self.devices), lock(&self.parts));
        let devices = devices.iter().map(|device| device.name.as_str());
        let taken: BTreeSet<&str> =
            devices.chain(parts.iter().map(|(name, _)| name.as_str())).collect();
        let mut names = (0..).map(|number: u32| format!("{kind}{number}"));
        names.find(|name| !taken.contains(name.as_str())).unwrap_or_default()
    }

    /// The device of that name is gone.
    pub fn remove(&self, name: &str) {
        lock(&self.devices).retain(|device| device.name != name);
    }

    /// The counters of vCPU `id`, for it to count with.
    pub fn exits(&self, id: usize) -> Arc<ExitCounts> {
        self.vcpus.get(id).map(|(counts, _)| counts.clone()).unwrap_or_default()
    }

    /// Reports what each device has done.
    pub fn report(&self) {
        for Device { device, .. } in lock(&self.devices).iter() {
            let device = lock(device);
            let all = device.counters();
            if !all.is_empty() {
                let all: Vec<_> = all.iter().map(|(name, n)| format!("{name}={n}")).collect();
                log::info!("virtio {:?}: {}", device.id(), all.join(" "));
            }
        }
    }

    /// All numbers as they are now.
    pub fn samples(&self) -> Vec<Sample> {
        let mut samples = Vec::new();
        for device in lock(&self.devices).iter() {
            device.sample(&mut samples);
        }
        for (part, counters) in lock(&self.parts).iter() {
            for (name, value) in counters() {
                let labels = vec![("device", part.clone())];
                samples.push(Sample { family: "device", labels, name: name.to_owned(), value });
            }
        }
        for (id, (counts, statistics)) in self.vcpus.iter().enumerate() {
            let label = || vec![("vcpu", id.to_string())];
            for (name, value) in exits(counts) {
                let name = name.to_owned();
                samples.push(Sample { family: "vcpu", labels: label(), name, value });
            }
            for (name, value) in statistics.iter().flat_map(Statistics::read) {
                samples.push(Sample { family: "kvm", labels: label(), name, value });
            }
        }
        samples
    }
}

impl Device {
    fn sample(&self, samples: &mut Vec<Sample>) {
        let device = || ("device", self.name.clone());
        for (name, value) in lock(&self.device).counters() {
            let (family, labels) = ("device", vec![device()]);
            samples.push(Sample { family, labels, name: name.to_owned(), value });
        }
        for queue in 0..self.queues {
            let traffic = self.interrupt.traffic(queue);
            let counters = [("doorbells", &traffic.doorbells), ("interrupts", &traffic.interrupts)];
            let counters = counters.map(|(name, counter)| (name, counter.load(Ordering::Relaxed)));
            let own = lock(&self.device).queue_counters(queue);
            for (name, value) in counters.into_iter().chain(own) {
                let labels = vec![device(), ("queue", queue.to_string())];
                samples.push(Sample { family: "queue", labels, name: name.to_owned(), value });
            }
        }
    }
}

/// Exits to user space, by kind.
fn exits(counts: &ExitCounts) -> [(&'static str, u64); 5] {
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    [
        ("exits_port_in", get(&counts.port_in)),
        ("exits_port_out", get(&counts.port_out)),
        ("exits_mmio_read", get(&counts.mmio_read)),
        ("exits_mmio_write", get(&counts.mmio_write)),
        ("exits_other", get(&counts.other)),
    ]
}
