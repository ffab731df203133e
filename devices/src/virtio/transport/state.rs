//! What a transport saves: registers, queues and the device behind.

use super::{Core, STATUS_DRIVER_OK, STATUS_FEATURES_OK};
use crate::bus::lock;
use crate::state::{Saved, StateError};
use crate::virtio::queue::{QueueState, Vq};
use serde::{Deserialize, Serialize};

const KIND: &str = "virtio transport";

/// The saved state of a transport and its device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // The names are those of the registers.
pub struct TransportState {
    pub status: u32,
    pub device_features_sel: u32,
    pub driver_features_sel: u32,
    pub driver_features: [u32; 4],
    pub queue_sel: u32,
    pub config_generation: u32,
    pub activated: bool,
    pub interrupt_status: u32,
    pub needs_reset: bool,
    pub queues: Vec<QueueState>,
    pub device: Saved,
}

impl Core {
    /// The state of transport, queues and device. Only while no vCPU runs and
    /// no event is being handled.
    pub fn save(&self) -> Result<TransportState, StateError> {
        let mut device = lock(&self.device);
        if let Err(e) = device.settle() {
            // As if it had happened in an event.
            log::warn!("virtio {:?}: needs a reset: {e}", self.id);
            self.interrupt.mark_needs_reset();
        }
        let running = device.queues().unwrap_or_default();
        let queues = self.queues.iter().enumerate().map(|(i, configured)| {
            running.get(i).and_then(Option::as_ref).unwrap_or(configured).save()
        });
        let (interrupt_status, needs_reset) = self.interrupt.save();
        Ok(TransportState {
            status: self.status,
            device_features_sel: self.device_features_sel,
            driver_features_sel: self.driver_features_sel,
            driver_features: self.driver_features,
            queue_sel: self.queue_sel,
            config_generation: self.config_generation,
            activated: self.activated,
            interrupt_status,
            needs_reset,
            queues: queues.collect(),
            device: device.save()?,
        })
    }

    /// Takes over a saved state and activates the device if it was active. On
    /// error the device is as after a reset.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), StateError> {
        self.reset();
        let restored = self.try_restore(state);
        if restored.is_err() {
            self.reset();
        }
        restored
    }

    fn try_restore(&mut self, state: &TransportState) -> Result<(), StateError> {
        if state.queues.len() != self.queues.len() {
            let reason = format!("{} queues, not {}", state.queues.len(), self.queues.len());
            return Err(invalid(reason));
        }
        for (q, s) in self.queues.iter_mut().zip(&state.queues) {
            q.restore(s).map_err(|e| invalid(e.to_string()))?;
        }
        self.status = state.status;
        self.device_features_sel = state.device_features_sel;
        self.driver_features_sel = state.driver_features_sel;
        self.driver_features = state.driver_features;
        self.queue_sel = state.queue_sel;
        // One more than the driver has seen: what is behind the device may be
        // another size by now.
        self.config_generation = state.config_generation.wrapping_add(1);
        self.config_seen.clear();
        if self.has(STATUS_FEATURES_OK) && !self.features_acceptable() {
            let reason = format!("features {:#x} are not offered here", self.features());
            return Err(invalid(reason));
        }
        if state.activated && !self.has(STATUS_FEATURES_OK | STATUS_DRIVER_OK) {
            return Err(invalid("an active device without DRIVER_OK".to_owned()));
        }
        lock(&self.device).restore(&state.device)?;
        // A device that waits for its reset has no use for its queues.
        if state.activated && !state.needs_reset {
            self.activate().map_err(|e| invalid(e.to_string()))?;
            // Doorbells that rang before the save are not part of the state.
            self.queues.iter().filter(|q| q.ready()).for_each(Vq::call_again);
        }
        self.interrupt.restore((state.interrupt_status, state.needs_reset));
        Ok(())
    }
}

fn invalid(reason: String) -> StateError {
    StateError::Invalid { kind: KIND, reason }
}
