//! `struct virtio_blk_config` (virtio 1.2, 5.2.4).

use super::{Block, MAX_DISCARD_SECTORS, MAX_RANGES, MAX_WRITE_ZEROES_SECTORS, SEG_MAX};
use crate::backend::disk::{Geometry, SECTOR};

/// Where `writeback` is in the configuration space.
pub const CONFIG_WRITEBACK: u64 = 32;

impl Block {
    /// The configuration space, up to `max_write_zeroes` and its padding.
    pub(super) fn config(&self) -> Vec<u8> {
        let Geometry { logical, physical, optimal } = self.disk.geometry();
        // Topology counts in logical blocks.
        let exponent = (physical / logical).checked_ilog2().unwrap_or(0).min(15);
        let sectors = |bytes: u32| bytes / SECTOR as u32;
        let mut c = Vec::with_capacity(60);
        c.extend((self.disk.len() / SECTOR).to_le_bytes()); // capacity
        c.extend(0u32.to_le_bytes()); // size_max: not offered
        c.extend(SEG_MAX.to_le_bytes());
        c.extend([0; 4]); // geometry: not offered
        c.extend(logical.to_le_bytes()); // blk_size
        c.extend([exponent as u8, 0]); // topology: physical_block_exp, alignment_offset
        c.extend((1u16 << exponent).to_le_bytes()); // min_io_size
        c.extend((optimal / logical).to_le_bytes()); // opt_io_size
        c.push(self.writeback.into());
        c.push(0);
        c.extend((self.queue_sizes.len() as u16).to_le_bytes()); // num_queues
        c.extend(MAX_DISCARD_SECTORS.to_le_bytes());
        c.extend(MAX_RANGES.to_le_bytes()); // max_discard_seg
        c.extend(sectors(physical.max(logical)).to_le_bytes()); // discard_sector_alignment
        c.extend(MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
        c.extend(MAX_RANGES.to_le_bytes()); // max_write_zeroes_seg
        c.extend([1, 0, 0, 0]); // write_zeroes_may_unmap
        c
    }
}
