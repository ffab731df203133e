//! The command line, and the configuration that comes out of it.

use crate::ctl::CtlArgs;
use crate::image_commands::ImageCommand;
use crate::jobs::{ExecArgs, PsArgs, StopArgs};
use crate::measure_command::SpectrumArgs;
use crate::run::RunArgs;
use clap::{Parser, Subcommand, ValueEnum};
use serde_json::Value;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use vmm::config::{
    Balloon, BoardKind, Config, ConfigError, Console, Disk, DiskBus, Intr, MetricsConfig, Mode,
    Net, NetModel, Port, PvFeatures, Rng, Serial, Share, Size, Transport, Vsock,
};

/// The largest configuration file: far more than 16 devices need.
const MAX_CONFIG: u64 = 1 << 20;

const EXAMPLES: &str = "\
Examples:
  microvm --kernel vmlinux --rootfs debian.img
      Boots Linux from an image, with the console on this terminal.
  microvm --kernel vmlinux --rootfs debian.img \\
          --net user,hostfwd=tcp::2222-:22
      A network without root: ssh -p 2222 localhost reaches the guest.
  microvm --kernel vmlinux --rootfs base.img,readonly=on --disk data.img \\
          --net tap=vmtap0 --cpus 4 --memory 2G
      A read-only root, a second disk, a network card.
  microvm --kernel vmlinux --rootfs debian.img --cpus 4 \\
          --net tap=vmtap0,queues=4,mtu=9000,rate=100M
      A card with a queue for each vCPU, large packets and a limit.
  microvm --kernel bzImage --initrd initrd.img --cmdline 'quiet' \\
          --serial file=guest.log
      A distribution's kernel with its initrd; no console here.
  microvm --kernel vmlinux --rootfs debian.img --vsock uds=guest.vsock
      Programs of host and guest connect to each other, without a network.
  microvm --kernel vmlinux --rootfs debian.img --console stdio \\
          --port name=agent,socket=/tmp/agent
      A console that follows the terminal's size, and a port for an agent.
  microvm --kernel vmlinux --rootfs debian.img --share tag=src,path=.
      The guest sees this directory: mount -t virtiofs src /mnt
  microvm --kernel vmlinux --rootfs debian.img --memory 4G \\
          --balloon free-page-reporting=on,deflate-on-oom=on
      What the guest's programs free goes back to the host.
  microvm --kernel vmlinux --rootfs debian.img --mode hvm --net tap=vmtap0
      A PC with an IDE disk and an RTL8139, and no sign of a virtual machine.
  microvm --kernel vmlinux --rootfs debian.img --transport pci \\
          --control /tmp/vm.sock
  microvm ctl /tmp/vm.sock add-disk data.img
      A disk for the guest while it runs; microvm ctl --help tells more.
  microvm --kernel vmlinux --rootfs debian.img --print-config > guest.json
  microvm --config guest.json --memory 4G
      Keeps a configuration in a file, and runs it with more memory.
  microvm build oci:layout:latest app.img
      Makes one portable, read-only file of a container's image.

Configuration files:
  FILE is JSON with the fields that --print-config shows; all but \"kernel\" may
  be left out. An option of the command line takes the place of the file's
  field; --disk, --net, --share and --port add to the file's. Paths are
  relative to the directory that microvm is started in.

Console keys (when standard input is a terminal):
  Ctrl-a x       leave: ends microvm and the guest
  Ctrl-a h       show these keys
  Ctrl-a Ctrl-a  send Ctrl-a to the guest (so does Ctrl-a a)
  All other keys reach the guest, Ctrl-c and Ctrl-z too. A pipe or a file as
  standard input is passed byte by byte; its end does not end the guest.

Exit status:
  0        the guest powered off or rebooted, or the user left with Ctrl-a x or
           microvm ctl PATH quit
  2        the command line can't be read
  3        a file or value that was given can't be used
  4        this host can't run the machine: see microvm doctor
  5        the guest's kernel panicked
  6        the guest crashed: a triple fault, or KVM gave up on it
  7        microvm itself failed
  8        the guest ended in order, but output could not be written
  128 + N  ended by signal N
";

