//! Guest RAM: one private anonymous mapping, aligned to 2 MiB so that the host
//! can back it with huge pages, cut into the ranges of the memory map.

use arch::layout;
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use std::io;
use std::ptr;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

/// Guest memory.
pub type Ram = GuestMemoryMmap<()>;

/// The size of a huge page; the mapping starts on such a border.
const ALIGN: usize = 2 << 20;
const PROT: i32 = libc::PROT_READ | libc::PROT_WRITE;
const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host has no room for it.
    #[error("memory: {size} MiB: {source}: lower --memory")]
    Map {
        /// MiB asked for.
        size: u64,
        /// What the host said.
        source: io::Error,
    },
    /// KVM refused it.
    #[error("memory: KVM_SET_USER_MEMORY_REGION {base:#x}+{len:#x}: {source}")]
    Register {
        /// Guest address.
        base: u64,
        /// Length in bytes.
        len: u64,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
}

/// Maps `size` bytes of guest RAM. Nothing is populated: the host gives pages
/// as the guest touches them. The mapping lives as long as the process, since
/// devices on other threads may hold on to it.
pub fn allocate(size: u64) -> Result<Ram, MemoryError> {
    let failed = |source| MemoryError::Map { size: size >> 20, source };
    let start = map_aligned(size as usize).map_err(failed)?;
    let mut offset = 0;
    let mut regions = Vec::new();
    for (base, len) in layout::ram_ranges(size) {
        // SAFETY: `start` is a private mapping of `size` bytes that nobody
        // unmaps; the ranges add up to `size` and each gets its own part.
        let region = unsafe {
            MmapRegionBuilder::new(len as usize)
                .with_raw_mmap_pointer(start.add(offset))
                .with_mmap_prot(PROT)
                .with_mmap_flags(FLAGS)
                .build()
        };
        let region = region.map_err(|e| failed(io::Error::other(e)))?;
        let region = GuestRegionMmap::new(region, GuestAddress(base))
            .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        regions.push(region);
        offset += len as usize;
    }
    Ram::from_regions(regions).map_err(|e| failed(io::Error::other(e)))
}

/// A fresh anonymous mapping of `size` bytes that starts on a 2 MiB border.
fn map_aligned(size: usize) -> io::Result<*mut u8> {
    let whole = size.checked_add(ALIGN).ok_or(io::ErrorKind::OutOfMemory)?;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let map = unsafe { libc::mmap(ptr::null_mut(), whole, PROT, FLAGS, -1, 0) };
    if map == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let map = map.cast::<u8>();
    let before = map.align_offset(ALIGN);
    let after = ALIGN - before;
    // SAFETY: both ends lie inside the mapping made above, outside of the
    // `size` bytes that are returned; failure leaves some address space unused.
    unsafe {
        if before > 0 {
            libc::munmap(map.cast(), before);
        }
        if after > 0 {
            libc::munmap(map.add(before + size).cast(), after);
        }
        let start = map.add(before);
        // Advice only: without huge pages the guest is slower, not wrong.
        libc::madvise(start.cast(), size, libc::MADV_HUGEPAGE);
        // A core dump of the monitor is not the place for the guest's memory.
        libc::madvise(start.cast(), size, libc::MADV_DONTDUMP);
        Ok(start)
    }
}

/// Gives all of `ram` to the virtual machine, a slot a region.
pub fn register(vm: &VmFd, ram: &Ram) -> Result<(), MemoryError> {
    for (slot, region) in ram.iter().enumerate() {
        let (base, len) = (region.start_addr().0, region.len());
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: base,
            memory_size: len,
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is mapped for the process's life (`allocate`).
        unsafe { vm.set_user_memory_region(slot) }.map_err(|source| MemoryError::Register {
            base,
            len,
            source,
        })?;
    }
    Ok(())
}

/// The slot of firmware's image, far from those of RAM.
const ROM_SLOT: u32 = 0x100;

/// Shows the guest `image` at `base`, read-only: writes reach the buses. Its
/// size is whole pages.
pub fn register_rom(vm: &VmFd, base: u64, image: &[u8]) -> Result<(), MemoryError> {
    let map = map_aligned(image.len());
    let map = map.map_err(|source| MemoryError::Map { size: image.len() as u64 >> 20, source })?;
    // SAFETY: the mapping was just made, has this size and is nobody else's.
    unsafe { ptr::copy_nonoverlapping(image.as_ptr(), map, image.len()) };
    let slot = kvm_userspace_memory_region {
        slot: ROM_SLOT,
        flags: KVM_MEM_READONLY,
        guest_phys_addr: base,
        memory_size: image.len() as u64,
        userspace_addr: map as u64,
    };
    // SAFETY: the mapping is never unmapped.
    unsafe { vm.set_user_memory_region(slot) }.map_err(|source| MemoryError::Register {
        base,
        len: image.len() as u64,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_covers_the_map() {
        for size in [32u64 << 20, 5 << 30] {
            let ram = allocate(size).unwrap();
            let total: u64 = ram.iter().map(|r| r.len()).sum();
            assert_eq!(total, size);
            for region in ram.iter() {
                assert_eq!(region.as_ptr() as usize % ALIGN, 0);
            }
        }
    }
}
