//! KVM's own statistics of a vCPU (`Documentation/virt/kvm/api.rst`, 4.133,
//! since Linux 5.14): a descriptor whose file holds a header, descriptions of
//! the numbers, and the numbers.

use kvm_ioctls::VcpuFd;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

/// `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;
/// `struct kvm_stats_header`: six 32-bit numbers.
const HEADER: usize = 24;
/// `struct kvm_stats_desc` without its name.
const DESCRIPTION: usize = 16;
/// What kind of number it is: bits 0 to 3 of the flags; cumulative or at most so
/// are single numbers that are worth showing.
const KIND_MASK: u32 = 0xf;
const KIND_CUMULATIVE: u32 = 0;
/// More than any kernel has.
const MAX_NUMBERS: usize = 1024;
const MAX_NAME: usize = 256;

/// The statistics of one vCPU.
pub struct Statistics {
    file: File,
    /// Names, and where the numbers are.
    numbers: Vec<(String, u64)>,
}

impl Statistics {
    /// Opens them, where KVM has them.
    pub fn open(vcpu: &VcpuFd) -> Option<Self> {
        // SAFETY: the request takes no argument and makes a descriptor.
        let fd = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_STATS_FD, 0) };
        if fd < 0 {
            log::debug!("KVM has no statistics: {}", io::Error::last_os_error());
            return None;
        }
        // SAFETY: a new descriptor that nobody else has.
        let file = unsafe { File::from_raw_fd(fd) };
        match describe(&file) {
            Ok(numbers) => Some(Self { file, numbers }),
            Err(e) => {
                log::debug!("KVM's statistics can't be read: {e}");
                None
            }
        }
    }

    /// The numbers as they are now.
    pub fn read(&self) -> Vec<(String, u64)> {
        let read = |at: u64| {
            let mut bytes = [0; 8];
            self.file.read_exact_at(&mut bytes, at).ok()?;
            Some(u64::from_le_bytes(bytes))
        };
        self.numbers.iter().filter_map(|(name, at)| Some((name.clone(), read(*at)?))).collect()
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).unwrap_or_default();
    u32::from_le_bytes(four)
}

fn describe(file: &File) -> io::Result<Vec<(String, u64)>> {
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0)?;
    let [name_size, many] = [4, 8].map(|at| word(&header, at) as usize);
    let [descriptions, data] = [16, 20].map(|at| u64::from(word(&header, at)));
    if many > MAX_NUMBERS || name_size > MAX_NAME {
        return Err(io::Error::other("their header makes no sense"));
    }
    let len = DESCRIPTION + name_size;
    let mut all = vec![0; many * len];
    file.read_exact_at(&mut all, descriptions)?;
    let single = all.chunks_exact(len).filter(|description| {
        let size = word(description, 4) >> 16;
        size == 1 && word(description, 0) & KIND_MASK == KIND_CUMULATIVE
    });
    Ok(single
        .map(|description| {
            let name = description.get(DESCRIPTION..).unwrap_or_default();
            let name = name.split(|b| *b == 0).next().unwrap_or_default();
            let name = String::from_utf8_lossy(name).into_owned();
            (name, data + u64::from(word(description, 8)))
        })
        .collect())
}