/// Run a Linux virtual machine.
///
/// Boots a kernel with a root file system in a small KVM virtual machine, with the
/// guest's serial console on standard input and output.
#[derive(Debug, Parser)]
#[command(
    name = "microvm",
    version,
    after_long_help = EXAMPLES,
    after_help = "microvm --help tells more: examples, files, keys and exit statuses.",
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    next_line_help = true,
    verbatim_doc_comment
)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Guest kernel: a bzImage or an uncompressed ELF vmlinux
    #[arg(long, value_name = "PATH", help_heading = "What to boot")]
    kernel: Option<PathBuf>,

    /// Image of the root file system, the guest's /dev/vda
    ///
    /// /dev/sda with --disk-bus ide. Completes the kernel's command line
    /// with root= and ro or rw where it does not say otherwise. A comma in a
    /// path is written twice.
    #[arg(
        verbatim_doc_comment,
        long,
        value_name = "PATH[,readonly=on|off]…",
        help_heading = "What to boot"
    )]
    rootfs: Option<Disk>,

    /// Initial RAM disk
    #[arg(long, value_name = "PATH", help_heading = "What to boot")]
    initrd: Option<PathBuf>,

    /// Kernel command line
    ///
    /// console=, reboot=, panic= and pci=off are added where it does not have
    /// them, and root= and ro or rw with --rootfs.
    #[arg(
        verbatim_doc_comment,
        long,
        value_name = "STRING",
        allow_hyphen_values = true,
        help_heading = "What to boot"
    )]
    cmdline: Option<String>,

    /// Number of vCPUs, 1 to 32 [default: 1]
    #[arg(long, value_name = "N", help_heading = "The machine")]
    cpus: Option<u32>,

    /// Guest memory, like 512M or 2G [default: 256M]
    #[arg(long, value_name = "SIZE", help_heading = "The machine")]
    memory: Option<Size>,

    /// Another disk; may be given more than once
    ///
    /// An image or a block device. They follow the root disk in the order
    /// given, as /dev/vdb, /dev/vdc, and so on. --rootfs takes these, too:
    ///   readonly=on|off     refuse writes [default: off]
    ///   serial=TEXT         what the guest sees in /sys/block/vd*/serial
    ///   format=raw|qcow2    what the image is, never guessed [default: raw]
    ///   direct=on|off       past the host's page cache [default: off]
    ///   engine=auto|sync|uring
    ///                       how data moves; auto is io_uring for direct=on
    ///                       where the host has it, else sync [default: auto]
    ///   offset=SIZE, size=SIZE
    ///                       a range of the image, such as a partition
    ///   queues=N            1 to 32 [default: one for each vCPU]
    ///   rate=SIZE[:BURST], ops=N[:BURST]
    ///                       bytes and requests in a second, and at once
    ///                       after a rest [default: no limit]
    #[arg(
        verbatim_doc_comment,
        long = "disk",
        value_name = "path=PATH[,FIELD=VALUE]…",
        help_heading = "The machine"
    )]
    disks: Vec<Disk>,

    /// A network card; may be given more than once
    ///
    /// tap=NAME connects it to a TAP interface of the host. user needs
    /// neither an interface nor root: what the guest sends leaves the host as
    /// your own connections do. The guest finds its address by DHCP:
    /// 10.0.2.15, its gateway 10.0.2.2, and its name server, which asks the
    /// host's, 10.0.2.3. segment=PATH is an Ethernet of machines of your own,
    /// whose sockets are PATH.0, PATH.1 and so on.
    ///   mac=ADDRESS         [default: derived from the interface's name, or
    ///                       the card's number]
    ///   rate=SIZE[:BURST], ops=N[:BURST]
    ///                       bytes and frames in a second, and at once after
    ///                       a rest, in each direction [default: no limit]
    /// With user:
    ///   hostfwd=tcp|udp:[ADDRESS]:PORT-:PORT
    ///                       what comes to that address and port of the host
    ///                       goes to that port of the guest; as often as
    ///                       wanted [default address: 127.0.0.1]
    ///   host-loopback=on|off
    ///                       the guest reaches what listens on the host's
    ///                       127.0.0.1 as its gateway [default: off]
    ///   backend=auto|passt|internal
    ///                       who moves the frames; auto is passt where one
    ///                       newer than Debian 12's is installed and works,
    ///                       else microvm itself, for IPv4 only
    ///                       [default: auto]
    /// With segment=:
    ///   station=N, stations=M
    ///                       which of how many machines this is, 0 to M-1 of
    ///                       1 to 256
    /// With tap=:
    ///   mtu=N               the guest's largest packet and the interface's,
    ///                       which is set where microvm may
    ///                       [default: the interface's own]
    ///   queues=N            1 to 16 pairs of queues [default: one for each
    ///                       vCPU, at most 8, if the interface was made with
    ///                       multi_queue, else one]
    ///   vhost=off|on|auto   let the host's kernel move the frames: less
    ///                       work, but a guest then speaks to the kernel
    ///                       itself; auto where it can [default: off]
    #[arg(
        verbatim_doc_comment,
        long = "net",
        value_name = "user|tap=NAME|segment=PATH[,FIELD=VALUE]…",
        help_heading = "The machine"
    )]
    nets: Vec<Net>,

    /// Sockets between guest and host, through Unix sockets of the host
    ///
    /// Made at PATH, where nothing may be, and removed at the end. A client
    /// of PATH writes 'CONNECT PORT' and a line feed, reads 'OK' and a
    /// number, and is connected to that port of the guest. A guest that
    /// connects to a port of CID 2, the host, reaches whoever listens at
    /// PATH_PORT. The guest's own CID is N [default: 3].
    #[arg(
        verbatim_doc_comment,
        long,
        value_name = "uds=PATH[,cid=N]",
        help_heading = "The machine"
    )]
    vsock: Option<Vsock>,

    /// A directory of the host for the guest; may be given more than once
    ///
    /// The guest mounts it: mount -t virtiofs NAME /mnt. What it does there
    /// is done with the rights of whoever runs microvm, and nothing leads
    /// out of the directory.
    #[arg(
        verbatim_doc_comment,
        long = "share",
        value_name = "tag=NAME,path=DIRECTORY[,readonly=on|off]",
        help_heading = "The machine"
    )]
    shares: Vec<Share>,

    /// A balloon: memory that the guest gives back to the host
    ///
    /// SIZE is what it gives back at first. With deflate-on-oom=on it takes
    /// that back rather than kill processes; with free-page-reporting=on
    /// memory that it frees goes back to the host by itself; with
    /// stats=SECONDS it tells how much it uses, which is reported at the end
    /// with --log info.
    #[arg(
        verbatim_doc_comment,
        long,
        value_name = "[size=SIZE][,deflate-on-oom=on|off][,stats=SECONDS][,...]",
        help_heading = "The machine"
    )]
    balloon: Option<Balloon>,

    /// Limit the guest's entropy device
    ///
    /// It is there with every other virtio device. At most SIZE bytes of the
    /// host's getrandom in a second, and BURST at once after a rest
    /// [default: a tenth of SIZE].
    #[arg(
        verbatim_doc_comment,
        long,
        value_name = "rate=SIZE[:BURST]",
        help_heading = "The machine"
    )]
    rng: Option<Rng>,

    /// What carries the virtio devices: mmio or pci
    ///
    /// pci is a PCI bus with MSI-X, for kernels that lack virtio-mmio, and
    /// the default where there is a motherboard; else it is mmio.
    #[arg(verbatim_doc_comment, long, value_name = "BUS", help_heading = "The machine")]
    transport: Option<Transport>,

    /// A disc image in a CD-ROM, the guest's /dev/sr0
    ///
    /// An IDE drive, for which there is a motherboard then.
    #[arg(long, value_name = "PATH", help_heading = "The machine")]
    cdrom: Option<PathBuf>,

    /// How far the guest is paravirtualized [default: pv]
    ///
    /// Each mode is a choice of the switches below, which can be set alone:
    ///   hvm     a PC, and nothing made for virtual machines:
    ///           ide, rtl8139, board direct, intr kernel
    ///   hvm-pv  the same with virtio: virtio, virtio, direct, kernel
    ///   pvhvm   and KVM's clock and interrupts: virtio, virtio, direct, pv
    ///   pv      and no PC around them: virtio, virtio, pvh, pv
    /// --log info tells the machine's row of Xen's table.
    #[arg(verbatim_doc_comment, long, value_name = "MODE", help_heading = "The spectrum")]
    mode: Option<Mode>,

    /// What disks are attached to: virtio, ide or ide-pio
    ///
    /// IDE disks are /dev/sda, /dev/sdb, and so on; four drives fit. ide-pio
    /// has the processor move every byte.
    #[arg(verbatim_doc_comment, long, value_name = "BUS", help_heading = "The spectrum")]
    disk_bus: Option<DiskBus>,

    /// What network cards are: virtio, rtl8139 or ne2000
    #[arg(long, value_name = "MODEL", help_heading = "The spectrum")]
    net_model: Option<NetModel>,

    /// Motherboard and way into the guest: pvh, direct, real16 or bios
    ///
    /// pvh has none; direct has one (i440FX, PIIX) and enters the kernel as
    /// pvh does; real16 enters a bzImage in real mode, with a BIOS of
    /// microvm's own; bios boots from the first disk, or from the CD where
    /// that has no boot loader, without --kernel. Devices that need a
    /// motherboard bring it.
    #[arg(verbatim_doc_comment, long, value_name = "BOARD", help_heading = "The spectrum")]
    board: Option<BoardKind>,

    /// The BIOS of --board bios: SeaBIOS, 128 or 256 KiB
    ///
    /// [default: /usr/share/seabios/bios-256k.bin, of Debian's seabios]
    #[arg(verbatim_doc_comment, long, value_name = "PATH", help_heading = "The spectrum")]
    firmware: Option<PathBuf>,

    /// Who provides interrupts and timers: kernel, pv, split or user
    ///
    /// kernel is KVM, as hardware would; pv also has KVM's clock and its
    /// other features, which kernel hides. split leaves the local APICs to
    /// KVM and has microvm do the rest, with the mode's features. user is
    /// all of it in microvm: slow, for one vCPU, and without virtio.
    #[arg(verbatim_doc_comment, long, value_name = "WHO", help_heading = "The spectrum")]
    intr: Option<Intr>,

    /// Which of KVM's features there are, if any [default: all=on]
    ///
    /// NAME is all, or one of clock, nop-io-delay, async-pf, steal-time, eoi,
    /// unhalt, tlb-flush, ipi, poll-control, sched-yield and stable-clock.
    /// A feature that is off does not work even if the guest tries.
    #[arg(
        verbatim_doc_comment,
        long,
        value_name = "NAME=on|off[,...]",
        help_heading = "The spectrum"
    )]
    pv_features: Option<PvFeatures>,

    /// Serial console: stdio, off or file=PATH [default: stdio]
    ///
    /// Output is appended to a file, and the guest gets no input then.
    #[arg(long, value_name = "WHERE", help_heading = "The machine")]
    serial: Option<Serial>,

    /// Report counters of devices, queues and vCPUs
    ///
    /// A file gets a report every so many seconds [default: 10] and at the
    /// end; who connects to a socket gets one. json is a line, and prometheus
    /// is that program's text form [default: json].
    #[arg(
        verbatim_doc_comment,
        long,
        value_name = "file=PATH|socket=PATH[,format=json|prometheus][,every=N]",
        help_heading = "Reports"
    )]
    metrics: Option<MetricsConfig>,

    /// Virtio console: stdio, pty, socket=PATH, file=PATH or off
    ///
    /// The guest's hvc0, which becomes its console unless --cmdline names
    /// another; off by default. Faster than the serial port, which is off
    /// with stdio; it
    /// follows the size of the terminal. pty tells the name of a new
    /// pseudo-terminal; a socket is made at PATH, for one client at a time.
    #[arg(verbatim_doc_comment, long, value_name = "WHERE", help_heading = "The machine")]
    console: Option<Console>,

    /// A named port of the virtio console; may be given more than once
    ///
    /// A stream between the guest's /dev/vportNpM, whose name is in
    /// /sys/class/virtio-ports, and a Unix socket made at PATH, for one
    /// client at a time; or into a file.
    #[arg(
        verbatim_doc_comment,
        long = "port",
        value_name = "name=NAME,socket=PATH|file=PATH",
        help_heading = "The machine"
    )]
    ports: Vec<Port>,

    /// Change the machine while it runs: microvm ctl PATH
    ///
    /// A Unix socket made at PATH, where nothing may be, for its user alone,
    /// and removed at the end. Disks and network cards are added and removed
    /// with --transport pci; disks are resized with either transport.
    #[arg(verbatim_doc_comment, long, value_name = "PATH", help_heading = "The machine")]
    control: Option<PathBuf>,

    /// Start even where a probe says that this KVM can't run Linux
    ///
    /// For small guests of one's own; Linux would hang or crash there.
    #[arg(long, help_heading = "The machine")]
    skip_probe: bool,

    /// Read a JSON file; options override or extend it
    #[arg(long, value_name = "FILE", help_heading = "Configuration")]
    config: Option<PathBuf>,

    /// Print the configuration as JSON, and run nothing
    #[arg(long, help_heading = "Configuration")]
    pub print_config: bool,

    /// What to report: off, error, warn, info, debug or trace [default: warn]
    ///
    /// Reports go to standard error.
    #[arg(
        long,
        value_name = "LEVEL",
        default_value = "warn",
        hide_default_value = true,
        hide_possible_values = true,
        help_heading = "Reports"
    )]
    pub log: Level,
}

