//! `microvm run`: options in, a job out.

use clap::Args;
use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use vmm::config::Size;

const EXAMPLES: &str = "\
Examples:
  microvm run ./app.img python3 train.py
      Runs a program of an image, with this directory, $HOME and /tmp.
  microvm run host make -j8
      Runs a program of this host; what it changes outside of $HOME, /tmp and
      this directory is gone afterwards.
  cat data | microvm run --contain --bind data:/data:ro ./image sort | head
      Shares nothing but one directory. Pipes are as they are without it.
  mpirun -np 2 microvm run ./app.img arg1 arg2
      The ranks of a host, in one virtual machine.

Images:
  a directory; a file or block device with ext4, squashfs or erofs; a SIF; what
  microvm build makes; oci:DIRECTORY[:TAG], oci-archive:FILE[:TAG] or
  docker-archive:FILE, which are put together in the cache; or host, the root
  of this host. A directory called host is ./host.

Exit status:
  The job's own; and a job that a signal has ended ends microvm by the same.
  125      microvm or the guest failed, which standard error tells
  126      the program can't be executed
  127      there is no such program
";

/// Run a job in a virtual machine of its own
///
/// The job is the same user with the same groups, limits, umask and files. Its
/// input, output, signals and exit status are microvm's own.
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    next_line_help = true,
    after_long_help = EXAMPLES,
    after_help = "microvm run --help tells more: examples, images and exit statuses.",
    override_usage = "microvm run [OPTIONS] IMAGE [PROGRAM [ARGUMENT]...]"
)]
pub struct RunArgs {
    /// Where the job's root file system comes from; the program and its
    /// arguments, or those of the image's own
    ///
    /// What follows the image is the program's, options as well.
    #[arg(
        verbatim_doc_comment,
        trailing_var_arg = true,
        required = true,
        value_name = "IMAGE [PROGRAM [ARGUMENT]...]"
    )]
    pub words: Vec<OsString>,

    /// Guest kernel
    ///
    /// Else it is $MICROVM_KERNEL or the first that is there of
    ///   ~/.local/share/microvm/vmlinux
    ///   /usr/local/lib/microvm/vmlinux
    ///   /usr/lib/microvm/vmlinux
    ///   this host's own, in /usr/lib/modules or /boot
    /// Modules that a job needs are taken from /usr/lib/modules for a
    /// vmlinuz-RELEASE, or from the directory modules beside the kernel.
    #[arg(verbatim_doc_comment, long, value_name = "PATH", help_heading = "The machine")]
    pub kernel: Option<PathBuf>,

    /// Number of vCPUs, 1 to 32
    ///
    /// Else as many as the scheduler's mask, cgroups and Slurm allow.
    #[arg(verbatim_doc_comment, long, value_name = "N", help_heading = "The machine")]
    pub cpus: Option<u32>,

    /// Guest memory, like 512M or 2G
    ///
    /// Else what cgroups and Slurm allow; without a limit half of the host's
    /// memory, at most 4G. The host gives it as the guest touches it.
    #[arg(verbatim_doc_comment, long, value_name = "SIZE", help_heading = "The machine")]
    pub memory: Option<Size>,

    /// Name the job, for microvm exec, ps and stop
    ///
    /// A socket of this name is in $XDG_RUNTIME_DIR/microvm, or else in
    /// /tmp/microvm-UID, as long as the job runs. Without a name a job makes
    /// no file on the host.
    #[arg(verbatim_doc_comment, long, value_name = "NAME", help_heading = "The job")]
    pub name: Option<job::named::Name>,

    /// Where ranks of a parallel program run: auto or never [default: auto]
    ///
    /// auto runs all ranks of a host in one machine, a process each, where
    /// they share memory; never gives each a machine of its own. A rank is
    /// known by what mpirun or srun gives to it (PMI_FD, PMIX_SERVER_URI);
    /// what has nothing of that has its own machine.
    #[arg(
        verbatim_doc_comment,
        long,
        value_name = "HOW",
        default_value = "auto",
        hide_default_value = true,
        help_heading = "The machine"
    )]
    pub join: job::Join,

    /// Append what the guest's kernel says to a file
    #[arg(long, value_name = "PATH", help_heading = "The machine")]
    pub kernel_log: Option<PathBuf>,

    /// Report counters of devices, queues and vCPUs; as microvm --metrics
    #[arg(long, value_name = "file=PATH|socket=PATH[,…]", help_heading = "The machine")]
    pub metrics: Option<vmm::config::MetricsConfig>,

    /// The job's network: none, user[,FIELD=VALUE]… or tap=NAME,FIELD=VALUE…
    ///
    /// user, the default, reaches what you reach, and is reached at the
    /// ports that hostfwd=tcp|udp:[ADDRESS]:PORT-:PORT names; see --net of
    /// microvm itself. microvm moves the packets unless backend=passt is
    /// given. tap=NAME is an interface that root has made for its user;
    /// address=ADDRESS/PREFIX says what the job is on it, gateway=ADDRESS
    /// where everything else is.
    #[arg(
        verbatim_doc_comment,
        long,
        value_name = "NETWORK",
        default_value = "user",
        hide_default_value = true,
        help_heading = "The machine"
    )]
    pub net: Network,

    /// If this host lacks something that isolates: best, report or strict
    ///
    /// The monitor gives up system calls, files, connections, privileges,
    /// capabilities, limits and, where it can do without the host's,
    /// namespaces. best takes what there is, report tells it on standard
    /// error, and strict runs nothing without all.
    #[arg(
        verbatim_doc_comment,
        long,
        value_name = "LEVEL",
        default_value = "best",
        hide_default_value = true,
        help_heading = "The machine"
    )]
    pub isolation: job::Isolation,

    /// What to report: off, error, warn, info, debug or trace [default: warn]
    #[arg(
        long,
        value_name = "LEVEL",
        default_value = "warn",
        hide_default_value = true,
        hide_possible_values = true,
        help_heading = "The machine"
    )]
    pub log: crate::args::Level,

    /// Set a variable, or keep the caller's; may be given more than once
    #[arg(long, value_name = "NAME[=VALUE]", help_heading = "The job")]
    pub env: Vec<String>,

    /// Keep no variable but HOME, LANG, LOGNAME, TERM and USER
    #[arg(long, help_heading = "The job")]
    pub cleanenv: bool,

    /// Working directory [default: the same as outside]
    #[arg(long, visible_alias = "cwd", value_name = "PATH", help_heading = "The job")]
    pub pwd: Option<PathBuf>,

    /// Who the job is in its machine: caller or image [default: caller]
    ///
    /// image is the user that an OCI image names, with its groups and home
    /// directory. What is shared with the host is still reached with the
    /// caller's rights.
    #[arg(
        verbatim_doc_comment,
        long,
        value_name = "WHO",
        default_value = "caller",
        hide_default_value = true,
        help_heading = "The job"
    )]
    pub user: job::User,

    /// Run PROGRAM even if the image has a program of its own
    ///
    /// Else what follows the image are arguments of an OCI image's
    /// entrypoint, or of the runscript of Singularity's.
    #[arg(verbatim_doc_comment, long, help_heading = "The job")]
    pub exec: bool,

    /// Give the job a terminal [default: if input and output are one]
    #[arg(short = 't', long, overrides_with = "no_tty", help_heading = "The job")]
    pub tty: bool,

    /// Give the job no terminal
    #[arg(long, help_heading = "The job")]
    pub no_tty: bool,

    /// Share a directory or file of this host; may be given more than once
    #[arg(short = 'B', long = "bind", value_name = "SOURCE[:TARGET[:ro]]", help_heading = "Files")]
    pub binds: Vec<job::Bind>,

    /// Do not share the home directory
    #[arg(long, help_heading = "Files")]
    pub no_home: bool,

    /// Share nothing but what --bind says
    ///
    /// Else the job has $HOME, the working directory, /tmp and /var/tmp.
    #[arg(short = 'c', long, verbatim_doc_comment, help_heading = "Files")]
    pub contain: bool,

    /// Let the job change the root file system, in memory
    #[arg(long, help_heading = "Files")]
    pub writable_tmpfs: bool,

    /// Let the job change the root file system, in an ext4 image
    #[arg(short = 'o', long, value_name = "PATH", help_heading = "Files")]
    pub overlay: Option<PathBuf>,
}

