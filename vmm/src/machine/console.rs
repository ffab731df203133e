//! The virtio console: what stands behind its ports, and its end of the user's
//! terminal.

use super::board::console_output;
use super::error::Error;
use crate::config::{self, Config, PortTo};
use crate::console::input::InputSink;
use devices::backend::console::ConsoleOutput;
use devices::backend::port::{PtyPort, SocketPort, StreamInput, StreamPort};
use devices::virtio::console::{Console, PortBackend};
use std::path::Path;
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::EventFd;

/// The console of a machine.
pub struct Opened {
    /// The device.
    pub device: Arc<Mutex<Console>>,
    /// Output that threads write, to be drained at the end.
    pub outputs: Vec<ConsoleOutput>,
    /// Where standard input goes, if that is here.
    pub input: Option<StreamInput>,
}

/// Opens what is behind each port, if there is any.
pub fn open(config: &Config) -> Result<Option<Opened>, Error> {
    if !config.has_console() {
        return Ok(None);
    }
    let (mut outputs, mut input) = (Vec::new(), None);
    let terminal: Option<Box<dyn PortBackend>> = match &config.console {
        None | Some(config::Console::Off) => None,
        Some(config::Console::Stdio) => {
            let output = console_output(&config::Serial::Stdio)?;
            outputs.push(output.clone());
            let port = StreamPort::new(output, Some(libc::STDIN_FILENO));
            let port = port.map_err(Error::host("eventfd"))?;
            input = Some(port.input());
            Some(Box::new(port))
        }
        Some(config::Console::Pty) => {
            let pty = PtyPort::open().map_err(Error::host("pseudo-terminal"))?;
            // Not a report, but what the user has asked for.
            eprintln!("microvm: console: {}", pty.path.display());
            Some(Box::new(pty))
        }
        Some(config::Console::Socket(path)) => Some(Box::new(SocketPort::listen(path)?)),
        Some(config::Console::File(path)) => Some(file(path, &mut outputs)?),
    };
    let mut named: Vec<(String, Box<dyn PortBackend>)> = Vec::new();
    for port in &config.ports {
        named.push((
            port.name.clone(),
            match &port.to {
                PortTo::Socket(path) => Box::new(SocketPort::listen(path)?),
                PortTo::File(path) => file(path, &mut outputs)?,
            },
        ));
    }
    let device = Arc::new(Mutex::new(Console::new(terminal, named)));
    Ok(Some(Opened { device, outputs, input }))
}

/// Output is appended to a file.
fn file(path: &Path, outputs: &mut Vec<ConsoleOutput>) -> Result<Box<dyn PortBackend>, Error> {
    let output = console_output(&config::Serial::File(path.to_owned()))?;
    outputs.push(output.clone());
    let port = StreamPort::new(output, None).map_err(Error::host("eventfd"))?;
    Ok(Box::new(port))
}

/// The port as the input side sees it.
pub struct PortSink(pub StreamInput);

impl InputSink for PortSink {
    fn enqueue(&mut self, bytes: &[u8]) -> usize {
        self.0.enqueue(bytes)
    }

    fn room(&self) -> &EventFd {
        self.0.room()
    }
}