/// What microvm does beside running a machine.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tell what this host offers, what it lacks, and how to mend it
    ///
    /// Exits with 0 if Linux guests can run here, with 4 if not.
    Doctor {
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
    },
    Spectrum(SpectrumArgs),
    Ctl(CtlArgs),
    /// Compare virtual machines with containers on this host, by measuring
    #[command(disable_help_flag = true)]
    Compare {
        /// As microvm compare --help tells
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
    Run(Box<RunArgs>),
    Exec(ExecArgs),
    Ps(PsArgs),
    Stop(StopArgs),
    #[command(flatten)]
    Image(ImageCommand),
}

/// What to report.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Level {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl From<Level> for log::LevelFilter {
    fn from(level: Level) -> Self {
        match level {
            Level::Off => Self::Off,
            Level::Error => Self::Error,
            Level::Warn => Self::Warn,
            Level::Info => Self::Info,
            Level::Debug => Self::Debug,
            Level::Trace => Self::Trace,
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// Nothing to boot.
    #[error("no kernel: give one with --kernel PATH, or as \"kernel\" in --config FILE")]
    NoKernel,
    /// The configuration file can't be read.
    #[error("config {path}: {reason}: give a JSON file, as from --print-config", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file is not a configuration.
    #[error("config {path}: {source}: compare it with the output of --print-config", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A value can't be.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl Args {
    /// The configuration that these options, and the file they name, ask for.
    pub fn into_config(self) -> Result<Config, ArgsError> {
        let mut config = match &self.config {
            Some(path) => read_config(path)?,
            None => Config::new(PathBuf::new()),
        };
        // What was given takes the place of what the file says.
        set(&mut config.kernel, self.kernel);
        set(&mut config.cmdline, self.cmdline);
        set(&mut config.cpus, self.cpus);
        set(&mut config.memory, self.memory);
        set(&mut config.mode, self.mode);
        set(&mut config.pv_features, self.pv_features);
        config.transport = self.transport.or(config.transport);
        config.disk_bus = self.disk_bus.or(config.disk_bus);
        config.net_model = self.net_model.or(config.net_model);
        config.board = self.board.or(config.board);
        config.firmware = self.firmware.or(config.firmware);
        config.intr = self.intr.or(config.intr);
        config.cdrom = self.cdrom.or(config.cdrom);
        config.skip_probe |= self.skip_probe;
        config.rootfs = self.rootfs.or(config.rootfs);
        config.initrd = self.initrd.or(config.initrd);
        config.vsock = self.vsock.or(config.vsock);
        config.metrics = self.metrics.or(config.metrics);
        config.control = self.control.or(config.control);
        config.balloon = self.balloon.or(config.balloon);
        config.rng = self.rng.or(config.rng);
        config.console = self.console.or(config.console);
        config.serial = self.serial.or(config.serial);
        // What can be there many times is added.
        config.disks.extend(self.disks);
        config.nets.extend(self.nets);
        config.shares.extend(self.shares);
        config.ports.extend(self.ports);
        let firmware = config.board == Some(BoardKind::Bios);
        if config.kernel.as_os_str().is_empty() && !firmware {
            return Err(ArgsError::NoKernel);
        }
        config.validate()?;
        Ok(config)
    }
}

fn set<T>(field: &mut T, given: Option<T>) {
    if let Some(value) = given {
        *field = value;
    }
}

fn read_config(path: &Path) -> Result<Config, ArgsError> {
    let unreadable = |reason: String| ArgsError::Read { path: path.to_owned(), reason };
    let mut text = String::new();
    let size = File::open(path)
        .and_then(|file| file.take(MAX_CONFIG + 1).read_to_string(&mut text))
        .map_err(|error| unreadable(vmm::plain(&error)))?;
    if size as u64 > MAX_CONFIG {
        return Err(unreadable("larger than 1 MiB".to_owned()));
    }
    let parse = |source| ArgsError::Parse { path: path.to_owned(), source };
    let mut value: Value = serde_json::from_str(&text).map_err(parse)?;
    // The kernel may be given on the command line alone.
    if let Value::Object(fields) = &mut value {
        fields.entry("kernel").or_insert_with(|| Value::String(String::new()));
    }
    serde_json::from_value(value).map_err(parse)
}

/// What clap says about a command line, in one line.
pub fn one_line(error: &clap::Error) -> String {
    format!("{}: see microvm --help", vmm::text::complaint(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::io::Write;

    fn config(words: &[&str]) -> Result<Config, ArgsError> {
        let words = ["microvm"].iter().chain(words);
        Args::try_parse_from(words).unwrap().into_config()
    }

    fn complaint(words: &[&str]) -> String {
        let words = ["microvm"].iter().chain(words);
        one_line(&Args::try_parse_from(words).unwrap_err())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn help_fits_a_terminal() {
        let mut all = vec![Args::command()];
        all.extend(Args::command().get_subcommands().cloned());
        let mut long = Vec::new();
        for command in &mut all {
            for help in [command.render_help(), command.render_long_help()] {
                let help = help.to_string();
                let lines = help.lines().filter(|line| line.chars().count() > 80);
                long.extend(lines.map(str::to_owned));
            }
        }
        assert!(long.is_empty(), "{}", long.join("\n"));
    }

    #[test]
    fn options_make_a_configuration() {
        let made = config(&[
            "--kernel",
            "k",
            "--rootfs",
            "r,readonly=on",
            "--initrd",
            "i",
            "--cmdline",
            "-a b",
            "--cpus",
            "2",
            "--memory",
            "1G",
            "--disk",
            "path=a",
            "--disk",
            "b,serial=S",
            "--net",
            "tap=t0",
            "--vsock",
            "uds=v,cid=5",
            "--serial",
            "off",
        ])
        .unwrap();
        let mut wanted = Config::new("k");
        wanted.rootfs = Some("r,readonly=on".parse().unwrap());
        wanted.initrd = Some("i".into());
        wanted.cmdline = "-a b".into();
        wanted.cpus = 2;
        wanted.memory = Size(1 << 30);
        wanted.disks = vec!["a".parse().unwrap(), "b,serial=S".parse().unwrap()];
        wanted.nets = vec!["tap=t0".parse().unwrap()];
        wanted.vsock = Some("uds=v,cid=5".parse().unwrap());
        wanted.serial = Some(Serial::Off);
        assert_eq!(made, wanted);
    }

    #[test]
    fn what_follows_an_image_is_the_programs() {
        let words = ["microvm", "run", "--contain", "a.img", "-c", "--cpus", "--", "-x"];
        let Some(Command::Run(run)) = Args::try_parse_from(words).unwrap().command else {
            panic!()
        };
        let options = run.into_options();
        assert!(options.contain && options.cpus.is_none() && options.image == "a.img");
        assert_eq!(options.arguments, ["-c", "--cpus", "--", "-x"]);
    }

    #[test]
    fn options_override_and_extend_the_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(
            br#"{"cpus": 3, "memory": "64M", "cmdline": "quiet", "disks": [{"path": "a"}]}"#,
        )
        .unwrap();
        let path = file.path().to_str().unwrap();
        let made = config(&["--config", path, "--kernel", "k", "--memory", "128M", "--disk", "b"])
            .unwrap();
        assert_eq!((made.cpus, made.memory), (3, Size(128 << 20)));
        assert_eq!(made.cmdline, "quiet");
        let disks: Vec<_> = made.disks.iter().map(|d| d.path.to_str().unwrap()).collect();
        assert_eq!(disks, ["a", "b"]);
        assert!(matches!(config(&["--config", path]), Err(ArgsError::NoKernel)));
    }

    #[test]
    fn complaints_are_one_line_and_name_the_option() {
        for (words, part) in [
            (&["--memory", "1X"][..], "--memory"),
            (&["--cpus", "x"], "--cpus"),
            (&["--cpsu", "1"], "--cpus"),
            (&["--disk", "a,colour=red"], "colour"),
            (&["--vsock", "uds=v,cid=2"], "cid"),
            (&["--vsock", "a", "--vsock", "b"], "--vsock"),
            (&["--kernel", "a", "--kernel", "b"], "--kernel"),
            (&["--log", "loud"], "debug"),
            (&["doctor", "--jsn"], "--json"),
            (&["ctl", "s"], "add-disk"),
            (&["ctl", "s", "add-disk", "a,colour=red"], "colour"),
            (&["ctl", "s", "resize-disk", "block1", "much"], "much"),
            (&["run", "--colour", "image"], "--colour"),
            (&["run", "--cpus", "x", "image"], "--cpus"),
            (&["run"], "IMAGE"),
            (&["exec", "-a"], "-a"),
            (&["stray"], "stray"),
            (&["--kernel"], "--kernel"),
        ] {
            let text = complaint(words);
            assert!(!text.contains('\n') && text.contains(part), "{text}");
            assert!(!text.starts_with("error"), "{text}");
        }
    }
}
