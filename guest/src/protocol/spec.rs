//! A job, as init is told of it.

use super::wire::{Error, Reader, Writer};

/// All that init needs to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spec {
    /// The root file system.
    pub root: Root,
    /// Directories of the host, in the order in which they are mounted.
    pub shares: Vec<Share>,
    /// Directories that are empty at first and held in memory.
    pub scratch: Vec<Vec<u8>>,
    /// Files that are put into the root file system.
    pub files: Vec<File>,
    /// The guest's name.
    pub hostname: Vec<u8>,
    /// The network cards, in their order.
    pub networks: Vec<Network>,
    /// Who the job is.
    pub identity: Identity,
    /// The program and its arguments.
    pub arguments: Vec<Vec<u8>>,
    /// Whether those are arguments of the image's own program, if it has one as
    /// Singularity's images do.
    pub runscript: bool,
    /// `NAME=value`.
    pub environment: Vec<Vec<u8>>,
    /// The working directory.
    pub directory: Vec<u8>,
    /// Whether the job fails if that is not there; else it starts in `/`.
    pub directory_required: bool,
    /// Its streams.
    pub streams: Streams,
    /// Its way to whoever launched it and its like.
    pub wire: Wire,
}

/// What the root file system is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Root {
    /// What is there from the beginning, and never changed.
    pub lower: Lower,
    /// Where changes are kept.
    pub upper: Upper,
    /// Whether the job may make any.
    pub writable: bool,
}

/// The image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lower {
    /// A disk.
    Disk(Disk),
    /// A directory of the host.
    Share {
        /// Its tag.
        tag: Vec<u8>,
    },
}

impl Default for Lower {
    fn default() -> Self {
        Self::Share { tag: Vec::new() }
    }
}

/// A file system on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The disk's place: 0 is `/dev/vda`.
    pub number: u8,
    /// The type of its file system.
    pub kind: Vec<u8>,
}

/// Where changes of the root file system are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Upper {
    /// In memory.
    #[default]
    Memory,
    /// On a disk, for the next job.
    Disk(Disk),
}

/// A directory of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Its tag.
    pub tag: Vec<u8>,
    /// Where it is mounted.
    pub target: Vec<u8>,
    /// Whether nothing may be changed.
    pub readonly: bool,
    /// The one file of it that is mounted; else the whole directory is.
    pub file: Option<Vec<u8>>,
}

/// A file of the root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its path.
    pub path: Vec<u8>,
    /// What is written to it.
    pub content: Vec<u8>,
    /// Whether that is added at its end, unless the file has a line with the same
    /// third field (`/etc/passwd`, `/etc/group`); else it takes the file's place.
    pub append: bool,
}

/// A static configuration of a network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Its address.
    pub address: [u8; 4],
    /// The length of the network's prefix.
    pub prefix: u8,
    /// The way to everywhere else, if it leads there.
    pub gateway: Option<[u8; 4]>,
}

/// Who the job is, and what it may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The mask for modes of new files.
    pub umask: u32,
    /// Limits of resources.
    pub limits: Vec<Limit>,
    /// Signals that are ignored: bit n - 1 for signal n.
    pub ignored: u64,
}

/// A limit (`getrlimit(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Which.
    pub resource: u8,
    /// What counts.
    pub soft: u64,
    /// Up to where it may be raised.
    pub hard: u64,
}

/// What the job's first descriptors are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Streams {
    /// All three are a terminal of this size.
    pub terminal: Option<Window>,
    /// Which are closed: input, output, error.
    pub closed: [bool; 3],
    /// Output and error are one and the same.
    pub merged: bool,
    /// Input is a file: what nobody reads of it is given back.
    pub rewinds: bool,
}

/// What a rank of a parallel program has from its launcher.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wire {
    /// PMI: the number of a descriptor that is a socket. What goes over it goes over
    /// [`super::port::WIRE`].
    pub descriptor: Option<u32>,
    /// PMIx: a port of the loopback interface that the machine listens at. For each
    /// connection the host is asked for one ([`super::ToHost::Dial`]).
    pub listener: Option<u16>,
    /// The machine is one of all ranks of this host: it stays until the last session
    /// beside the job has ended.
    pub shared: bool,
}

