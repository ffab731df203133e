//! The client's side, for `microvm ctl` and tests: a request and its answer,
//! waiting for each.

use super::request::{Command, Request};
use super::{MAX_LINE, VERSION};
use crate::config::{Format, NetBackend};
use devices::backend::disk::{DiskError, Qcow2Disk, RawDisk};
use devices::backend::tap::{Queues, Tap, TapError};
use serde_json::Value;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// The longest answer: a status of all devices is far less.
const MAX_ANSWER: u64 = MAX_LINE as u64;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("control {}: {source}: is a microvm --control running there?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("control: {0}")]
    Io(#[from] io::Error),
    /// Whoever listens there speaks another language.
    #[error("control: not a microvm of version {VERSION} of the protocol: {0}")]
    Protocol(String),
    /// A disk's image could not be opened.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A TAP could not be opened.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The machine says no.
    #[error("{0}")]
    Refused(String),
}

/// A connection to a machine.
pub struct Client {
    stream: BufReader<UnixStream>,
    next: u64,
}

impl Client {
    /// Connects, and hears which version is spoken.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path)
            .map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
        let mut client = Self { stream: BufReader::new(stream), next: 1 };
        let greeting = client.read()?;
        match (&greeting["version"], &greeting["error"]) {
            (_, Value::String(why)) => Err(ClientError::Refused(why.clone())),
            (version, _) if *version == VERSION => Ok(client),
            _ => Err(ClientError::Protocol(greeting.to_string())),
        }
    }

    /// Opens what the command needs, asks, and waits for the answer.
    pub fn ask(&mut self, mut command: Command) -> Result<Value, ClientError> {
        let files = open(&mut command)?;
        self.send(command, &files)?;
        drop(files);
        let mut answer = self.read()?;
        match answer.get("error") {
            Some(Value::String(why)) => Err(ClientError::Refused(why.clone())),
            _ => Ok(answer["ok"].take()),
        }
    }

    /// Sends a request and what goes with it.
    pub fn send(&mut self, command: Command, files: &[File]) -> Result<(), ClientError> {
        let request = Request { id: self.next.into(), command };
        self.next += 1;
        let line = request.line().map_err(io::Error::other)?;
        let fds: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let stream = self.stream.get_mut();
        let sent = stream.send_with_fds(&[line.as_bytes()], &fds);
        let sent = sent.map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
        // Descriptors went with the first byte.
        stream.write_all(line.as_bytes().get(sent..).unwrap_or_default())?;
        Ok(())
    }

    /// The next line.
    pub fn read(&mut self) -> Result<Value, ClientError> {
        let mut line = String::new();
        (&mut self.stream).take(MAX_ANSWER).read_line(&mut line)?;
        if line.is_empty() {
            return Err(io::Error::other("the machine has ended, or sent us away").into());
        }
        serde_json::from_str(&line).map_err(|_| ClientError::Protocol(line))
    }
}

/// Opens what a command hands over, with the caller's rights and with locks that
/// go with it.
fn open(command: &mut Command) -> Result<Vec<File>, ClientError> {
    Ok(match command {
        Command::AddDisk { disk, files } => {
            let opened = match disk.format {
                Format::Raw => vec![RawDisk::open(&disk.path, disk.raw_options())?.into()],
                Format::Qcow2 => Qcow2Disk::files(&disk.path, disk.readonly)?,
            };
            *files = opened.len() as u32;
            opened
        }
        Command::AddNet { net, mtu } => {
            let NetBackend::Tap(name) = &net.backend else { return Ok(Vec::new()) };
            let queues = net.queues.unwrap_or(1) as usize;
            let mut taps = Tap::open_queues(name, Queues::Exactly(queues))?;
            if let (Some(wanted), Some(tap)) = (net.mtu, taps.first_mut()) {
                tap.require_mtu(wanted)?;
            }
            *mtu = taps.first().and_then(|tap| tap.mtu);
            taps.into_iter().map(File::from).collect()
        }
        _ => Vec::new(),
    })
}
