//! From what the user asks for and who that is to a machine and to what its init
//! is told.
//!
//! ```text
//!  Options ─┐                    ┌─► Config (vmm): disks, shares, size
//!  Caller ──┼─► image, kernel ───┤
//!  limits ──┘                    └─► Spec (guest): root, mounts, identity, program
//! ```

use crate::caller::Caller;
use crate::image::config::{Config as ImageConfig, Identity as Owner};
use crate::image::progress::Progress;
use crate::image::{FileSystem, Kind, probe};
use crate::launcher::{self, Launcher};
use crate::modules::Needs;
use crate::named::Name;
use crate::options::{Card, CardPlace, Join, Options, User};
use crate::shares::{self, Shared};
use crate::source::Source;
use crate::{Error, kernel, size};
use devices::backend::user::{GATEWAY, GUEST, NAMES};
use guest::protocol::{
    Disk, File, Identity, Lower, Network, Root, Share, Spec, Streams, Upper, Window,
};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use vmm::config::{self, Config, Serial, Size};

/// Where programs are in most images, for those that do not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What a job keeps of the caller's environment with `--cleanenv`.
const KEPT: [&str; 5] = ["HOME", "LANG", "LOGNAME", "TERM", "USER"];
/// What would make the programs of an image load or find things of the host's.
const DROPPED: [&str; 3] = ["LD_LIBRARY_PATH", "LD_PRELOAD", "PATH"];
/// The tag of the root file system's share.
const ROOT_TAG: &str = "root";
/// The largest file of the host's that is taken along.
const MAX_FILE: u64 = 64 << 10;

/// What is run.
#[derive(Debug)]
pub struct Plan {
    /// The machine, but for its initramfs.
    pub config: Config,
    /// What its init is told.
    pub spec: Spec,
}

impl Plan {
    /// Opens what is named and puts all together.
    pub fn new(
        options: Options,
        caller: &Caller,
        terminal: Option<Window>,
        progress: &mut dyn Progress,
    ) -> Result<(Self, Needs), Error> {
        let (source, description) = Source::open(&options.image, progress)?;
        let (run, owner) = description.map(|d| (d.config, d.identity)).unzip();
        let owner = owner.flatten();
        let (identity, home) = identity(&options, caller, owner)?;
        let runscript = run.is_none() && source != Source::Host && !options.exec;
        let run = run.unwrap_or_default();
        let (shares, scratch) = shares::choose(&options, caller, &source)?;
        let (cpus, memory) = size::of_caller();
        let mut config = Config::new(kernel::find(options.kernel.clone())?);
        config.cpus = options.cpus.unwrap_or(cpus);
        config.memory = Size(options.memory.unwrap_or(memory));
        config.metrics.clone_from(&options.metrics);
        (config.serial, config.cmdline) = match &options.kernel_log {
            Some(path) => (Some(Serial::File(path.clone())), String::new()),
            None => (Some(Serial::Off), "quiet loglevel=0".to_owned()),
        };
        let root = root(&mut config, &source, &options)?;
        let mut networks: Vec<Network> =
            options.network.iter().map(|card| network(&mut config, card.clone())).collect();
        let names = options.network.as_ref().and_then(|card| names(card, &source));
        config.shares.extend(shares.iter().enumerate().map(|(number, share)| config::Share {
            tag: tag(number),
            path: share.directory().to_owned(),
            readonly: share.readonly,
        }));
        let ranks = caller.launcher.as_ref();
        if ranks.is_some_and(Launcher::has_others_elsewhere) {
            return Err(Error::Ranks(
                "of other hosts can't be reached from a machine: run on one host".to_owned(),
            ));
        }
        let shared = ranks.is_some_and(|launcher| shares_machine(&options, launcher));
        if shared && options.cpus.is_none() {
            // Each rank may be kept to processors of its own.
            let local = ranks.and_then(|launcher| launcher.local).unwrap_or(1);
            let all = cpus.saturating_mul(local).min(size::widen()).min(config::MAX_CPUS);
            config.cpus = all.max(cpus);
        }
        let apart = ranks.filter(|_| !shared).map(|launcher| segment(&mut config, launcher));
        let apart = apart.transpose()?.flatten();
        let interface = apart.map(|_| format!("eth{}", networks.len()));
        networks.extend(apart);
        let more = ranks.map(|launcher| launcher.variables(interface.as_deref()));
        let mut more = more.unwrap_or_default();
        more.extend(home.map(|home| ("HOME", home)));
        let arguments = program(&options, &run, runscript)?;
        let (directory, directory_required) = directory(&options, &run, caller)?;
        let spec = Spec {
            root,
            shares: shares.iter().enumerate().map(share).collect(),
            scratch: scratch.iter().map(|path| bytes(path)).collect(),
            files: files(caller, &source, names),
            hostname: caller.hostname.clone(),
            networks,
            identity,
            arguments,
            runscript,
            environment: environment(&options, &run, caller, &source, more)?,
            directory: bytes(&directory),
            directory_required,
            streams: Streams {
                terminal,
                closed: caller.closed,
                merged: caller.merged,
                rewinds: caller.rewinds,
            },
            wire: ranks.map(|launcher| launcher.wire(shared)).unwrap_or_default(),
        };
        let needs = Needs::of(&config, &spec);
        Ok((Self { config, spec }, needs))
    }
}

