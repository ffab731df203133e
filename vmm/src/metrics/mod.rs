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
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
    devices: Vec<Device>,
    vcpus: Vec<(Arc<ExitCounts>, Option<Statistics>)>,
}

struct Device {
    name: String,
    device: SharedVirtio,
    interrupt: Arc<Interrupt>,
    queues: usize,
}

impl Metrics {
    /// The counters of a machine.
    pub fn new(workers: &[Worker], vcpus: &[kvm_ioctls::VcpuFd]) -> Self {
        let mut numbers = BTreeMap::new();
        let devices = workers.iter().map(|worker| {
            let (device, interrupt, queues) = worker.counted();
            let kind = lock(&device).id().name();
            let number = numbers.entry(kind).and_modify(|n| *n += 1).or_insert(0u32);
            Device { name: format!("{kind}{number}"), device, interrupt, queues }
        });
        let devices = devices.collect();
        let vcpus = vcpus.iter().map(|vcpu| (Arc::default(), Statistics::open(vcpu))).collect();
        Self { start: Instant::now(), devices, vcpus }
    }

    /// The counters of vCPU `id`, for it to count with.
    pub fn exits(&self, id: usize) -> Arc<ExitCounts> {
        self.vcpus.get(id).map(|(counts, _)| counts.clone()).unwrap_or_default()
    }

    /// All numbers as they are now.
    pub fn samples(&self) -> Vec<Sample> {
        let mut samples = Vec::new();
        for device in &self.devices {
            device.sample(&mut samples);
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