/// The size of a terminal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl Spec {
    pub(super) fn write(&self, to: &mut Writer) {
        self.root.write(to);
        to.list(&self.shares, |to, share| {
            to.bytes(&share.tag);
            to.bytes(&share.target);
            to.bool(share.readonly);
            to.option(&share.file, |to, name| to.bytes(name));
        });
        to.list(&self.scratch, |to, path| to.bytes(path));
        to.list(&self.files, |to, file| {
            to.bytes(&file.path);
            to.bytes(&file.content);
            to.bool(file.append);
        });
        to.bytes(&self.hostname);
        to.list(&self.networks, |to, network| {
            network.address.iter().chain([&network.prefix]).for_each(|byte| to.u8(*byte));
            to.option(&network.gateway, |to, way| way.iter().for_each(|byte| to.u8(*byte)));
        });
        self.identity.write(to);
        to.list(&self.arguments, |to, word| to.bytes(word));
        to.bool(self.runscript);
        to.list(&self.environment, |to, word| to.bytes(word));
        to.bytes(&self.directory);
        to.bool(self.directory_required);
        self.streams.write(to);
        to.option(&self.wire.descriptor, |to, number| to.u32(*number));
        to.option(&self.wire.listener, |to, port| to.u16(*port));
        to.bool(self.wire.shared);
    }

    pub(super) fn read(from: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            root: Root::read(from)?,
            shares: from.list(|from| {
                let (tag, target) = (from.bytes()?, from.bytes()?);
                Ok(Share { tag, target, readonly: from.bool()?, file: from.option(Reader::bytes)? })
            })?,
            scratch: from.list(Reader::bytes)?,
            files: from.list(|from| {
                let (path, content) = (from.bytes()?, from.bytes()?);
                Ok(File { path, content, append: from.bool()? })
            })?,
            hostname: from.bytes()?,
            networks: from.list(|from| {
                let four = |from: &mut Reader<'_>| -> Result<[u8; 4], Error> {
                    Ok([from.u8()?, from.u8()?, from.u8()?, from.u8()?])
                };
                let (address, prefix) = (four(from)?, from.u8()?);
                Ok(Network { address, prefix, gateway: from.option(four)? })
            })?,
            identity: Identity::read(from)?,
            arguments: from.list(Reader::bytes)?,
            runscript: from.bool()?,
            environment: from.list(Reader::bytes)?,
            directory: from.bytes()?,
            directory_required: from.bool()?,
            streams: Streams::read(from)?,
            wire: Wire {
                descriptor: from.option(Reader::u32)?,
                listener: from.option(Reader::u16)?,
                shared: from.bool()?,
            },
        })
    }
}

impl Root {
    fn write(&self, to: &mut Writer) {
        match &self.lower {
            Lower::Disk(disk) => {
                to.u8(0);
                disk.write(to);
            }
            Lower::Share { tag } => {
                to.u8(1);
                to.bytes(tag);
            }
        }
        match &self.upper {
            Upper::Memory => to.u8(0),
            Upper::Disk(disk) => {
                to.u8(1);
                disk.write(to);
            }
        }
        to.bool(self.writable);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Error> {
        let lower = match from.u8()? {
            0 => Lower::Disk(Disk::read(from)?),
            1 => Lower::Share { tag: from.bytes()? },
            other => return Err(Error::Unknown(other)),
        };
        let upper = match from.u8()? {
            0 => Upper::Memory,
            1 => Upper::Disk(Disk::read(from)?),
            other => return Err(Error::Unknown(other)),
        };
        Ok(Self { lower, upper, writable: from.bool()? })
    }
}

impl Disk {
    fn write(&self, to: &mut Writer) {
        to.u8(self.number);
        to.bytes(&self.kind);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self { number: from.u8()?, kind: from.bytes()? })
    }
}

impl Identity {
    fn write(&self, to: &mut Writer) {
        to.u32(self.uid);
        to.u32(self.gid);
        to.list(&self.groups, |to, group| to.u32(*group));
        to.u32(self.umask);
        to.list(&self.limits, |to, limit| {
            to.u8(limit.resource);
            to.u64(limit.soft);
            to.u64(limit.hard);
        });
        to.u64(self.ignored);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            uid: from.u32()?,
            gid: from.u32()?,
            groups: from.list(Reader::u32)?,
            umask: from.u32()?,
            limits: from.list(|from| {
                Ok(Limit { resource: from.u8()?, soft: from.u64()?, hard: from.u64()? })
            })?,
            ignored: from.u64()?,
        })
    }
}

impl Streams {
    fn write(&self, to: &mut Writer) {
        to.option(&self.terminal, |to, window| window.write(to));
        self.closed.iter().for_each(|closed| to.bool(*closed));
        to.bool(self.merged);
        to.bool(self.rewinds);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            terminal: from.option(Window::read)?,
            closed: [from.bool()?, from.bool()?, from.bool()?],
            merged: from.bool()?,
            rewinds: from.bool()?,
        })
    }
}

impl Window {
    pub(super) fn write(&self, to: &mut Writer) {
        to.u16(self.columns);
        to.u16(self.rows);
    }

    pub(super) fn read(from: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self { columns: from.u16()?, rows: from.u16()? })
    }
}
