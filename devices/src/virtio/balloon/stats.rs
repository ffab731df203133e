//! The guest's statistics of its memory (5.5.6.4).

use crate::virtio::Ram;
use crate::virtio::queue::{Chain, QueueError};

/// Bytes of `struct virtio_balloon_stat`: a tag and a value, packed.
const ENTRY: usize = 10;
/// Entries of a report that are looked at. There are fewer tags.
const MAX_ENTRIES: usize = 64;

/// What each tag is called among the counters.
const NAMES: [&str; 16] = [
    "guest_swapped_in_bytes",
    "guest_swapped_out_bytes",
    "guest_major_faults",
    "guest_minor_faults",
    "guest_free_bytes",
    "guest_total_bytes",
    "guest_available_bytes",
    "guest_disk_cache_bytes",
    "guest_hugetlb_allocations",
    "guest_hugetlb_failures",
    "guest_oom_kills",
    "guest_allocation_stalls",
    "guest_async_scanned_pages",
    "guest_direct_scanned_pages",
    "guest_async_reclaimed_pages",
    "guest_direct_reclaimed_pages",
];

/// The last value of each statistic that the guest has told.
#[derive(Debug, Default, Clone)]
pub struct Stats {
    values: [Option<u64>; NAMES.len()],
    /// Reports so far.
    pub reports: u64,
}

impl Stats {
    /// Takes in a report. Tags that nobody knows are left out.
    pub fn take(&mut self, mem: &Ram, chain: &Chain) -> Result<(), QueueError> {
        let len = chain.readable_len().min((ENTRY * MAX_ENTRIES) as u64) as usize;
        let mut bytes = [0; ENTRY * MAX_ENTRIES];
        let report = &mut bytes[..len / ENTRY * ENTRY];
        chain.read_at(mem, 0, report)?;
        for entry in report.chunks_exact(ENTRY) {
            let (tag, value) = entry.split_at(2);
            let tag = u16::from_le_bytes(tag.try_into().unwrap_or_default());
            if let Some(slot) = self.values.get_mut(usize::from(tag)) {
                *slot = value.try_into().ok().map(u64::from_le_bytes);
            }
        }
        self.reports += 1;
        Ok(())
    }

    /// Those that the guest has told, by name.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        NAMES.iter().zip(&self.values).filter_map(|(name, value)| Some((*name, (*value)?)))
    }
}
