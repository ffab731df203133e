//! What is said, and by whom.

use super::spec::{Spec, Window};
use super::wire::{Decoder, Error, Reader, Writer};

/// Of the runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToGuest {
    /// The job: said once, as the answer to [`ToHost::Hello`].
    Start(Box<Spec>),
    /// A signal for the job.
    Signal {
        /// Its number.
        number: u8,
        /// Whether it is for the whole process group, as from a terminal.
        group: bool,
    },
    /// The terminal has another size.
    Resize(Window),
    /// Somebody wants to run a program beside the job: a session of its own, with a
    /// conversation of its own, over the ports from this number on. Of its
    /// [`Spec`], the parts that are about the machine do not count, and its
    /// environment is added to the job's.
    Attach {
        /// What is added to the numbers of [`super::port`].
        ports: u32,
    },
    /// The answer to [`ToHost::Dial`].
    Dialed {
        /// The port that leads there; 0 if nothing does.
        port: u32,
    },
}

/// Of init.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToHost {
    /// The first word.
    Hello {
        /// [`super::VERSION`] of this init.
        version: u32,
    },
    /// The job's program runs.
    Started,
    /// There is no job, and there will be none.
    Failed {
        /// Of which kind.
        kind: Failure,
        /// In words.
        text: Vec<u8>,
    },
    /// The job was stopped by a signal.
    Stopped {
        /// Its number.
        signal: u8,
    },
    /// The job has ended, and all its output is on the way.
    Ended {
        /// How.
        how: How,
        /// What it took.
        usage: Usage,
        /// Bytes of standard input that somebody has read.
        input: u64,
    },
    /// Somebody has connected to the listener of [`super::Wire`].
    Dial,
    /// After [`Self::Ended`] of a shared machine: the last session has ended, too.
    Vacant,
}

/// Why there is no job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The guest could not be made ready.
    Setup,
    /// The program can't be executed.
    NotExecutable,
    /// There is no such program.
    NotFound,
}

/// How the job has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// By itself, with this status.
    Exited(u8),
    /// By this signal.
    Signalled(u8),
}

/// What the job and all its children took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Microseconds in user mode.
    pub user: u64,
    /// Microseconds in the guest's kernel.
    pub system: u64,
    /// The largest resident set, in KiB.
    pub resident: u64,
}

const START: u8 = 1;
const SIGNAL: u8 = 2;
const RESIZE: u8 = 3;
const ATTACH: u8 = 4;
const DIALED: u8 = 5;

const HELLO: u8 = 1;
const STARTED: u8 = 2;
const FAILED: u8 = 3;
const STOPPED: u8 = 4;
const ENDED: u8 = 5;
const DIAL: u8 = 6;
const VACANT: u8 = 7;

impl ToGuest {
    /// As a frame.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Start(spec) => {
                let mut frame = Writer::new(START);
                spec.write(&mut frame);
                frame.finish()
            }
            Self::Signal { number, group } => {
                let mut frame = Writer::new(SIGNAL);
                frame.u8(*number);
                frame.bool(*group);
                frame.finish()
            }
            Self::Resize(window) => {
                let mut frame = Writer::new(RESIZE);
                window.write(&mut frame);
                frame.finish()
            }
            Self::Attach { ports } => {
                let mut frame = Writer::new(ATTACH);
                frame.u32(*ports);
                frame.finish()
            }
            Self::Dialed { port } => {
                let mut frame = Writer::new(DIALED);
                frame.u32(*port);
                frame.finish()
            }
        }
    }

    /// The next message, if it is there in full.
    pub fn next(decoder: &mut Decoder) -> Result<Option<Self>, Error> {
        let Some((kind, body)) = decoder.next_frame()? else { return Ok(None) };
        let mut reader = Reader::new(&body);
        let message = match kind {
            START => Self::Start(Box::new(Spec::read(&mut reader)?)),
            SIGNAL => Self::Signal { number: reader.u8()?, group: reader.bool()? },
            RESIZE => Self::Resize(Window::read(&mut reader)?),
            ATTACH => Self::Attach { ports: reader.u32()? },
            DIALED => Self::Dialed { port: reader.u32()? },
            other => return Err(Error::Unknown(other)),
        };
        reader.finish()?;
        Ok(Some(message))
    }
}

impl ToHost {
    /// As a frame.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello { version } => {
                let mut frame = Writer::new(HELLO);
                frame.u32(*version);
                frame.finish()
            }
            Self::Started => Writer::new(STARTED).finish(),
            Self::Dial => Writer::new(DIAL).finish(),
            Self::Vacant => Writer::new(VACANT).finish(),
            Self::Failed { kind, text } => {
                let mut frame = Writer::new(FAILED);
                frame.u8(match kind {
                    Failure::Setup => 0,
                    Failure::NotExecutable => 1,
                    Failure::NotFound => 2,
                });
                frame.bytes(text);
                frame.finish()
            }
            Self::Stopped { signal } => {
                let mut frame = Writer::new(STOPPED);
                frame.u8(*signal);
                frame.finish()
            }
            Self::Ended { how, usage, input } => {
                let mut frame = Writer::new(ENDED);
                let (kind, value) = match how {
                    How::Exited(status) => (0, *status),
                    How::Signalled(signal) => (1, *signal),
                };
                frame.u8(kind);
                frame.u8(value);
                let numbers = [usage.user, usage.system, usage.resident, *input];
                numbers.iter().for_each(|number| frame.u64(*number));
                frame.finish()
            }
        }
    }

    /// The next message, if it is there in full.
    pub fn next(decoder: &mut Decoder) -> Result<Option<Self>, Error> {
        let Some((kind, body)) = decoder.next_frame()? else { return Ok(None) };
        let mut reader = Reader::new(&body);
        let message = match kind {
            HELLO => Self::Hello { version: reader.u32()? },
            STARTED => Self::Started,
            DIAL => Self::Dial,
            VACANT => Self::Vacant,
            FAILED => {
                let kind = match reader.u8()? {
                    0 => Failure::Setup,
                    1 => Failure::NotExecutable,
                    2 => Failure::NotFound,
                    other => return Err(Error::Unknown(other)),
                };
                Self::Failed { kind, text: reader.bytes()? }
            }
            STOPPED => Self::Stopped { signal: reader.u8()? },
            ENDED => {
                let how = match (reader.u8()?, reader.u8()?) {
                    (0, status) => How::Exited(status),
                    (1, signal) => How::Signalled(signal),
                    (other, _) => return Err(Error::Unknown(other)),
                };
                let usage =
                    Usage { user: reader.u64()?, system: reader.u64()?, resident: reader.u64()? };
                Self::Ended { how, usage, input: reader.u64()? }
            }
            other => return Err(Error::Unknown(other)),
        };
        reader.finish()?;
        Ok(Some(message))
    }
}
