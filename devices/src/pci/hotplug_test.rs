use super::*;
use crate::pci::root::Function;
use proptest::collection::vec;
use proptest::prelude::*;
use std::sync::Mutex;

struct Card;

impl Function for Card {
    fn read_config(&mut self, _offset: usize, data: &mut [u8]) {
        data.fill(7);
    }
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}
}

fn card() -> SharedFunction {
    Arc::new(Mutex::new(Card))
}

fn registers() -> (HotPlug, Arc<Root>) {
    let root = Root::new(vec![card(), card()]);
    (HotPlug::new(root.clone()).unwrap(), root)
}

fn read(registers: &mut HotPlug, offset: u64) -> u32 {
    let mut data = [0xff; 4];
    registers.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn write(registers: &mut HotPlug, slots: u32) {
    registers.write(B0EJ, &slots.to_le_bytes());
}

#[test]
fn a_new_function_is_told_once() {
    let (mut registers, root) = registers();
    assert_eq!(root.free_slot(0), Some(3));
    assert!(root.insert(3, card()));
    assert!(!root.insert(3, card()), "taken");
    assert!(!root.insert(MAX_DEVICES, card()), "no such slot");
    registers.plugged(3);
    assert_eq!(read(&mut registers, PCIU), 8);
    assert_eq!(read(&mut registers, PCIU), 0);
    assert_eq!((root.free_slot(0), root.free_slot(1 << 4)), (Some(4), Some(5)));
}

#[test]
fn the_guest_gives_back_what_it_was_asked_for_and_nothing_else() {
    let (mut registers, root) = registers();
    let event = registers.event().unwrap();
    write(&mut registers, u32::MAX);
    assert!(registers.given_back().is_empty(), "nothing was asked");
    assert!(event.read().is_err());
    registers.release(2);
    assert_eq!(read(&mut registers, PCID), 4);
    assert_eq!(read(&mut registers, PCID), 0);
    registers.write(B0EJ, &[4]);
    registers.write(B0EJ + 1, &4u32.to_le_bytes());
    assert!(registers.given_back().is_empty(), "only whole registers are written");
    write(&mut registers, u32::MAX);
    write(&mut registers, u32::MAX);
    assert_eq!(event.read().unwrap(), 1);
    let gone: Vec<usize> = registers.given_back().iter().map(|(slot, _)| *slot).collect();
    assert_eq!(gone, [2]);
    assert_eq!(root.free_slot(0), Some(2));
    assert!(root.remove(0).is_none(), "the bridge stays");
}

#[test]
fn what_was_not_read_yet_survives_a_restoration() {
    let (mut a, _) = registers();
    a.plugged(1);
    a.release(2);
    let (mut b, _) = registers();
    assert!(b.restore(&a.save().unwrap()).unwrap(), "there is something to tell");
    assert_eq!((read(&mut b, PCIU), read(&mut b, PCID)), (2, 4));
    assert!(!b.restore(&b.save().unwrap()).unwrap());
    write(&mut b, 4);
    assert_eq!(b.given_back().len(), 1, "what was asked before was asked");
}

proptest! {
    #[test]
    fn storms_of_accesses_move_nothing_that_was_not_asked_for(
        accesses in vec((any::<bool>(), 0..SIZE, vec(any::<u8>(), 1..9)), 0..200),
        asked in any::<u32>(),
    ) {
        let functions = (1..MAX_DEVICES).map(|_| card()).collect();
        let root = Root::new(functions);
        let mut registers = HotPlug::new(root.clone()).unwrap();
        (0..MAX_DEVICES).filter(|slot| asked >> slot & 1 != 0).for_each(|s| registers.release(s));
        for (write, offset, mut data) in accesses {
            if write {
                registers.write(offset, &data);
            } else {
                registers.read(offset, &mut data);
            }
        }
        let given = registers.given_back().iter().fold(0u32, |all, (slot, _)| all | 1 << slot);
        prop_assert_eq!(given & !asked, 0);
        prop_assert_eq!(given & 1, 0);
        for slot in 1..MAX_DEVICES {
            prop_assert_eq!(root.remove(slot).is_none(), given >> slot & 1 != 0);
        }
    }
}
