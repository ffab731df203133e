//! Where guest memory is in ours, found without a search.
//!
//! vm-memory looks for the region of every access by bisection and cuts it into
//! pieces by an iterator. A request makes twenty accesses, so that was most of
//! what it cost a device. Yet nearly always an access lies in one of one or two
//! regions; where it lies across two, vm-memory still does it.

use crate::virtio::Ram;
use std::sync::atomic::{AtomicU16, Ordering};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

/// A piece of guest memory that lies in one region.
///
/// The guest may change it at any time. So nothing here makes a reference to it,
/// and what is read, is read once, into a copy.
pub(super) struct Place<'m> {
    region: &'m GuestRegionMmap<()>,
    /// From the start of the region.
    offset: usize,
    len: usize,
}

/// Two numbers at any address.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Pair(u64, u64);

/// One of them.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Single(u64);

impl<'m> Place<'m> {
    /// `len` bytes from `addr` on; `None`: they are not all in one region.
    pub fn of(mem: &'m Ram, addr: u64, len: u64) -> Option<Self> {
        mem.iter().find_map(|region| {
            let offset = addr.checked_sub(region.start_addr().0)?;
            let room = region.len().checked_sub(offset)?;
            // Both fit, as the region is mapped.
            (len <= room).then_some(Self { region, offset: offset as usize, len: len as usize })
        })
    }

    /// The first byte, for the kernel or for one of the accesses below.
    pub fn host(&self) -> *mut u8 {
        self.region.as_ptr().wrapping_add(self.offset)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Says that they are about to change.
    #[allow(clippy::unit_arg)] // There is no bitmap at present; then this is nothing.
    pub fn mark_dirty(&self) {
        self.region.bitmap().mark_dirty(self.offset, self.len);
    }

    /// The number, if there is one at such an address.
    fn atomic(&self) -> Option<&AtomicU16> {
        let host = self.host().cast::<u16>();
        // SAFETY: length and alignment are checked here, and `of` has found them
        // mapped for 'm. All accesses of ours to such a place at the same time
        // are atomic, and the guest's are as atomic as the processor's.
        (self.len == 2 && host.is_aligned()).then(|| unsafe { AtomicU16::from_ptr(host) })
    }

    /// Reads a ring's index or flags; `None`: not two bytes, or not aligned.
    pub fn load(&self, order: Ordering) -> Option<u16> {
        self.atomic().map(|place| u16::from_le(place.load(order)))
    }

    /// Writes them.
    pub fn store(&self, value: u16, order: Ordering) -> Option<()> {
        let place = self.atomic()?;
        self.mark_dirty();
        place.store(value.to_le(), order);
        Some(())
    }

    /// Reads a descriptor; `None`: not 16 bytes.
    pub fn descriptor(&self) -> Option<(u64, u64)> {
        if self.len != size_of::<Pair>() {
            return None;
        }
        // SAFETY: so many bytes are mapped at `host` for 'm, by `of`. `Pair` needs
        // no alignment, and any bytes are one. Volatile: the guest may change it.
        let Pair(low, high) = unsafe { self.host().cast::<Pair>().read_volatile() };
        Some((u64::from_le(low), u64::from_le(high)))
    }

    /// Writes an element of the used ring; `None`: not 8 bytes.
    pub fn store_u64(&self, value: u64) -> Option<()> {
        if self.len != size_of::<Single>() {
            return None;
        }
        self.mark_dirty();
        let value = Single(value.to_le());
        // SAFETY: as in `descriptor`; guest memory may be written.
        unsafe { self.host().cast::<Single>().write_volatile(value) };
        Some(())
    }

    /// Copies as many bytes as both have.
    pub fn read(&self, data: &mut [u8]) {
        let len = data.len().min(self.len);
        // SAFETY: `of` has found `self.len` bytes mapped at `host` for 'm. Nobody
        // has a reference to guest memory, so `data` does not overlap it; a
        // racing guest changes bytes, not our safety.
        unsafe { data.as_mut_ptr().copy_from_nonoverlapping(self.host(), len) };
    }

    /// Copies as many bytes as both have.
    pub fn write(&self, data: &[u8]) {
        let len = data.len().min(self.len);
        self.mark_dirty();
        // SAFETY: as in `read`, the other way around.
        unsafe { data.as_ptr().copy_to_nonoverlapping(self.host(), len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{END, HIGH, HOLE, SEAM, ram};
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn a_place_lies_in_one_region() {
        let mem = ram();
        for (addr, len) in [(0, 1), (0, SEAM), (SEAM - 2, 2), (SEAM, HOLE - SEAM), (HIGH, 16)] {
            assert!(Place::of(&mem, addr, len).is_some(), "{addr:#x}+{len:#x}");
        }
        for (addr, len) in [(SEAM - 1, 2), (HOLE, 1), (HOLE - 1, 2), (END, 1), (0, u64::MAX)] {
            assert!(Place::of(&mem, addr, len).is_none(), "{addr:#x}+{len:#x}");
        }
        assert!(Place::of(&mem, u64::MAX, 2).is_none());
    }

    #[test]
    fn an_odd_address_has_no_index() {
        let mem = ram();
        assert_eq!(Place::of(&mem, 1, 2).unwrap().load(Ordering::Relaxed), None);
        assert_eq!(Place::of(&mem, 2, 4).unwrap().load(Ordering::Relaxed), None);
        assert_eq!(Place::of(&mem, 2, 2).unwrap().load(Ordering::Relaxed), Some(0));
    }

    proptest! {
        /// The same bytes as vm-memory reads and writes, and no others.
        #[test]
        fn bytes_are_where_vm_memory_has_them(
            addr in 0..END + 64,
            data in prop::collection::vec(any::<u8>(), 16),
        ) {
            let mem = ram();
            let known = mem.check_range(GuestAddress(addr), 16);
            let Some(place) = Place::of(&mem, addr, 16) else {
                // Only what lies across the seam.
                prop_assert!(!known || (SEAM - 16..SEAM).contains(&addr));
                return Ok(());
            };
            place.write(&data);
            let mut back = [0; 16];
            mem.read_slice(&mut back, GuestAddress(addr)).unwrap();
            prop_assert_eq!(back.as_slice(), data.as_slice());
            place.read(&mut back);
            prop_assert_eq!(back.as_slice(), data.as_slice());
            let (low, high) = place.descriptor().unwrap();
            prop_assert_eq!(u128::from(low) | u128::from(high) << 64, u128::from_le_bytes(back));
            Place::of(&mem, addr + 8, 8).unwrap().store_u64(low).unwrap();
            mem.read_slice(&mut back, GuestAddress(addr)).unwrap();
            prop_assert_eq!(&back[8..], &data[..8]);
        }
    }
}
