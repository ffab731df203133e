//! virtio-net on a TAP, with the host's own network stack at the other end.

use crate::guest::{Guest, LIMIT, check};
use crate::{Verdict, kit, trial};
use libtest_mimic::{Completion, Trial};
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub fn tests() -> Vec<Trial> {
    vec![
        trial("net::a_guest_and_its_host_ping_each_other", ping),
        trial("net::ten_mib_arrive_whole_both_ways", transfer),
        trial("net::the_mac_address_is_the_one_asked_for", mac),
        trial("net::queues_and_jumbo_frames_over_mmio", || streams("mmio", "off")),
        trial("net::queues_and_jumbo_frames_over_pci", || streams("pci", "off")),
        trial("net::the_kernel_moves_the_frames_over_mmio", || streams("mmio", "on")),
        trial("net::the_kernel_moves_the_frames_over_pci", || streams("pci", "on")),
        trial("net::the_kernel_moves_the_frames_of_a_pc", kernel_on_a_board),
        trial("net::the_link_follows_the_interface", link),
        trial("net::limits_hold_within_5_percent_each_way", limits),
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
        Self::made(name, net, "mode tap")
    }

    /// The same, for several queues.
    fn of_several_queues(name: &'static str, net: u8) -> Option<Self> {
        Self::made(name, net, "mode tap multi_queue")
    }

    fn made(name: &'static str, net: u8, kind: &str) -> Option<Self> {
        ip(&format!("link del {name}"));
        let made = ip(&format!("tuntap add {name} {kind}"))
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
        self.attach_with("", guest)
    }

    /// The same with more fields of `--net`.
    fn attach_with(&self, fields: &str, guest: Guest) -> Guest {
        guest.arg("--net").arg(format!("tap={}{fields}", self.name))
    }

    /// A guest with a card and the other address.
    pub fn guest(&self, script: &str) -> Guest {
        self.guest_with("", script)
    }

    fn guest_with(&self, fields: &str, script: &str) -> Guest {
        self.attach_with(fields, Guest::tiny().script(&self.script(script)))
    }

    /// Sends `data` to the first who connects, and takes what the second sends.
    pub fn exchange(&self, data: &[u8]) -> std::io::Result<(u16, Exchange)> {
        let listener = TcpListener::bind((self.host(), 0))?;
        let port = listener.local_addr()?.port();
        Ok((port, serve(listener, data.to_vec())))
    }
}

/// What came back.
pub type Exchange = std::thread::JoinHandle<std::io::Result<Vec<u8>>>;

/// A stream that nobody waits for longer than for a guest.
pub fn limited(stream: TcpStream) -> std::io::Result<TcpStream> {
    stream.set_read_timeout(Some(LIMIT)).map(|()| stream)
}

/// Sends `data` to the first client, and returns what the second one sends.
pub fn serve(listener: TcpListener, data: Vec<u8>) -> Exchange {
    std::thread::spawn(move || {
        limited(listener.accept()?.0)?.write_all(&data)?;
        let mut back = Vec::new();
        limited(listener.accept()?.0)?.read_to_end(&mut back)?;
        Ok(back)
    })
}

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

/// The guest sees its cable pulled out when the host's interface goes down, and
/// put back when it comes up.
fn link() -> Verdict {
    let Some(tap) = HostTap::new("mvlink", 9) else { return unavailable() };
    let host = tap.host();
    let script = format!(
        "carrier() {{ until [ $(cat /sys/class/net/eth0/carrier) = $1 ]; do sleep 0.1; done; }}
         carrier 1; echo is=there; carrier 0; echo is=gone
         carrier 1; ping -c 1 -W 5 {host} >/dev/null && echo is=back"
    );
    let mut started = tap.guest(&script).start();
    started.expect("is=there")?;
    ip("link set mvlink down");
    started.expect("is=gone")?;
    ip("link set mvlink up");
    let outcome = started.wait()?.script_passed()?;
    check(outcome.console.contains("is=back"), "and the network works again", &outcome)?;
    Ok(Completion::Completed)
}

/// The host's iperf3, listening; gone when it is dropped.
struct Iperf(Child);

impl Iperf {
    /// `None` where it is not installed.
    fn listen(address: &str) -> Option<Self> {
        let mut server = Command::new("iperf3");
        server.args(["-s", "-B", address]).stdout(Stdio::null()).spawn().ok().map(Self)
    }
}

