//! `struct virtio_pci_common_cfg` (virtio 1.2, 4.1.4.3). Fields are accessed at
//! their own width, those of 64 bits in halves; anything else reads as zero and
//! is dropped when written.

use crate::pci::msix::Msix;
use crate::virtio::transport::{Core, Part};

/// Bytes of the structure.
pub const SIZE: u32 = 0x38;

const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_MSIX_VECTOR: u64 = 0x10;
const NUM_QUEUES: u64 = 0x12;
const DEVICE_STATUS: u64 = 0x14;
const CONFIG_GENERATION: u64 = 0x15;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_MSIX_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFF: u64 = 0x1e;
const QUEUE_DESC: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;
const HIGH: u64 = 4;

/// Reads a field.
pub fn read(core: &mut Core, msix: &Msix, offset: u64, data: &mut [u8]) {
    let value = field(core, msix, offset, data.len()).unwrap_or(0).to_le_bytes();
    for (i, to) in data.iter_mut().enumerate() {
        *to = value.get(i).copied().unwrap_or(0);
    }
}

fn field(core: &mut Core, msix: &Msix, offset: u64, width: usize) -> Option<u32> {
    let queue = core.queue_sel as usize;
    Some(match (width, offset) {
        (4, DEVICE_FEATURE_SELECT) => core.device_features_sel,
        (4, DEVICE_FEATURE) => core.device_features(),
        (4, DRIVER_FEATURE_SELECT) => core.driver_features_sel,
        (4, DRIVER_FEATURE) => core.driver_features(),
        (2, CONFIG_MSIX_VECTOR) => msix.vector(None).into(),
        (2, NUM_QUEUES) => core.queue_count() as u32,
        (1, DEVICE_STATUS) => core.status(),
        (1, CONFIG_GENERATION) => core.generation() & 0xff,
        (2, QUEUE_SELECT) => core.queue_sel,
        (2, QUEUE_SIZE) => core.selected().map_or(0, |q| q.size().into()),
        (2, QUEUE_MSIX_VECTOR) => msix.vector(Some(queue)).into(),
        (2, QUEUE_ENABLE) => core.selected().map_or(0, |q| q.ready().into()),
        (2, QUEUE_NOTIFY_OFF) => core.queue_sel,
        (4, QUEUE_DESC..SIZE_64) => {
            let q = core.selected()?;
            let address = match offset & !7 {
                QUEUE_DESC => q.desc_table(),
                QUEUE_DRIVER => q.avail_ring(),
                _ => q.used_ring(),
            };
            (address >> (8 * (offset & HIGH))) as u32
        }
        _ => return None,
    })
}

const SIZE_64: u64 = SIZE as u64;

/// Writes a field.
pub fn write(core: &mut Core, msix: &Msix, offset: u64, data: &[u8]) {
    // A driver of 64 bits may write an address at once.
    if let Ok(both) = <[u8; 8]>::try_from(data) {
        write(core, msix, offset, &both[..4]);
        return write(core, msix, offset + HIGH, &both[4..]);
    }
    let value = data.iter().rev().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
    match (data.len(), offset) {
        (4, DEVICE_FEATURE_SELECT) => core.device_features_sel = value,
        (4, DRIVER_FEATURE_SELECT) => core.driver_features_sel = value,
        (4, DRIVER_FEATURE) => core.set_driver_features(value),
        (2, CONFIG_MSIX_VECTOR) => msix.set_vector(None, value as u16),
        (1, DEVICE_STATUS) => core.set_status(value),
        (2, QUEUE_SELECT) => core.queue_sel = value,
        (2, QUEUE_SIZE) => core.set_queue_size(value),
        (2, QUEUE_MSIX_VECTOR) => msix.set_vector(Some(core.queue_sel as usize), value as u16),
        // A driver can enable a queue, and only a reset disables it.
        (2, QUEUE_ENABLE) if value == 1 => core.set_queue_ready(true),
        (4, QUEUE_DESC..SIZE_64) => {
            let part = match offset & !7 {
                QUEUE_DESC => Part::Descriptors,
                QUEUE_DRIVER => Part::Driver,
                _ => Part::Device,
            };
            match offset {
                QUEUE_DESC | QUEUE_DRIVER | QUEUE_DEVICE => {
                    core.set_queue_address(part, Some(value), None);
                }
                _ if offset & 3 == 0 => core.set_queue_address(part, None, Some(value)),
                _ => {}
            }
        }
        _ => {}
    }
}
