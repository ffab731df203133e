//! The one place where it is decided how a machine ends.

use crate::exit::Exit;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Shared by all threads: the first to call [`Ending::end`] decides.
#[derive(Clone)]
pub struct Ending(Arc<Inner>);

struct Inner {
    ended: AtomicBool,
    how: Mutex<Option<Exit>>,
    event: EventFd,
}

impl Ending {
    /// A machine that has not ended.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Inner {
            ended: AtomicBool::new(false),
            how: Mutex::new(None),
            event: EventFd::new(EFD_NONBLOCK)?,
        })))
    }

    /// Ends the machine, unless it has ended already.
    pub fn end(&self, exit: Exit) {
        let mut how = self.0.how.lock().unwrap_or_else(PoisonError::into_inner);
        if how.is_none() {
            *how = Some(exit);
            self.0.ended.store(true, Ordering::SeqCst);
            // The counter can't be full: this is written once.
            let _ = self.0.event.write(1);
        }
    }

    /// Whether it has ended: vCPUs look after every exit.
    pub fn has_ended(&self) -> bool {
        self.0.ended.load(Ordering::Relaxed)
    }

    /// How it ended.
    pub fn how(&self) -> Option<Exit> {
        self.0.how.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Becomes readable when the machine has ended.
    pub fn event(&self) -> &EventFd {
        &self.0.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_counts() {
        let ending = Ending::new().unwrap();
        assert!(!ending.has_ended());
        ending.end(Exit::Panic);
        ending.end(Exit::Reboot);
        assert!(ending.has_ended());
        assert_eq!(ending.how(), Some(Exit::Panic));
        assert_eq!(ending.event().read().unwrap(), 1);
    }
}