impl Drop for Iperf {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two vCPUs, a pair of queues each: iperf3 both ways, packets of 9000 bytes,
/// and all of it again for a driver that was unbound.
fn streams(transport: &str, vhost: &str) -> Verdict {
    let Some(tap) = HostTap::of_several_queues("mvmany", 4) else { return unavailable() };
    if vhost == "on" && File::options().write(true).open("/dev/vhost-net").is_err() {
        return Ok(Completion::ignored_with("/dev/vhost-net is missing or not ours to open"));
    }
    let Some(_iperf) = Iperf::listen(&tap.host()) else {
        return Ok(Completion::ignored_with(
            "mounting the tools' disk needs root and loop devices",
        ));
    };
    let host = tap.host();
    let script = format!(
        "mount -t ext4 -o ro /dev/vdc /mnt; mount -t tmpfs tmp /mnt/tmp; mount -t devtmpfs dev /mnt/dev
         net=/sys/class/net/eth0
         echo rx=$(ls -d $net/queues/rx-* | wc -l); echo tx=$(ls -d $net/queues/tx-* | wc -l)
         echo mtu=$(cat $net/mtu); echo features=$(cat $net/device/features)
         iperf() {{ chroot /mnt /usr/bin/iperf3 -c {host} -n 3M -P 2 \"$@\" >/tmp/out || {{ cat /tmp/out; exit 1; }}; }}
         all() {{ ping -c 2 -s 8972 -W 5 {host} || exit 1; iperf; iperf -R; }}
         all
         echo calls=$(sed -n 's/ .*-input\\.[01]$/&/p' /proc/interrupts | awk '{{ if ($2 + $3 > 0) n++ }} END {{ print n + 0 }}')
         card=$(basename $(readlink $net/device)); cd /sys/bus/virtio/drivers/virtio_net
         echo $card >unbind; echo $card >bind
         ip addr add 10.77.4.2/24 dev eth0; ip link set eth0 up; all
         echo again=$(ls -d $net/queues/rx-* | wc -l)"
    );
    let report = tempfile::NamedTempFile::new()?;
    let outcome = tap
        .guest_with(&format!(",mtu=9000,vhost={vhost}"), &script)
        .arg("--disk")
        .arg(format!("path={},readonly=on", kit::tools().display()))
        .arg("--cpus=2")
        .arg("--transport")
        .arg(transport)
        .arg("--metrics")
        .arg(format!("file={}", report.path().display()))
        .run()?
        .script_passed()?;
    for (name, wanted) in [("rx", 2), ("tx", 2), ("again", 2), ("mtu", 9000)] {
        check(outcome.count(name)? == wanted, name, &outcome)?;
    }
    if transport == "pci" {
        check(outcome.count("calls")? == 2, "both receive queues interrupt", &outcome)?;
    }
    let features = outcome.value("features")?.as_bytes();
    let has = |bit: usize| features.get(bit) == Some(&b'1');
    // MTU, the offloads both ways, mergeable buffers, the control queue, MQ.
    let all = [0, 1, 2, 3, 7, 8, 9, 11, 12, 13, 15, 17, 22, 23].into_iter().all(has);
    check(all, "the driver takes all that is offered", &outcome)?;
    check(has(54) == has(56) && has(55) == has(56), "UDP segmentation both ways", &outcome)?;
    let text = std::fs::read_to_string(report.path())?;
    let last: Value = serde_json::from_str(text.lines().last().unwrap_or_default())?;
    let of = |path: &str| last.pointer(path).and_then(Value::as_u64);
    let doorbells = [1, 3].map(|q| of(&format!("/devices/net0/queues/{q}/doorbells")).unwrap_or(0));
    match vhost {
        "on" => {
            check(doorbells == [0, 0], &format!("they are the kernel's: {last}"), &outcome)?;
            check(of("/devices/net0/tx_frames").is_none(), "it counts them itself", &outcome)?;
        }
        _ => {
            check(doorbells.iter().all(|n| *n > 0), &format!("both are used: {last}"), &outcome)?;
            let frames = |q| of(&format!("/devices/net0/queues/{q}/frames")).unwrap_or(0);
            let sum = frames(0) + frames(2);
            check(of("/devices/net0/rx_frames") == Some(sum), "queues add up", &outcome)?;
        }
    }
    Ok(Completion::Completed)
}

/// What a driver does to such a card on a motherboard, whose vCPUs may do other things
/// than those without: start, mask interrupts, stop, and start again.
fn kernel_on_a_board() -> Verdict {
    let Some(tap) = HostTap::new("mvvhost", 30) else { return unavailable() };
    if File::options().write(true).open("/dev/vhost-net").is_err() {
        return Ok(Completion::ignored_with("/dev/vhost-net is missing or not ours to open"));
    }
    let host = tap.host();
    let script = format!(
        "ping -c 2 -W 10 {host} || exit 1
         card=$(basename $(readlink /sys/class/net/eth0/device))
         cd /sys/bus/virtio/drivers/virtio_net
         echo $card >unbind; [ ! -e /sys/class/net/eth0 ] || exit 2
         echo $card >bind
         ip addr add 10.77.30.2/24 dev eth0; ip link set eth0 up
         ping -c 2 -W 10 {host} || exit 3
         card=$(basename $(readlink /sys/class/net/eth0/device))
         echo messages=$(grep -c \"MSI.*$card-input\" /proc/interrupts)"
    );
    let guest = tap.guest_with(",vhost=on", &script).arg("--mode").arg("hvm-pv");
    let outcome = guest.run()?.script_passed()?;
    check(outcome.count("messages")? == 1, "they are told by a message", &outcome)?;
    Ok(Completion::Completed)
}

/// More is sent than may be, on a card for each limit and direction; what gets
/// through is counted in the guest and by its clock.
fn limits() -> Verdict {
    let taps = [("mvlim5", 5), ("mvlim6", 6), ("mvlim7", 7), ("mvlim8", 8)];
    let taps: Option<Vec<HostTap>> =
        taps.into_iter().map(|(n, net)| HostTap::new(n, net)).collect();
    let Some(taps) = taps else { return unavailable() };
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let flood = std::thread::spawn(move || {
        let Ok(socket) = UdpSocket::bind("0.0.0.0:0") else { return };
        while !stopped.load(Ordering::Relaxed) {
            // Nobody is there at first, and later the way is full. This may come
            // to its turn much less often than it wants.
            for _ in 0..4 {
                let _ = socket.send_to(&[0; 1000], "10.77.5.2:9");
                let _ = socket.send_to(&[0; 100], "10.77.6.2:9");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let listeners =
        [TcpListener::bind((taps[2].host(), 9))?, TcpListener::bind((taps[3].host(), 9))?];
    for listener in listeners {
        std::thread::spawn(move || {
            for mut from in listener.incoming().flatten() {
                std::thread::spawn(move || std::io::copy(&mut from, &mut std::io::sink()));
            }
        });
    }
    let script = "for i in 1 2 3; do ip addr add 10.77.$((i + 5)).2/24 dev eth$i; ip link set eth$i up; done
        now() { read -r up rest </proc/uptime; echo ${up%.*}${up#*.}; }
        at() { read -r $1 </sys/class/net/$2/statistics/$3; }
        look() { at a eth0 rx_bytes; at b eth1 rx_packets; at c eth2 tx_bytes; at d eth3 tx_packets; }
        for i in 1 2 3 4; do nc 10.77.7.1 9 </dev/zero & nc 10.77.8.1 9 </dev/zero & done
        sleep 3; start=$(now); look; set -- $a $b $c $d
        sleep 8; time=$(($(now) - start)); look
        echo rx_bytes=$(((a - $1) * 100 / time)); echo rx_frames=$(((b - $2) * 10000 / time))
        echo tx_bytes=$(((c - $3) * 100 / time)); echo tx_frames=$(((d - $4) * 10000 / time))";
    let mut guest = taps[0].guest_with(",rate=64K", script);
    for (tap, limit) in taps.iter().skip(1).zip(["ops=50", "rate=64K", "ops=10"]) {
        guest = guest.arg("--net").arg(format!("tap={},{limit}", tap.name));
    }
    let outcome = guest.run();
    stop.store(true, Ordering::Relaxed);
    flood.join().map_err(|_| "the flood panicked")?;
    let outcome = outcome?.script_passed()?;
    // Frames in hundredths, so that rounding does not decide.
    for (name, wanted) in
        [("rx_bytes", 64 << 10), ("rx_frames", 5000), ("tx_bytes", 64 << 10), ("tx_frames", 1000)]
    {
        let got = outcome.count(name)?;
        let holds = got * 100 <= wanted * 105 && got * 100 >= wanted * 95;
        check(holds, &format!("{name}: {got} is within 5 % of {wanted}"), &outcome)?;
    }
    Ok(Completion::Completed)
}
