//! What the guest asks of the machine as a whole.

use std::sync::Arc;

/// A request that ends or resets the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// Power off (ACPI S5).
    PowerOff,
    /// Reset (ACPI reset register, keyboard controller).
    Reset,
    /// The guest's kernel panicked (pvpanic).
    Panic,
}

/// Where devices send requests. It is called on the vCPU thread that wrote the
/// register, and must not block.
#[derive(Clone)]
pub struct PowerLine(Arc<dyn Fn(PowerRequest) + Send + Sync>);

impl PowerLine {
    /// A line that calls `handler`.
    pub fn new(handler: impl Fn(PowerRequest) + Send + Sync + 'static) -> Self {
        Self(Arc::new(handler))
    }

    /// Sends a request.
    pub fn request(&self, request: PowerRequest) {
        (self.0)(request);
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use std::sync::Mutex;

    /// A line that remembers what came over it.
    pub fn recorder() -> (PowerLine, Arc<Mutex<Vec<PowerRequest>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let line = seen.clone();
        (PowerLine::new(move |r| line.lock().unwrap().push(r)), seen)
    }
}
