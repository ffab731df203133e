//! virtio-net on a TAP, with the host's own network stack at the other end.

use crate::guest::{Guest, check};
use crate::{Verdict, trial};
use libtest_mimic::{Completion, Trial};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

pub fn tests() -> Vec<Trial> {
    vec![
        trial("net::a_guest_and_its_host_ping_each_other", ping),
        trial("net::ten_mib_arrive_whole_both_ways", transfer),
        trial("net::the_mac_address_is_the_one_asked_for", mac),
    ]
}

/// A TAP with an address for the host, gone when it is dropped.
pub struct HostTap {
    name: &'static str,
    net: u8,
}

fn ip(args: &str) -> bool {
    Command::new("ip").args(args.split(' ')).output().is_ok_and(|o| o.status.success())
}

impl HostTap {
    /// `None` where the caller may not make interfaces.
    pub fn new(name: &'static str, net: u8) -> Option<Self> {
        ip(&format!("link del {name}"));
        let made = ip(&format!("tuntap add {name} mode tap"))
            && ip(&format!("addr add 10.77.{net}.1/24 dev {name}"))
            && ip(&format!("link set {name} up"));
        made.then_some(Self { name, net })
    }

    /// The host's address.
    pub fn host(&self) -> String {
        format!("10.77.{}.1", self.net)
    }

    /// A script for a guest that takes the other address first.
    pub fn script(&self, script: &str) -> String {
        let setup = format!(
            "ip link set lo up; ip addr add 10.77.{}.2/24 dev eth0; ip link set eth0 up\n",
            self.net
        );
        setup + script
    }

    /// Gives a guest a card.
    pub fn attach(&self, guest: Guest) -> Guest {
        guest.arg("--net").arg(format!("tap={}", self.name))
    }

    /// A guest with a card and the other address.
    pub fn guest(&self, script: &str) -> Guest {
        self.attach(Guest::tiny().script(&self.script(script)))
    }

    /// Sends `data` to the first who connects, and takes what the second sends.
    pub fn exchange(&self, data: &[u8]) -> std::io::Result<(u16, Exchange)> {
        let listener = TcpListener::bind((self.host(), 0))?;
        let port = listener.local_addr()?.port();
        let sent = data.to_vec();
        let serve = std::thread::spawn(move || {
            let limited = |stream: TcpStream| {
                stream.set_read_timeout(Some(Duration::from_secs(60))).map(|()| stream)
            };
            let mut out = limited(listener.accept()?.0)?;
            out.write_all(&sent)?;
            drop(out);
            let mut back = Vec::new();
            limited(listener.accept()?.0)?.read_to_end(&mut back)?;
            Ok(back)
        });
        Ok((port, serve))
    }
}

/// What came back.
pub type Exchange = std::thread::JoinHandle<std::io::Result<Vec<u8>>>;

impl Drop for HostTap {
    fn drop(&mut self) {
        ip(&format!("link del {}", self.name));
    }
}

pub fn unavailable() -> Verdict {
    Ok(Completion::ignored_with("making a TAP needs CAP_NET_ADMIN and the ip command"))
}

fn ping() -> Verdict {
    let Some(tap) = HostTap::new("mvping", 1) else { return unavailable() };
    let host = tap.host();
    let outcome = tap
        .guest(&format!("ping -c 3 -W 5 {host} && ping -c 1 -s 1400 -W 5 {host}"))
        .run()?
        .script_passed()?;
    check(outcome.console.contains("3 packets received"), "every ping is answered", &outcome)?;
    Ok(Completion::Completed)
}

const BYTES: usize = 10 << 20;

/// The host sends 10 MiB, the guest sums them up and sends them back.
fn transfer() -> Verdict {
    let Some(tap) = HostTap::new("mvcopy", 2) else { return unavailable() };
    let data: Vec<u8> =
        (0..BYTES as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let (port, serve) = tap.exchange(&data)?;
    let host = tap.host();
    let script = format!(
        "nc {host} {port} </dev/null >/tmp/got; echo got=$(stat -c %s /tmp/got); nc {host} {port} </tmp/got"
    );
    let outcome = tap.guest(&script).run()?.script_passed()?;
    check(outcome.count("got")? == BYTES as u64, "all bytes reach the guest", &outcome)?;
    let back = serve.join().map_err(|_| "the host's side panicked")??;
    check(back == data, "and come back as they were", &outcome)?;
    Ok(Completion::Completed)
}

fn mac() -> Verdict {
    let Some(tap) = HostTap::new("mvmac", 3) else { return unavailable() };
    let script = "echo mac=$(cat /sys/class/net/eth0/address)";
    let default = tap.guest(script).run()?.script_passed()?;
    check(
        default.value("mac")?.starts_with("02:"),
        "the default is locally administered",
        &default,
    )?;
    let guest = Guest::tiny().script(script).arg("--net").arg("tap=mvmac,mac=02:11:22:33:44:55");
    let outcome = guest.run()?.script_passed()?;
    check(
        outcome.value("mac")? == "02:11:22:33:44:55",
        "the address is the one asked for",
        &outcome,
    )?;
    Ok(Completion::Completed)
}
