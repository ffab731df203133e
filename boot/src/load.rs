//! Kernel, initrd and command line into guest memory.

use crate::kernel::{Format, Kernel};
use crate::{Initrd, Ram, linux, pvh, real16};
use arch::layout::{self, MemoryKind};
use arch::registers::{self, Entry};
use std::path::PathBuf;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

/// What is put into memory.
pub struct Payload<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Its initial RAM disk.
    pub initrd: Option<&'a Initrd>,
    /// Its whole command line.
    pub cmdline: &'a str,
    /// Guest memory in bytes.
    pub memory: u64,
    /// Address of the ACPI RSDP; 0 for none.
    pub rsdp: u64,
    /// How the kernel is entered.
    pub way: Way,
}

/// A way into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Way {
    /// The one that skips the most: PVH, or the 64-bit entry point.
    #[default]
    Direct,
    /// A bzImage's setup code, in real mode and with a BIOS.
    RealMode,
}

/// Why a payload can't be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel needs more RAM than there is.
    #[error(
        "kernel {path}: needs {need} MiB of memory below 3 GiB to start, the guest has {have} MiB: raise --memory"
    )]
    KernelTooLarge {
        /// The kernel.
        path: PathBuf,
        /// MiB that it takes.
        need: u64,
        /// MiB that there are.
        have: u64,
    },
    /// The initrd does not fit beside the kernel.
    #[error(
        "initrd {path}: {size} MiB don't fit beside the kernel in {have} MiB of memory: raise --memory"
    )]
    InitrdTooLarge {
        /// The initrd.
        path: PathBuf,
        /// Its size in MiB.
        size: u64,
        /// MiB that there are.
        have: u64,
    },
    /// The command line is too long.
    #[error(
        "command line: {len} bytes with what was added, this kernel takes {limit}: shorten --cmdline"
    )]
    CmdlineTooLong {
        /// Its length.
        len: usize,
        /// The kernel's limit.
        limit: usize,
    },
    /// Real mode is a bzImage's.
    #[error("kernel {path}: has no real-mode entry: give a bzImage, or another --board")]
    NoRealMode {
        /// The kernel.
        path: PathBuf,
    },
    /// Reading the kernel into memory failed.
    #[error("kernel {path}: {reason}")]
    Kernel {
        /// The kernel.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// Reading the initrd into memory failed.
    #[error("initrd {path}: {source}")]
    Initrd {
        /// The initrd.
        path: PathBuf,
        /// What went wrong.
        source: GuestMemoryError,
    },
    /// A boot table could not be written.
    #[error("boot tables don't fit into guest memory")]
    Tables,
}

/// Where things ended up, for the boot protocol's tables.
pub(crate) struct Placed {
    pub initrd: Option<(u64, u64)>,
    pub rsdp: u64,
    pub memory_map: Vec<(u64, u64, MemoryKind)>,
}

const MIB: u64 = 1 << 20;

/// Checks all that can be checked before memory exists.
pub fn check(payload: &Payload<'_>) -> Result<(), BootError> {
    place(payload).map(|_| ())
}

fn place(payload: &Payload<'_>) -> Result<Placed, BootError> {
    let Payload { kernel, initrd, cmdline, memory, rsdp, way } = payload;
    if *way == Way::RealMode && !has_real_mode(kernel) {
        return Err(BootError::NoRealMode { path: kernel.path.clone() });
    }
    let (limit, len) = (kernel.cmdline_limit(), cmdline.len());
    if len > limit {
        return Err(BootError::CmdlineTooLong { len, limit });
    }
    let low = (*memory).min(layout::LOW_RAM_END);
    if kernel.end() > low {
        return Err(BootError::KernelTooLarge {
            path: kernel.path.clone(),
            need: kernel.end().div_ceil(MIB),
            have: low / MIB,
        });
    }
    let initrd = initrd.map(|i| place_initrd(kernel, i, low)).transpose()?;
    Ok(Placed { initrd, rsdp: *rsdp, memory_map: layout::memory_map(*memory) })
}

fn has_real_mode(kernel: &Kernel) -> bool {
    match &kernel.format {
        Format::Elf(_) => false,
        Format::BzImage(image) => image.setup_size <= real16::MAX_SETUP,
    }
}

/// The initrd goes as high as the kernel allows, on a page of its own.
fn place_initrd(kernel: &Kernel, initrd: &Initrd, low: u64) -> Result<(u64, u64), BootError> {
    let top = match &kernel.format {
        Format::Elf(_) => low,
        Format::BzImage(image) => low.min(image.initrd_addr_max.saturating_add(1)),
    };
    let address = top.checked_sub(initrd.size).map(|a| a & !0xfff);
    match address.filter(|a| *a >= kernel.end()) {
        Some(address) => Ok((address, initrd.size)),
        None => Err(BootError::InitrdTooLarge {
            path: initrd.path.clone(),
            size: initrd.size.div_ceil(MIB),
            have: low / MIB,
        }),
    }
}

/// Loads everything; returns how the first vCPU enters.
pub fn load(mem: &Ram, payload: &Payload<'_>) -> Result<Entry, BootError> {
    let placed = place(payload)?;
    let kernel = payload.kernel;
    let failed = |reason: String| BootError::Kernel { path: kernel.path.clone(), reason };

    let (entry, header) = match &kernel.format {
        Format::Elf(elf) => {
            elf.load(&kernel.file, mem).map_err(|e| failed(e.to_string()))?;
            match elf.pvh_entry {
                Some(eip) => (Entry::Pvh { eip }, None),
                None => (Entry::Long { rip: elf.entry }, None),
            }
        }
        Format::BzImage(image) if payload.way == Way::RealMode => {
            let entry = real16::load(image, &kernel.file, mem, &placed);
            (entry.map_err(|e| failed(e.to_string()))?, None)
        }
        Format::BzImage(image) => {
            let loaded = image.load(&kernel.file, mem).map_err(|e| failed(e.to_string()))?;
            (Entry::Long { rip: loaded.0 }, Some(loaded.1))
        }
    };
    if let (Some(initrd), Some((address, _))) = (payload.initrd, placed.initrd) {
        let path = initrd.path.clone();
        initrd.load(mem, address).map_err(|source| BootError::Initrd { path, source })?;
    }
    // The NUL is there already: guest memory is zero.
    mem.write_slice(payload.cmdline.as_bytes(), GuestAddress(layout::CMDLINE))
        .map_err(|_| BootError::Tables)?;
    match entry {
        Entry::Pvh { .. } => pvh::write(mem, &placed)?,
        Entry::Long { .. } => linux::write(mem, header, &placed)?,
        // The setup code finds it all out by itself.
        Entry::Real { .. } => {}
    }
    registers::write_tables(mem, entry).map_err(|_| BootError::Tables)?;
    Ok(entry)
}
