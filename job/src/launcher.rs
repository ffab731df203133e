//! Whoever starts the ranks of a parallel program, as a rank knows it: by its
//! environment and by what it has inherited.
//!
//! | variable | of | what it is |
//! | --- | --- | --- |
//! | `PMI_FD` | MPICH's Hydra, Slurm's `pmi2` | a socket that a rank inherits |
//! | `PMIX_SERVER_URI*` | Open MPI, Slurm's `pmix` | `NAME;tcp4://127.0.0.1:PORT` |
//! | `PMIX_NAMESPACE`, `PMI_JOBID` | the same | which program |
//! | `OMPI_COMM_WORLD_LOCAL_SIZE`, `MPI_LOCALNRANKS` | Open MPI, Hydra | ranks of this host |
//! | `OMPI_COMM_WORLD_SIZE`, `PMI_SIZE`, `SLURM_STEP_NUM_TASKS` | all | ranks |
//! | `SLURM_STEP_NUM_NODES` | Slurm | hosts |

use guest::protocol::Wire;
use rustix::net::SocketType;
use rustix::net::sockopt::{socket_peercred, socket_type};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;

/// Names of what a PMIx client asks for first, newest first.
const URIS: [&str; 6] = [
    "PMIX_SERVER_URI41",
    "PMIX_SERVER_URI4",
    "PMIX_SERVER_URI3",
    "PMIX_SERVER_URI21",
    "PMIX_SERVER_URI2",
    "PMIX_SERVER_URI",
];

/// Ranks are told to do without what does not reach into a machine: files that the
/// server maps, and the host's authority (`munge(7)`).
const OWN: [(&str, &str); 2] = [("PMIX_MCA_gds", "hash"), ("PMIX_MCA_psec", "native")];

/// Launchers take ranks of a host for ones that share memory: MPICH, then Open MPI.
const APART: [(&str, &str); 2] = [("MPIR_CVAR_NOLOCAL", "1"), ("OMPI_MCA_btl", "self,tcp")];
/// Which interface they use: libfabric (two providers), UCX, Open MPI.
const INTERFACE: [&str; 4] =
    ["FI_TCP_IFACE", "FI_SOCKETS_IFACE", "UCX_NET_DEVICES", "OMPI_MCA_btl_tcp_if_include"];

/// A launcher of ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launcher {
    /// PMI: the socket that this process has inherited.
    pub socket: Option<RawFd>,
    /// PMIx: its server.
    pub server: Option<SocketAddrV4>,
    /// Ranks on this host, if it is told.
    pub local: Option<u32>,
    /// Ranks.
    pub size: Option<u32>,
    /// Which of them this is.
    pub rank: Option<u32>,
    /// Slurm says that there are other hosts.
    elsewhere: bool,
    /// What only the ranks of one program on one host have in common.
    pub program: String,
}

impl Launcher {
    /// Of this process, if it is a rank.
    pub fn of(environment: &[(OsString, OsString)]) -> Option<Self> {
        let text = |name: &str| {
            let found = environment.iter().find(|(n, _)| n == name);
            found.and_then(|(_, value)| value.to_str())
        };
        let number = |name: &str| text(name)?.trim().parse::<u32>().ok();
        let first = |names: &[&str]| names.iter().find_map(|name| number(name));
        let socket = number("PMI_FD").and_then(inherited);
        let server = URIS.iter().find_map(|name| address(text(name)?));
        if socket.is_none() && server.is_none() {
            return None;
        }
        let size = first(&["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"]);
        let rank = first(&["OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID"]);
        let hosts = number("SLURM_STEP_NUM_NODES");
        let local = first(&["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"]);
        let names = ["PMIX_NAMESPACE", "PMI_JOBID"].map(|name| text(name).unwrap_or_default());
        let made_by = socket.map(maker).unwrap_or_default();
        Some(Self {
            socket,
            server,
            local: local.or(size.filter(|_| hosts == Some(1))),
            size,
            rank,
            elsewhere: hosts.is_some_and(|hosts| hosts > 1),
            program: format!("{names:?} {server:?} {made_by:?}"),
        })
    }

    /// Whether there are others, as far as one knows.
    pub fn has_others(&self) -> bool {
        self.size != Some(1)
    }

    /// Whether there are others on other hosts.
    pub fn has_others_elsewhere(&self) -> bool {
        let fewer = matches!((self.size, self.local), (Some(size), Some(local)) if local < size);
        self.elsewhere || fewer
    }

    /// What init is told of it.
    pub fn wire(&self, shared: bool) -> Wire {
        Wire {
            descriptor: self.socket.and_then(|fd| u32::try_from(fd).ok()),
            listener: self.server.map(|server| server.port()),
            shared,
        }
    }

