//! Our queue against rust-vmm's `virtio-queue` on the same rings: whatever a
//! well-behaved driver does, both see the same chains, write the same used
//! ring and interrupt at the same moments.

use super::*;
use crate::virtio::testing::{Rings, ram};
use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};

const SIZE: u16 = 16;
const OURS: u64 = 0x1000;
const THEIRS: u64 = 0x11000;

fn theirs(rings: &Rings, event_idx: bool) -> Queue {
    let mut queue = Queue::new(SIZE).unwrap();
    queue.set_size(SIZE);
    queue.set_desc_table_address(Some(rings.desc as u32), Some(0));
    queue.set_avail_ring_address(Some(rings.avail as u32), Some(0));
    queue.set_used_ring_address(Some(rings.used as u32), Some(0));
    queue.set_event_idx(event_idx);
    queue.set_ready(true);
    queue
}

/// A chain as both see it: head, and address, length and direction of each part.
type Seen = (u16, Vec<(u64, u32, bool)>);

fn ours_pops(queue: &mut Vq, mem: &Ram) -> Option<Seen> {
    let mut chain = Chain::new();
    queue.pop(mem, &mut chain).unwrap().then(|| {
        let parts = |buffers: &[Buffer], write| {
            buffers.iter().map(|b| (b.addr.0, b.len, write)).collect::<Vec<_>>()
        };
        (chain.head, [parts(&chain.readable, false), parts(&chain.writable, true)].concat())
    })
}

fn theirs_pops(queue: &mut Queue, mem: &Ram) -> Option<Seen> {
    let chain = queue.pop_descriptor_chain(mem)?;
    let head = chain.head_index();
    let parts = chain.map(|d| (d.addr().0, d.len(), d.is_write_only())).collect();
    Some((head, parts))
}

#[derive(Debug, Clone)]
enum Step {
    /// The driver offers a chain of so many readable and writable buffers.
    Offer(usize, usize),
    /// The device takes a chain and gives it back with so many bytes written.
    Serve(u32),
    /// The device asks whether to interrupt.
    Interrupt,
    /// The driver asks for an interrupt so many buffers ahead.
    UsedEvent(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0usize..3, 0usize..3).prop_map(|(r, w)| Step::Offer(r, w.max(usize::from(r == 0)))),
        any::<u32>().prop_map(Step::Serve),
        Just(Step::Interrupt),
        (0u16..4).prop_map(Step::UsedEvent),
    ]
}

proptest! {
    #[test]
    fn both_queues_agree(
        event_idx in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..200),
    ) {
        let mem = ram();
        let mut drivers = [Rings::new(OURS, SIZE), Rings::new(THEIRS, SIZE)];
        let mut ours = drivers[0].queue(SIZE);
        ours.set_event_idx(event_idx);
        let mut theirs = theirs(&drivers[1], event_idx);
        // Descriptors of chains that have not come back: never reused.
        let mut free = usize::from(SIZE);
        let mut waiting = std::collections::VecDeque::new();
        for step in steps {
            match step {
                Step::Offer(r, w) if r + w <= free => {
                    let buffer = |i: usize| (0x8_0000 + 0x100 * i as u64, 16 + i as u32);
                    let readable: Vec<_> = (0..r).map(buffer).collect();
                    let writable: Vec<_> = (r..r + w).map(buffer).collect();
                    for driver in &mut drivers {
                        let head = driver.chain(&mem, &readable, &writable);
                        driver.offer(&mem, head);
                    }
                    free -= r + w;
                    waiting.push_back(r + w);
                }
                Step::Offer(..) => {}
                Step::Serve(written) => {
                    let (a, b) = (ours_pops(&mut ours, &mem), theirs_pops(&mut theirs, &mem));
                    prop_assert_eq!(&a, &b);
                    if let Some((head, _)) = a {
                        ours.push_used(&mem, head, written).unwrap();
                        theirs.add_used(&mem, head, written).unwrap();
                        free += waiting.pop_front().unwrap_or(0);
                    }
                }
                // Without event index the crate never looks at NO_INTERRUPT,
                // which these drivers do not set: both say yes if anything came.
                Step::Interrupt if event_idx => {
                    let a = ours.needs_interrupt(&mem).unwrap();
                    let b = theirs.needs_notification(&mem).unwrap();
                    prop_assert_eq!(a, b);
                }
                Step::Interrupt => {}
                Step::UsedEvent(ahead) => {
                    for driver in &drivers {
                        let event = theirs.next_used().wrapping_add(ahead);
                        let at = driver.avail + 4 + 2 * u64::from(SIZE);
                        mem.write_obj(event, GuestAddress(at)).unwrap();
                    }
                }
            }
            let used = |rings: &Rings| {
                let mut bytes = [0u8; 4 + 8 * SIZE as usize];
                mem.read_slice(&mut bytes, GuestAddress(rings.used)).unwrap();
                bytes
            };
            // The flags word (bytes 0 and 1) is each side's own business.
            prop_assert_eq!(&used(&drivers[0])[2..], &used(&drivers[1])[2..]);
        }
    }
}
