//! The registers, one behaviour at a time.

use super::*;
use crate::bus::lock;
use crate::state::{Saved, StateError};
use crate::virtio::queue::Vq;
use crate::virtio::testing::*;
use crate::virtio::{
    Activation, COMMON_FEATURES, DeviceError, DeviceId, INT_CONFIG, INT_VRING, VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX, VirtioDevice,
};
use proptest::prelude::*;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// A device that writes down what happens to it.
#[derive(Default)]
struct Probe {
    config: [u8; 8],
    activated: Option<Activation>,
    refuse: bool,
    resets: u32,
    events: Vec<usize>,
    broken: Arc<AtomicBool>,
}

impl VirtioDevice for Probe {
    fn id(&self) -> DeviceId {
        DeviceId::Rng
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[64, 16]
    }
    fn features(&self) -> u64 {
        COMMON_FEATURES | 1
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap();
        for (i, to) in data.iter_mut().enumerate() {
            *to = self.config.get(offset + i).copied().unwrap_or(0);
        }
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (i, from) in data.iter().enumerate() {
            if let Some(to) = self.config.get_mut(offset as usize + i) {
                *to = *from;
            }
        }
    }
    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        if self.refuse {
            return Err(DeviceError::MissingQueue(0));
        }
        self.activated = Some(activation);
        Ok(())
    }
    fn reset(&mut self) {
        self.activated = None;
        self.resets += 1;
    }
    fn queues(&self) -> Option<&[Option<Vq>]> {
        self.activated.as_ref().map(|a| a.queues.as_slice())
    }
    fn queue_event(&mut self, queue: usize) -> Result<(), DeviceError> {
        self.events.push(queue);
        match self.broken.load(Ordering::SeqCst) {
            true => Err(DeviceError::Request("test")),
            false => Ok(()),
        }
    }
    fn save(&self) -> Result<Saved, StateError> {
        Saved::new("probe", 1, &self.config)
    }
    fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        self.config = saved.open("probe", 1)?;
        Ok(())
    }
}

fn probe() -> (Bench, Arc<Mutex<Probe>>) {
    let device = Arc::new(Mutex::new(Probe::default()));
    (Bench::new(device.clone()), device)
}

const READY: u32 = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;

