//! The worker on a real event loop.

use super::*;
use crate::bus::lock;
use crate::state::{Saved, StateError};
use crate::virtio::testing::Bench;
use crate::virtio::{Activation, DeviceError, DeviceId, VirtioDevice, queue::Vq};
use event_manager::{EventManager, SubscriberOps};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

struct Probe {
    peer: UnixStream,
    calls: Vec<String>,
    fail: bool,
}

impl VirtioDevice for Probe {
    fn id(&self) -> DeviceId {
        DeviceId::Net
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[16, 16]
    }
    fn features(&self) -> u64 {
        crate::virtio::COMMON_FEATURES
    }
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}
    fn activate(&mut self, _activation: Activation) -> Result<(), DeviceError> {
        Ok(())
    }
    fn reset(&mut self) {}
    fn queues(&self) -> Option<&[Option<Vq>]> {
        None
    }
    fn queue_event(&mut self, queue: usize) -> Result<(), DeviceError> {
        self.calls.push(format!("queue {queue}"));
        if self.fail { Err(DeviceError::Request("test")) } else { Ok(()) }
    }
    fn sources(&self) -> Vec<RawFd> {
        vec![self.peer.as_raw_fd()]
    }
    fn source_event(&mut self, source: usize) -> Result<(), DeviceError> {
        self.calls.push(format!("source {source}"));
        Ok(())
    }
    fn save(&self) -> Result<Saved, StateError> {
        Saved::new("probe", 1, &())
    }
    fn restore(&mut self, _saved: &Saved) -> Result<(), StateError> {
        Ok(())
    }
}

struct Loop {
    events: EventManager<Arc<Mutex<Worker>>>,
    bench: Bench,
    device: Arc<Mutex<Probe>>,
    other_end: UnixStream,
}

fn event_loop() -> Loop {
    let (peer, other_end) = UnixStream::pair().unwrap();
    let device = Arc::new(Mutex::new(Probe { peer, calls: Vec::new(), fail: false }));
    let bench = Bench::started(device.clone(), 0);
    let mut events = EventManager::new().unwrap();
    events.add_subscriber(Arc::new(Mutex::new(bench.transport.worker())));
    Loop { events, bench, device, other_end }
}

impl Loop {
    fn calls(&mut self) -> Vec<String> {
        // More often than needed: what is still ready would be called again.
        for _ in 0..5 {
            self.events.run_with_timeout(0).unwrap();
        }
        std::mem::take(&mut lock(&self.device).calls)
    }
}

#[test]
fn each_ring_of_a_doorbell_is_one_call() {
    let mut l = event_loop();
    let doorbells = l.bench.transport.doorbells().to_vec();
    assert!(l.calls().is_empty());
    for round in 0..3 {
        doorbells[1].write(1).unwrap();
        assert_eq!(l.calls(), ["queue 1"], "round {round}: though nobody reads the eventfd");
    }
    doorbells[0].write(1).unwrap();
    doorbells[0].write(1).unwrap();
    assert_eq!(l.calls(), ["queue 0"]);
}

#[test]
fn sources_call_once_per_edge_and_a_hang_up_does_not_spin() {
    let mut l = event_loop();
    l.other_end.write_all(b"x").unwrap();
    assert_eq!(l.calls(), ["source 0"]);
    l.other_end.write_all(b"y").unwrap();
    assert_eq!(l.calls(), ["source 0"]);
    l.other_end.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(l.calls(), ["source 0"]);
    assert!(l.calls().is_empty());
}

#[test]
fn a_broken_device_is_left_alone_until_it_is_reset() {
    let mut l = event_loop();
    let doorbell = l.bench.transport.doorbells()[0].clone();
    lock(&l.device).fail = true;
    for called in [1, 0, 0] {
        doorbell.write(1).unwrap();
        assert_eq!(l.calls().len(), called);
        assert!(l.bench.needs_reset());
    }
    lock(&l.device).fail = false;
    l.bench.start(0);
    doorbell.write(1).unwrap();
    assert_eq!(l.calls(), ["queue 0"]);
}

#[test]
fn two_workers_on_one_loop_are_reported_and_harmless() {
    let mut l = event_loop();
    l.events.add_subscriber(Arc::new(Mutex::new(l.bench.transport.worker())));
    l.bench.transport.doorbells()[0].write(1).unwrap();
    assert_eq!(l.calls(), ["queue 0"]);
}
