//! The split virtqueue (virtio 1.2, 2.7), checked: our own type on `virtio-queue`.
/// A virtqueue.
pub struct Vq;
/// Why a queue was refused.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {}