#[test]
fn it_introduces_itself() {
    let (mut bench, _) = probe();
    assert_eq!(bench.read(MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(bench.read(VERSION), 2);
    assert_eq!(bench.read(DEVICE_ID), 4);
    let mut offered = 0;
    for sel in [0, 1, 2, u32::MAX] {
        bench.write(DEVICE_FEATURES_SEL, sel);
        let word = bench.read(DEVICE_FEATURES);
        assert!(sel < 2 || word == 0);
        offered |= u64::from(word) << (32 * (sel & 1));
    }
    assert_eq!(offered, COMMON_FEATURES | 1);
    for offset in (SHM_LEN_LOW..=SHM_BASE_HIGH).step_by(4) {
        assert_eq!(bench.read(offset), u32::MAX, "no shared memory");
    }
    assert_eq!(bench.read(QUEUE_RESET), 0);
    for (sel, max) in [(0, 64), (1, 16), (2, 0), (u32::MAX, 0)] {
        bench.write(QUEUE_SEL, sel);
        assert_eq!(bench.read(QUEUE_NUM_MAX), max);
        assert_eq!(bench.read(QUEUE_READY), 0);
    }
}

#[test]
fn registers_take_aligned_words_only() {
    let (mut bench, _) = probe();
    for (offset, width) in [(0, 1), (0, 2), (0, 8), (1, 4), (2, 4), (0x100 - 2, 4)] {
        let mut data = vec![0xff; width];
        bench.transport.read(offset, &mut data);
        assert_eq!(data, vec![0xff; width], "{offset:#x}, {width} bytes");
        bench.transport.write(STATUS + offset, &vec![1; width]);
    }
    assert_eq!(bench.read(STATUS), 0, "no write got through");
}

#[test]
fn the_status_grows_step_by_step() {
    let (mut bench, device) = probe();
    bench.write(STATUS, STATUS_DRIVER);
    assert_eq!(bench.read(STATUS), 0, "who has not seen it can't drive it");
    bench.write(STATUS, STATUS_ACKNOWLEDGE);
    bench.write(STATUS, STATUS_DRIVER_OK | STATUS_FEATURES_OK);
    assert_eq!(bench.read(STATUS), STATUS_ACKNOWLEDGE);
    bench.negotiate(1);
    assert_eq!(bench.read(STATUS), READY);
    bench.write(STATUS, STATUS_DEVICE_NEEDS_RESET | STATUS_ACKNOWLEDGE);
    assert_eq!(bench.read(STATUS), READY, "bits are neither taken away nor made up");
    bench.set_up_queue();
    bench.write(STATUS, READY | STATUS_DRIVER_OK);
    assert_eq!(bench.read(STATUS), READY | STATUS_DRIVER_OK);
    let activation = lock(&device).activated.as_ref().map(|a| (a.features, a.queues.len()));
    assert_eq!(activation, Some((VIRTIO_F_VERSION_1 | 1, 2)));
    assert!(lock(&device).queues().unwrap()[1].is_none(), "a queue that was left alone");
    bench.write(STATUS, 0);
    assert_eq!(bench.read(STATUS), 0);
    assert!(lock(&device).activated.is_none());
}

#[test]
fn features_are_refused_unless_offered_and_modern() {
    let (mut bench, _) = probe();
    let accepts = |bench: &mut Bench, words: [(u32, u32); 3]| {
        bench.write(STATUS, 0);
        bench.write(STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
        for (sel, word) in words {
            bench.write(DRIVER_FEATURES_SEL, sel);
            bench.write(DRIVER_FEATURES, word);
        }
        bench.write(STATUS, READY);
        bench.read(STATUS) == READY
    };
    assert!(accepts(&mut bench, [(0, 1), (1, 1), (2, 0)]));
    assert!(!accepts(&mut bench, [(0, 1), (1, 0), (2, 0)]), "without VERSION_1");
    assert!(!accepts(&mut bench, [(0, 2), (1, 1), (2, 0)]), "not offered");
    assert!(!accepts(&mut bench, [(0, 1), (1, 1), (2, 1)]), "beyond 64 bits");
    assert!(!accepts(&mut bench, [(0, 1), (1, 1), (3, 1)]));
    assert!(accepts(&mut bench, [(0, 1), (1, 1), (4, 1)]), "there is no such word");
    // Once accepted, they stay.
    bench.write(DRIVER_FEATURES_SEL, 0);
    bench.write(DRIVER_FEATURES, 0xffff_ffff);
    assert_eq!(bench.transport.core.features(), VIRTIO_F_VERSION_1 | 1);
}

#[test]
fn a_queue_is_set_up_only_in_its_time() {
    let (mut bench, device) = probe();
    bench.set_up_queue();
    assert_eq!(bench.read(QUEUE_READY), 0, "not before FEATURES_OK");
    bench.negotiate(0);
    bench.set_up_queue();
    assert_eq!(bench.read(QUEUE_READY), 1);
    bench.write(QUEUE_NUM, 2);
    bench.write(QUEUE_DESC_LOW, 0x7000);
    bench.write(STATUS, READY | STATUS_DRIVER_OK);
    for (offset, value) in [
        (QUEUE_NUM, 4),
        (QUEUE_DESC_LOW, 0x6000),
        (QUEUE_DRIVER_HIGH, 1),
        (QUEUE_DEVICE_LOW, 2),
        (QUEUE_READY, 0),
        (DRIVER_FEATURES, 0),
    ] {
        bench.write(offset, value);
    }
    assert_eq!(bench.read(QUEUE_READY), 1);
    let expected = bench.rings.clone();
    let device = lock(&device);
    let running = device.queues().unwrap()[0].as_ref().unwrap();
    for q in [running, &bench.transport.core.queues[0]] {
        assert_eq!((q.size(), q.desc_table()), (expected.size, expected.desc));
        assert_eq!((q.avail_ring(), q.used_ring()), (expected.avail, expected.used));
    }
}

#[test]
fn bad_queues_and_refusals_end_in_needs_reset_until_the_reset() {
    let (mut bench, device) = probe();
    for (offset, value) in [
        (QUEUE_NUM, 0),
        (QUEUE_NUM, 3),
        (QUEUE_NUM, 128),
        (QUEUE_NUM, 0x1_0010),
        (QUEUE_DESC_HIGH, 1),
        (QUEUE_DRIVER_LOW, 1),
        (QUEUE_DEVICE_LOW, HOLE as u32),
    ] {
        bench.negotiate(0);
        bench.set_up_queue();
        bench.write(QUEUE_READY, 0);
        bench.write(offset, value);
        bench.write(QUEUE_READY, 1);
        assert!(!bench.needs_reset());
        bench.write(STATUS, READY | STATUS_DRIVER_OK);
        assert!(bench.needs_reset(), "register {offset:#x} = {value:#x}");
        assert_eq!(bench.read(INTERRUPT_STATUS), INT_CONFIG);
        assert!(lock(&device).activated.is_none());
        assert_eq!(bench.kick(), 1);
        assert!(lock(&device).events.is_empty(), "it stands still");
    }
    lock(&device).refuse = true;
    bench.start(0);
    assert!(bench.needs_reset());
    lock(&device).refuse = false;
    bench.start(0);
    assert!(!bench.needs_reset());
    assert_eq!(bench.read(INTERRUPT_STATUS), 0);
    assert!(lock(&device).activated.is_some());
}

#[test]
fn a_failed_driver_gets_nothing_more_until_the_reset() {
    let (mut bench, device) = probe();
    bench.negotiate(0);
    bench.write(STATUS, STATUS_FAILED);
    bench.set_up_queue();
    bench.write(STATUS, READY | STATUS_DRIVER_OK);
    assert_eq!(bench.read(STATUS), READY | STATUS_FAILED);
    bench.transport.write(CONFIG, &[1]);
    assert_eq!(lock(&device).config[0], 0);
    assert!(lock(&device).activated.is_none());
    bench.start(0);
    assert!(lock(&device).activated.is_some());
}

#[test]
fn notifications_ring_the_doorbell_of_their_queue() {
    let (mut bench, device) = probe();
    bench.start(0);
    for queue in [0, 1, 2, 0xffff, u32::MAX] {
        bench.write(QUEUE_NOTIFY, queue);
        bench.run();
    }
    assert_eq!(lock(&device).events, [0, 1], "the others don't exist");
}

#[test]
fn interrupts_are_acknowledged_without_the_device() {
    let (mut bench, device) = probe();
    bench.start(0);
    let busy = lock(&device);
    bench.transport.interrupt().queue(0);
    bench.transport.interrupt().config();
    assert_eq!(bench.read(INTERRUPT_STATUS), INT_VRING | INT_CONFIG);
    bench.write(INTERRUPT_ACK, INT_VRING);
    assert_eq!(bench.read(INTERRUPT_STATUS), INT_CONFIG);
    bench.write(INTERRUPT_ACK, u32::MAX);
    assert_eq!(bench.read(INTERRUPT_STATUS), 0);
    bench.write(QUEUE_NOTIFY, 0);
    assert_eq!(bench.read(STATUS) & STATUS_DRIVER_OK, STATUS_DRIVER_OK);
    drop(busy);
}

#[test]
fn the_configuration_is_read_in_any_width_and_its_changes_show() {
    let (mut bench, device) = probe();
    lock(&device).config = *b"abcdefgh";
    let mut data = [0xff; 4];
    for width in [1, 2, 4] {
        bench.transport.read(CONFIG + 1, &mut data[..width]);
        assert_eq!(&data[..width], &b"bcde"[..width]);
    }
    bench.transport.read(CONFIG + 6, &mut data);
    assert_eq!(&data, b"gh\0\0");
    let mut eight = [0xff; 8];
    bench.transport.read(CONFIG, &mut eight);
    assert_eq!(eight, [0xff; 8]);
    let generation = bench.read(CONFIG_GENERATION);
    assert_eq!(bench.read(CONFIG_GENERATION), generation);
    bench.transport.write(CONFIG, b"x");
    assert_eq!(bench.read(CONFIG_GENERATION), generation, "there is no driver yet");
    bench.start(0);
    bench.transport.write(CONFIG, b"x");
    bench.transport.write(CONFIG + 4000, b"x");
    assert_eq!(&lock(&device).config, b"xbcdefgh");
    assert_ne!(bench.read(CONFIG_GENERATION), generation);
}

#[test]
fn a_reset_waits_for_the_worker() {
    let (mut bench, device) = probe();
    bench.start(0);
    let busy = lock(&device);
    let thread = std::thread::spawn(move || {
        bench.write(STATUS, 0);
        bench.needs_reset()
    });
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(!thread.is_finished() && busy.resets == 1, "only the one of the start");
    // As the worker does it: under the lock, so that the mark is reset, too.
    busy.activated.as_ref().unwrap().interrupt.mark_needs_reset();
    drop(busy);
    assert!(!thread.join().unwrap());
    assert_eq!(lock(&device).resets, 2);
}

#[test]
fn an_error_stops_the_device_until_the_reset() {
    let (mut bench, device) = probe();
    bench.start(0);
    lock(&device).broken.store(true, Ordering::SeqCst);
    bench.kick();
    assert!(bench.needs_reset());
    bench.kick();
    assert_eq!(lock(&device).events, [0]);
    lock(&device).broken.store(false, Ordering::SeqCst);
    bench.start(0);
    bench.kick();
    assert!(!bench.needs_reset());
    assert_eq!(lock(&device).events, [0, 0]);
}

#[test]
fn a_saved_transport_goes_on_where_it_was() {
    let (mut bench, device) = probe();
    bench.start(1 | VIRTIO_RING_F_EVENT_IDX);
    bench.transport.write(CONFIG, b"q");
    bench.transport.interrupt().queue(0);
    bench.write(QUEUE_SEL, 1);
    let generation = bench.read(CONFIG_GENERATION);
    let mem = bench.mem.clone();
    let head = bench.rings.chain(&mem, &[(0x8000, 1)], &[]);
    bench.rings.offer(&mem, head);
    if let Some(Some(q)) = &mut lock(&device).activated.as_mut().unwrap().queues.first_mut() {
        assert_eq!(q.pop(&mem, &mut Default::default()), Ok(true));
    }
    let saved = bench.transport.save().unwrap();
    let json = serde_json::to_string(&saved).unwrap();

    let (mut bench, device) = probe();
    bench.transport.restore(&serde_json::from_str(&json).unwrap()).unwrap();
    assert_eq!(bench.read(STATUS), READY | STATUS_DRIVER_OK);
    assert_eq!(bench.read(INTERRUPT_STATUS), INT_VRING);
    assert_eq!(bench.transport.interrupt().line().unwrap().eventfd().read().unwrap(), 1);
    assert_eq!(bench.read(QUEUE_NUM_MAX), 16, "the selector");
    assert_ne!(bench.read(CONFIG_GENERATION), generation);
    assert_eq!(lock(&device).config[0], b'q');
    {
        let device = lock(&device);
        let active = device.activated.as_ref().unwrap();
        assert_eq!(active.features, VIRTIO_F_VERSION_1 | VIRTIO_RING_F_EVENT_IDX | 1);
        let queue = active.queues[0].as_ref().unwrap().save();
        assert_eq!((queue.next_avail, queue.event_idx), (1, true));
    }
    assert_eq!(bench.run(), 1, "a doorbell that was lost rings again");
}

#[test]
fn a_state_that_does_not_fit_is_refused_and_leaves_a_reset_device() {
    let (mut bench, device) = probe();
    bench.start(1);
    let saved = bench.transport.save().unwrap();
    let cases: [(&str, serde_json::Value); 6] = [
        ("/driver_features/0", 2.into()),
        ("/driver_features/2", 2.into()),
        ("/queues/0/max_size", 32.into()),
        ("/queues/0/desc_table", HOLE.into()),
        ("/queues", serde_json::json!([])),
        ("/status", 3.into()),
    ];
    for (at, value) in cases {
        let mut bad = saved.clone();
        *bad.data.pointer_mut(at).unwrap() = value;
        assert!(bench.transport.restore(&bad).is_err(), "{at}");
        assert_eq!(bench.read(STATUS), 0);
        assert!(lock(&device).activated.is_none());
    }
    bench.transport.restore(&saved).unwrap();
    assert!(lock(&device).activated.is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn no_driver_breaks_the_registers(program in proptest::collection::vec(any::<u8>(), 0..600)) {
        hostile::mmio(&program);
    }
}

/// Who raises the line does not tell why; the status has to.
#[test]
fn the_status_has_a_cause_while_another_raises_the_line() {
    let mut bench = Bench::started(Arc::new(Mutex::new(crate::virtio::rng::Rng::new())), 0);
    let calls = Arc::new(Calls::default());
    let interrupt = bench.transport.interrupt().clone();
    interrupt.delegate(calls.clone(), 1);
    let line = interrupt.line().unwrap().eventfd();
    assert_eq!(*lock(&calls.0), [(0, Some(std::os::fd::AsRawFd::as_raw_fd(line)))]);
    for _ in 0..2 {
        assert_eq!(bench.read(INTERRUPT_STATUS), crate::virtio::INT_VRING);
        bench.write(INTERRUPT_ACK, 1);
    }
    interrupt.config();
    assert_eq!(bench.read(INTERRUPT_STATUS), crate::virtio::INT_VRING | crate::virtio::INT_CONFIG);
    bench.write(STATUS, 0);
    assert_eq!(bench.read(INTERRUPT_STATUS), 0);
}