/// Who the job is; and where that one is at home, if it is not the caller.
fn identity(
    options: &Options,
    caller: &Caller,
    owner: Option<Owner>,
) -> Result<(Identity, Option<String>), Error> {
    let mut identity = caller.identity.clone();
    if options.user == User::Caller {
        return Ok((identity, None));
    }
    let Owner { uid, gid, groups, home } = owner.ok_or(Error::User)?;
    (identity.uid, identity.gid, identity.groups) = (uid, gid, groups);
    Ok((identity, home))
}

/// Whether a rank runs where the others of its host do.
fn shares_machine(options: &Options, launcher: &Launcher) -> bool {
    options.join == Join::Auto && launcher.has_others() && launcher.local != Some(1)
}

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

fn tag(number: usize) -> String {
    format!("share{number}")
}

fn share((number, share): (usize, &Shared)) -> Share {
    let file = share.source.file_name().filter(|_| share.file);
    Share {
        tag: tag(number).into_bytes(),
        target: bytes(&share.target),
        readonly: share.readonly,
        file: file.map(|name| name.as_bytes().to_vec()),
    }
}

/// The image's disk or share, and the overlay's.
fn root(config: &mut Config, source: &Source, options: &Options) -> Result<Root, Error> {
    let lower = match source {
        Source::Host => share_root(config, Path::new("/")),
        Source::Directory(path) => share_root(config, path),
        Source::Disk { path, offset, size, kind } => Lower::Disk(add_disk(
            config,
            config::Disk {
                path: path.clone(),
                readonly: true,
                offset: Size(*offset),
                size: size.map(Size),
                ..config::Disk::default()
            },
            *kind,
        )),
    };
    let upper = match &options.overlay {
        None => Upper::Memory,
        Some(path) => {
            let refused = |reason| Error::Overlay { path: path.clone(), reason };
            match probe(path)?.kind {
                Kind::FileSystem(FileSystem::Ext4, _) => {}
                _ => return Err(refused("must be an ext4 image: mkfs.ext4 FILE makes one")),
            }
            let disk = config::Disk { path: path.clone(), ..config::Disk::default() };
            Upper::Disk(add_disk(config, disk, FileSystem::Ext4))
        }
    };
    let writable = options.writable_tmpfs || options.overlay.is_some() || *source == Source::Host;
    Ok(Root { lower, upper, writable })
}

/// A card on a TAP; or one whose other side is this host's own network, as its user
/// reaches it.
fn network(config: &mut Config, card: Card) -> Network {
    config.nets.push(card.net);
    match card.place {
        None => Network { address: GUEST.octets(), prefix: 24, gateway: Some(GATEWAY.octets()) },
        Some(CardPlace { address, prefix, gateway }) => {
            let gateway = gateway.map(|address| address.octets());
            Network { address: address.octets(), prefix, gateway }
        }
    }
}

/// What `/etc/resolv.conf` says, if it is not what the image's root has: the user's own
/// network has a server of names, a TAP leads where the host's may be reached.
fn names(card: &Card, source: &Source) -> Option<Vec<u8>> {
    match card.place {
        None => Some(resolver()),
        Some(_) if *source == Source::Host => None,
        Some(_) => read_small("/etc/resolv.conf"),
    }
}

/// A card that leads to the machines of the other ranks, if there are any.
fn segment(config: &mut Config, launcher: &Launcher) -> Result<Option<Network>, Error> {
    if !launcher.has_others() {
        return Ok(None);
    }
    let most = config::MAX_STATIONS.into();
    let (Some(rank), Some(size)) = (launcher.rank, launcher.size.filter(|size| *size <= most))
    else {
        return Err(Error::Ranks(format!(
            "of more than {most}, or whose launcher does not tell their number, have no \
             network between machines of their own: use --join auto"
        )));
    };
    let path = Name::of_ranks(launcher::short(&launcher.program)).path()?;
    // Neither is more than the most that there may be.
    let (station, stations) = (rank.min(size - 1) as u16, size as u16);
    let backend = config::NetBackend::Segment(config::Segment { path, station, stations });
    config.nets.push(config::Net::on(backend));
    let [high, low] = (station + 1).to_be_bytes();
    Ok(Some(Network { address: [10, 83, high, low], prefix: 16, gateway: None }))
}

