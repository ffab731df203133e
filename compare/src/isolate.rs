//! What each subject sees of the host and may do to it.

use crate::Error;
use crate::catalog::{Kind, PROBES};
use crate::command::Workshop;
use crate::report::Outcome;
use crate::spawn::{Child, Order, Signals};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// `keyctl(2)`: the user's keyring, and taking a key out of it.
const USER_KEYRING: libc::c_long = -4;
const UNLINK: libc::c_long = 9;

/// What the host hides for subjects to find. All of it is gone with this.
pub struct Witnesses {
    /// The word.
    pub nonce: String,
    /// The file that holds it.
    pub path: PathBuf,
    /// The port of 127.0.0.1 that says it.
    pub port: u16,
    /// The process that has it in its command line.
    process: Child,
    memory: Option<i32>,
    key: Option<libc::c_long>,
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
    _socket: UnixListener,
}

impl Witnesses {
    /// Hides all.
    pub fn hide(workshop: &Workshop, signals: &Signals) -> Result<Self, Error> {
        let nonce = nonce().map_err(Error::host("random number"))?;
        let witness = format!("witness-{nonce}");
        let order = Order::new(&workshop.place.agent(), ["hold", &witness]);
        let mut process =
            Child::start(order.map_err(Error::host("witness"))?).map_err(Error::Subject)?;
        process.until("@ready", signals, Duration::from_secs(60))?;
        let path = workshop.place.path().join("witness");
        fs::write(&path, &nonce).map_err(Error::host("witness"))?;
        let address = SocketAddr::from_abstract_name(&nonce);
        let socket = address.and_then(|address| UnixListener::bind_addr(&address));
        let stop = Arc::new(AtomicBool::new(false));
        let (port, server) = serve(&nonce, &stop).map_err(Error::host("127.0.0.1"))?;
        Ok(Self {
            path,
            port,
            process,
            memory: shared_memory(&nonce),
            key: key(&nonce),
            nonce,
            stop,
            server: Some(server),
            _socket: socket.map_err(Error::host("abstract socket"))?,
        })
    }

    /// The process that is one of them.
    pub fn process(&self) -> libc::pid_t {
        self.process.pid
    }
}

impl Drop for Witnesses {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
        // The agent may have been killed while it had one.
        for path in ["/tmp/microvm-compare.device", "/dev/microvm-compare.device"] {
            let _ = fs::remove_file(path);
        }
        // SAFETY: numbers of what was made here.
        unsafe {
            if let Some(memory) = self.memory {
                libc::shmctl(memory, libc::IPC_RMID, std::ptr::null_mut());
            }
            if let Some(key) = self.key {
                libc::syscall(libc::SYS_keyctl, UNLINK, key, USER_KEYRING);
            }
        }
    }
}

/// Sixteen hexadecimal digits that are others when read backwards.
fn nonce() -> io::Result<String> {
    let mut random = fs::File::open("/dev/urandom")?;
    loop {
        let mut bytes = [0; 8];
        random.read_exact(&mut bytes)?;
        let nonce = format!("{:016x}", u64::from_le_bytes(bytes));
        let backwards: String = nonce.chars().rev().collect();
        if nonce.get(..8) != backwards.get(..8)
            && !nonce.starts_with("00000000")
            && !backwards.starts_with("00000000")
        {
            return Ok(nonce);
        }
    }
}

fn serve(nonce: &str, stop: &Arc<AtomicBool>) -> io::Result<(u16, JoinHandle<()>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    let (nonce, stop) = (nonce.to_owned(), stop.clone());
    let server = thread::Builder::new().spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((mut client, _)) => drop(client.write_all(nonce.as_bytes())),
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    })?;
    Ok((port, server))
}

/// A System V object whose key the agent derives as well.
fn shared_memory(nonce: &str) -> Option<i32> {
    let key = u32::from_str_radix(nonce.get(..8)?, 16).ok()?;
    // SAFETY: shmget takes numbers.
    let made = unsafe { libc::shmget(key as i32, 1, libc::IPC_CREAT | libc::IPC_EXCL | 0o600) };
    (made >= 0).then_some(made)
}

fn key(nonce: &str) -> Option<libc::c_long> {
    let name = format!("microvm-{nonce}\0");
    // SAFETY: strings that end with NUL and a byte, which outlive the call.
    let made = unsafe {
        let (kind, byte) = (c"user".as_ptr(), c"x".as_ptr());
        libc::syscall(libc::SYS_add_key, kind, name.as_ptr(), byte, 1, USER_KEYRING)
    };
    (made >= 0).then_some(made)
}

/// The agent's facts by their names.
pub fn facts(text: &str) -> BTreeMap<String, String> {
    let fact = |line: &str| {
        let (name, value) = line.trim().strip_prefix("@f ")?.split_once(' ')?;
        Some((name.to_owned(), value.trim().to_owned()))
    };
    text.lines().filter_map(fact).collect()
}

/// What came of each probe, given what the host says of itself.
pub fn outcomes(
    facts: &BTreeMap<String, String>,
    host: &BTreeMap<String, String>,
) -> BTreeMap<String, Outcome> {
    let get = |name: &str| facts.get(name).map(String::as_str);
    let same = |name: &str| match (facts.get(name), host.get(name)) {
        (Some(own), Some(host)) if own.len() > 1 => Some(own == host),
        _ => None,
    };
    let outcome = |probe: &crate::catalog::Probe| match probe.kind {
        Kind::Fact => match same(probe.name) {
            Some(true) => Outcome::Host,
            Some(false) => Outcome::Own,
            None => Outcome::Unknown("it does not tell".to_owned()),
        },
        Kind::Witness => match (get(probe.name), get(&format!("control_{}", probe.name))) {
            (Some(_), Some("found")) => Outcome::Unknown("finds what is not there".to_owned()),
            (Some("found"), Some(_)) => Outcome::Host,
            (Some("not-found"), Some(_)) => Outcome::No("not found".to_owned()),
            _ => Outcome::Unknown("it does not tell".to_owned()),
        },
        Kind::Attempt => match (get(probe.name), same("boot_id")) {
            (Some("allowed"), Some(true)) => Outcome::Host,
            (Some("allowed"), Some(false)) => Outcome::Own,
            (Some("absent"), _) => Outcome::No("there is none".to_owned()),
            (Some(text), _) if text.starts_with("refused") => {
                Outcome::No(text.trim_start_matches("refused").trim().to_owned())
            }
            _ => Outcome::Unknown("it does not tell".to_owned()),
        },
    };
    PROBES.iter().map(|probe| (probe.name.to_owned(), outcome(probe))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_counts_only_if_its_control_is_not_found() {
        let host = facts("@f boot_id aa-bb\n@f hostname h1\n");
        let own = "@f boot_id cc-dd\r\n@f hostname h1\n@f set_time allowed\n@f kexec refused Operation not permitted\n";
        let of = |text: &str| outcomes(&facts(&format!("{own}{text}")), &host);
        let found = of("@f host_process found\n@f control_host_process not-found\n");
        assert_eq!(found["host_process"], Outcome::Host);
        assert_eq!(found["boot_id"], Outcome::Own);
        assert_eq!(found["hostname"], Outcome::Host);
        assert_eq!(found["set_time"], Outcome::Own);
        assert_eq!(found["kexec"], Outcome::No("Operation not permitted".to_owned()));
        let broken = of("@f host_process found\n@f control_host_process found\n");
        assert!(matches!(broken["host_process"], Outcome::Unknown(_)));
        assert!(matches!(broken["host_key"], Outcome::Unknown(_)));
        assert_eq!(found.len(), PROBES.len());
    }
}
