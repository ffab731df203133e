//! Where reports go: a file that grows by a line every so often, or a socket
//! that tells whoever connects.

use super::{Metrics, report};
use crate::config::{MetricsConfig, MetricsFormat, MetricsTarget};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use vmm_sys_util::timerfd::TimerFd;

/// What a socket's buffer takes at once; a reader that asks for a report and
/// does not read it gets no more.
const SEND_BUFFER: libc::c_int = 1 << 20;
/// Connections that are answered in a turn.
const SHARE: usize = 16;

/// Why there is no place for reports.
#[derive(Debug, thiserror::Error)]
#[error("metrics {}: {source}", path.display())]
pub struct ServeError {
    path: PathBuf,
    source: io::Error,
}

/// Where reports go, open.
pub struct Target {
    path: PathBuf,
    format: MetricsFormat,
    to: To,
}

enum To {
    File(File, TimerFd),
    Socket(UnixListener),
}

/// Opens what is asked for.
pub fn open(config: &MetricsConfig) -> Result<Target, ServeError> {
    let (path, to) = match &config.target {
        MetricsTarget::File(path) => (path, open_file(path, config.every)),
        MetricsTarget::Socket(path) => (path, listen(path)),
    };
    let to = to.map_err(|source| ServeError { path: path.clone(), source })?;
    Ok(Target { path: path.clone(), format: config.format, to })
}

fn open_file(path: &PathBuf, every: u32) -> io::Result<To> {
    // A reader of a pipe may come later; opening must not wait for it.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().append(true).create(true).custom_flags(flags).open(path)?;
    let every = Duration::from_secs(every.max(1).into());
    let mut timer = TimerFd::new()?;
    timer.reset(every, Some(every))?;
    Ok(To::File(file, timer))
}

fn listen(path: &PathBuf) -> io::Result<To> {
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(To::Socket(listener))
}

/// Reports on the event loop.
pub struct Serve {
    metrics: Arc<Metrics>,
    target: Target,
}

impl Serve {
    /// Reports `metrics` to `target`.
    pub fn new(metrics: Arc<Metrics>, target: Target) -> Self {
        Self { metrics, target }
    }

    fn report(&self) -> String {
        let (samples, uptime) = (self.metrics.samples(), self.metrics.start.elapsed());
        match self.target.format {
            MetricsFormat::Json => report::json(&samples, uptime),
            MetricsFormat::Prometheus => report::prometheus(&samples, uptime),
        }
    }

    /// The file's next report.
    fn append(&mut self) {
        let text = self.report();
        if let To::File(file, _) = &mut self.target.to
            && let Err(e) = file.write_all(text.as_bytes())
        {
            log::warn!("metrics {}: {e}", self.target.path.display());
        }
    }

    /// A report for whoever has connected.
    fn answer(&self) {
        let To::Socket(listener) = &self.target.to else { return };
        for _ in 0..SHARE {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let (size, len) = (SEND_BUFFER, size_of::<libc::c_int>() as libc::socklen_t);
            // SAFETY: the option reads one int, which `size` is.
            unsafe {
                let value = (&raw const size).cast();
                libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, value, len);
            }
            // Never waits: what does not fit is cut, and the reader sees it.
            let told = stream.set_nonblocking(true);
            let told = told.and_then(|()| stream.write_all(self.report().as_bytes()));
            if let Err(e) = told {
                log::debug!("metrics {}: {e}", self.target.path.display());
            }
        }
    }
}

impl MutEventSubscriber for Serve {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        match &mut self.target.to {
            To::File(_, timer) => {
                let _ = timer.wait();
                self.append();
            }
            To::Socket(_) => self.answer(),
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        let fd = match &self.target.to {
            To::File(_, timer) => timer.as_raw_fd(),
            To::Socket(listener) => listener.as_raw_fd(),
        };
        if let Err(e) = ops.add(Events::new_raw(fd, EventSet::IN)) {
            log::error!("metrics: {e:?}");
        }
    }
}

impl Drop for Serve {
    /// The last report, and no socket that leads nowhere.
    fn drop(&mut self) {
        self.append();
        if matches!(self.target.to, To::Socket(_)) {
            let _ = std::fs::remove_file(&self.target.path);
        }
    }
}