/// A job's network.
#[derive(Debug, Clone)]
pub struct Network(Option<job::Card>);

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            card => card.parse().map(|card| Self(Some(card))),
        }
    }
}

/// What `--tty` and `--no-tty` say together.
pub fn wanted_terminal(tty: bool, no_tty: bool) -> Option<bool> {
    (tty || no_tty).then_some(tty)
}

impl RunArgs {
    /// The job that these options ask for.
    pub fn into_options(self) -> job::Options {
        let mut words = self.words.into_iter();
        job::Options {
            // clap has seen to it that there is one.
            image: words.next().unwrap_or_default(),
            arguments: words.collect(),
            exec: self.exec,
            kernel: self.kernel,
            cpus: self.cpus,
            memory: self.memory.map(|size| size.0),
            env: self.env,
            clean_env: self.cleanenv,
            pwd: self.pwd,
            user: self.user,
            binds: self.binds,
            no_home: self.no_home,
            contain: self.contain,
            writable_tmpfs: self.writable_tmpfs,
            overlay: self.overlay,
            terminal: wanted_terminal(self.tty, self.no_tty),
            network: self.net.0,
            isolation: self.isolation,
            join: self.join,
            name: self.name,
            kernel_log: self.kernel_log,
            metrics: self.metrics,
        }
    }
}