    /// Variables that a rank in a machine needs, beside those of its launcher.
    /// `network`: the interface that leads to the others, if they are in machines of
    /// their own, whose memory nobody shares.
    pub fn variables(&self, network: Option<&str>) -> Vec<(&'static str, String)> {
        let own = self.server.map_or(&[][..], |_| &OWN);
        let apart = network.map_or(&[][..], |_| &APART);
        let fixed = own.iter().chain(apart).map(|(name, value)| (*name, (*value).to_owned()));
        let names = network
            .into_iter()
            .flat_map(|network| INTERFACE.iter().map(move |name| (*name, network.to_owned())));
        fixed.chain(names).collect()
    }
}

/// The descriptor, if it is a socket that carries a stream.
fn inherited(number: u32) -> Option<RawFd> {
    let fd = RawFd::try_from(number).ok().filter(|fd| *fd > libc::STDERR_FILENO)?;
    let is_stream = socket_type(borrow(fd)) == Ok(SocketType::STREAM);
    is_stream.then_some(fd)
}

/// The inherited socket once more, for the machine.
pub fn twin(descriptor: u32) -> io::Result<UnixStream> {
    let fd = RawFd::try_from(descriptor).map_err(|_| io::ErrorKind::InvalidInput)?;
    borrow(fd).try_clone_to_owned().map(UnixStream::from)
}

/// A number that is looked at, whatever it stands for.
fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: it is not -1. It is used for questions alone, to which one that is not
    // open answers with an error, and nothing closes it meanwhile.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Who has made both ends of a pair of sockets, and when that process started: the
/// launcher's own process on this host.
fn maker(fd: RawFd) -> (i32, u64) {
    let pid = socket_peercred(borrow(fd)).map_or(0, |peer| peer.pid.as_raw_nonzero().get());
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the name, which may hold anything, field 22 is the 20th (`proc(5)`).
    let started = stat.rsplit_once(')').and_then(|(_, rest)| rest.split(' ').nth(20));
    (pid, started.and_then(|text| text.parse().ok()).unwrap_or(0))
}

/// `NAME;tcp4://127.0.0.1:PORT`: others are reached as any host is.
fn address(uri: &str) -> Option<SocketAddrV4> {
    let (_, place) = uri.split_once(';')?;
    let address: SocketAddrV4 = place.strip_prefix("tcp4://")?.parse().ok()?;
    (address.ip().is_loopback() && address.port() != 0).then_some(address)
}

/// A number that names of machines are made of: the same for the same text
/// (64-bit FNV-1a).
pub fn short(text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn with(variables: &[(&str, &str)]) -> Option<Launcher> {
        let pair = |(name, value): &(&str, &str)| ((*name).into(), (*value).into());
        let all: Vec<(OsString, OsString)> = variables.iter().map(pair).collect();
        Launcher::of(&all)
    }

    #[test]
    fn no_launcher_is_made_up() {
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[("PMI_FD", "-1")]), None);
        assert_eq!(with(&[("PMI_FD", "1")]), None);
        assert_eq!(with(&[("PMI_FD", "1000000")]), None);
        assert_eq!(with(&[("PMIX_SERVER_URI2", "a.0;tcp4://10.0.0.1:7")]), None);
        assert_eq!(with(&[("PMIX_SERVER_URI2", "a.0;tcp4://127.0.0.1:0")]), None);
        assert_eq!(with(&[("PMIX_SERVER_URI2", "tcp4://127.0.0.1:1")]), None);
    }

    #[test]
    fn a_socket_is_pmi_and_names_its_maker() {
        let (one, other) = UnixStream::pair().unwrap();
        let [one, other] = [&one, &other].map(|s| s.as_raw_fd().to_string());
        let rank = |fd: &str| with(&[("PMI_FD", fd), ("PMI_SIZE", "2"), ("MPI_LOCALNRANKS", "2")]);
        let (one, other) = (rank(&one).unwrap(), rank(&other).unwrap());
        assert_eq!(one.program, other.program);
        assert!(one.program.contains(&std::process::id().to_string()));
        assert!(one.has_others() && !one.has_others_elsewhere());
        assert_eq!(one.wire(true).descriptor, one.socket.map(|fd| fd as u32));
        assert!(one.variables(None).is_empty());
        assert!(one.variables(Some("eth1")).contains(&("FI_TCP_IFACE", "eth1".to_owned())));
    }

    #[test]
    fn a_server_on_the_loopback_interface_is_pmix() {
        let variables = [
            ("PMIX_SERVER_URI2", "a.0;tcp4://127.0.0.1:40000"),
            ("PMIX_NAMESPACE", "a"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        let rank = with(&variables).unwrap();
        assert_eq!(rank.wire(false).listener, Some(40000));
        assert!(rank.has_others_elsewhere());
        assert!(!rank.variables(None).is_empty());
        let alone = with(&[variables[0], ("OMPI_COMM_WORLD_SIZE", "1")]).unwrap();
        assert!(!alone.has_others());
    }
}