fn share_root(config: &mut Config, path: &Path) -> Lower {
    let (tag, path) = (ROOT_TAG.to_owned(), path.to_owned());
    config.shares.push(config::Share { tag, path, readonly: true });
    Lower::Share { tag: ROOT_TAG.into() }
}

fn add_disk(config: &mut Config, disk: config::Disk, kind: FileSystem) -> Disk {
    let number = config.disks.len() as u8;
    config.disks.push(disk);
    Disk { number, kind: kind.name().into() }
}

/// The program and its arguments. `runscript`: the image may have one, which only
/// its guest can tell.
fn program(options: &Options, run: &ImageConfig, runscript: bool) -> Result<Vec<Vec<u8>>, Error> {
    let words = |words: &[String]| words.iter().map(|w| w.clone().into_bytes()).collect();
    let mut all: Vec<Vec<u8>> = Vec::new();
    if !options.exec {
        all.extend::<Vec<_>>(words(&run.entrypoint));
    }
    match options.arguments.is_empty() && !options.exec {
        true => all.extend::<Vec<_>>(words(&run.cmd)),
        false => all.extend(options.arguments.iter().map(|word| word.clone().into_vec())),
    }
    if all.is_empty() && !runscript { Err(Error::NoProgram) } else { Ok(all) }
}

/// Where the job starts, and whether it has to.
fn directory(
    options: &Options,
    run: &ImageConfig,
    caller: &Caller,
) -> Result<(PathBuf, bool), Error> {
    if let Some(pwd) = &options.pwd {
        return match pwd.is_absolute() {
            true => Ok((pwd.clone(), true)),
            false => Err(Error::Pwd(pwd.clone())),
        };
    }
    // The image's own counts where nothing of the caller's is there.
    let image = match run.working_directory.as_str() {
        "" => PathBuf::from("/"),
        path => path.into(),
    };
    match &caller.directory {
        Some(directory) if !options.contain => Ok((directory.clone(), false)),
        _ => Ok((image, false)),
    }
}

/// The caller's variables, the image's, and what was given: the last counts.
fn environment(
    options: &Options,
    run: &ImageConfig,
    caller: &Caller,
    source: &Source,
    more: Vec<(&'static str, String)>,
) -> Result<Vec<Vec<u8>>, Error> {
    let mut all: Vec<(OsString, OsString)> = Vec::new();
    let mut set = |name: &OsStr, value: &OsStr| match all.iter_mut().find(|(n, _)| n == name) {
        Some((_, old)) => *old = value.to_owned(),
        None => all.push((name.to_owned(), value.to_owned())),
    };
    let host = *source == Source::Host;
    if !host {
        set("PATH".as_ref(), PATH.as_ref());
    }
    for (name, value) in &caller.environment {
        let kept = match options.clean_env {
            true => KEPT.iter().any(|kept| name == kept) || host && name == "PATH",
            false => host || !DROPPED.iter().any(|dropped| name == dropped),
        };
        if kept {
            set(name, value);
        }
    }
    more.iter().for_each(|(name, value)| set(name.as_ref(), value.as_ref()));
    for entry in &run.env {
        if let Some((name, value)) = entry.split_once('=') {
            set(name.as_ref(), value.as_ref());
        }
    }
    for entry in &options.env {
        let (name, value) = caller.variable(entry)?;
        set(&name, &value);
    }
    let joined =
        |(name, value): (OsString, OsString)| [name.as_bytes(), b"=", value.as_bytes()].concat();
    Ok(all.into_iter().map(joined).collect())
}

/// What the image can't know of this host, its network and this user.
fn files(caller: &Caller, source: &Source, names: Option<Vec<u8>>) -> Vec<File> {
    let file = |path: &str, content, append| File { path: path.into(), content, append };
    let mut files = Vec::new();
    files.extend(names.map(|names| file("/etc/resolv.conf", names, false)));
    if *source == Source::Host {
        return files;
    }
    let [passwd, group] = caller.lines.clone();
    files.extend([file("/etc/passwd", passwd, true), file("/etc/group", group, true)]);
    for path in ["/etc/hosts", "/etc/localtime"] {
        files.extend(read_small(path).map(|content| file(path, content, false)));
    }
    files
}

fn read_small(path: &str) -> Option<Vec<u8>> {
    let meta = std::fs::metadata(path).ok()?;
    let small = meta.is_file() && meta.len() <= MAX_FILE;
    small.then(|| std::fs::read(path).ok()).flatten()
}

/// The network's own server of names, which asks the host's; and in which domains
/// the host looks for them.
fn resolver() -> Vec<u8> {
    let host = read_small("/etc/resolv.conf").unwrap_or_default();
    let kept = |line: &&[u8]| {
        [&b"search "[..], b"domain ", b"options "].iter().any(|word| line.starts_with(word))
    };
    let mut text = format!("nameserver {}\n", NAMES).into_bytes();
    for line in host.split(|byte| *byte == b'\n').filter(kept) {
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    text
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod tests;
