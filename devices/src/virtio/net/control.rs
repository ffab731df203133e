//! The control queue (virtio 1.2, 5.1.6.5): what a driver asks of the card
//! beside moving frames.
//!
//! ```text
//!  readable: class, command, data ─► Command ─► done or not ─► writable: ack
//! ```

use super::features;
use crate::virtio::queue::{Chain, QueueError};
use crate::virtio::{DeviceError, Ram};

/// `VIRTIO_NET_OK`.
pub const OK: u8 = 0;
/// `VIRTIO_NET_ERR`.
pub const ERR: u8 = 1;

/// `VIRTIO_NET_CTRL_MAC` and its `ADDR_SET`.
pub const MAC_ADDR_SET: (u8, u8) = (1, 1);
/// `VIRTIO_NET_CTRL_MQ` and its `VQ_PAIRS_SET`.
pub const MQ_VQ_PAIRS_SET: (u8, u8) = (4, 0);
/// `VIRTIO_NET_CTRL_GUEST_OFFLOADS` and its `SET`.
pub const GUEST_OFFLOADS_SET: (u8, u8) = (5, 0);

/// Class and command.
const HEADER: u64 = 2;
/// Commands before other devices have their turn: one may take the host a
/// millisecond.
pub(super) const SHARE: usize = 8;

/// Something that this card can do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Use so many pairs of queues.
    Pairs(usize),
    /// Have this address.
    Mac([u8; 6]),
    /// Receive with these offloads (5.1.6.5.6.1), as feature bits.
    Offloads(u64),
}

/// The command in `chain`; `None`: one that a card with these features does not
/// know, or not of the length that it has.
pub(super) fn parse(
    mem: &Ram,
    chain: &Chain,
    features: u64,
) -> Result<Option<Command>, QueueError> {
    let Some(len) = chain.readable_len().checked_sub(HEADER) else { return Ok(None) };
    let mut header = [0; HEADER as usize];
    chain.read_at(mem, 0, &mut header)?;
    let kind = (header[0], header[1]);
    let has = |feature| features & feature != 0;
    Ok(match (kind, len) {
        (MQ_VQ_PAIRS_SET, 2) if has(features::MQ) => {
            let count = u16::from_le_bytes(data(mem, chain)?);
            Some(Command::Pairs(count.into()))
        }
        (MAC_ADDR_SET, 6) if has(features::CTRL_MAC_ADDR) => Some(Command::Mac(data(mem, chain)?)),
        (GUEST_OFFLOADS_SET, 8) if has(features::CTRL_GUEST_OFFLOADS) => {
            Some(Command::Offloads(u64::from_le_bytes(data(mem, chain)?)))
        }
        _ => None,
    })
}

fn data<const N: usize>(mem: &Ram, chain: &Chain) -> Result<[u8; N], QueueError> {
    let mut bytes = [0; N];
    chain.read_at(mem, HEADER, &mut bytes)?;
    Ok(bytes)
}

/// Writes the answer. Without room for it there is nothing that a driver could
/// learn, so it did not want to.
pub(super) fn answer(mem: &Ram, chain: &Chain, ack: u8) -> Result<(), DeviceError> {
    if chain.writable_len() == 0 {
        return Err(DeviceError::Request("a network card's command without room for an answer"));
    }
    Ok(chain.write_at(mem, 0, &[ack])?)
}
