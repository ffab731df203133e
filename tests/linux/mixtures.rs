//! The switches of the spectrum in every mixture: each is refused with the reason, or
//! boots, and is what it says.

use crate::guest::{Guest, check};
use crate::{Verdict, kit, trial};
use libtest_mimic::{Completion, Trial};
use std::path::Path;

pub fn tests() -> Vec<Trial> {
    vec![trial("modes::any_mixture_of_switches_works_or_is_refused_with_the_reason", mixtures)]
}

/// Boots every mixture instead of some in which each pair of choices occurs.
const EVERY: &str = "MICROVM_TEST_MIXTURES";

const DISKS: [&str; 3] = ["virtio", "ide", "ide-pio"];
const CARDS: [&str; 3] = ["virtio", "rtl8139", "ne2000"];
const BOARDS: [&str; 3] = ["pvh", "direct", "real16"];
const INTERRUPTS: [&str; 4] = ["pv", "kernel", "split", "user"];

/// What is written to the disk: behind its file system.
const DATA: usize = 32 << 10;
const BLOCK: u64 = 4 << 10;

#[derive(Clone, Copy, PartialEq)]
struct Mixture {
    disk: &'static str,
    card: &'static str,
    board: &'static str,
    interrupts: &'static str,
}

/// All there are.
fn all() -> Vec<Mixture> {
    let mut all = Vec::new();
    for disk in DISKS {
        for card in CARDS {
            for board in BOARDS {
                for interrupts in INTERRUPTS {
                    all.push(Mixture { disk, card, board, interrupts });
                }
            }
        }
    }
    all
}

/// As few as the next best gives in which every pair of choices occurs that occurs
/// at all.
fn some(all: &[Mixture]) -> Vec<Mixture> {
    let mut open: Vec<(&str, &str)> = all.iter().flat_map(Mixture::pairs).collect();
    let mut chosen = Vec::new();
    while !open.is_empty() {
        let gain =
            |mixture: &&Mixture| mixture.pairs().iter().filter(|pair| open.contains(pair)).count();
        let Some(best) = all.iter().max_by_key(gain) else { break };
        open.retain(|pair| !best.pairs().contains(pair));
        chosen.push(*best);
    }
    chosen
}

impl Mixture {
    /// The choices, two and two.
    fn pairs(&self) -> Vec<(&'static str, &'static str)> {
        // A word alone does not tell a disk from a card.
        const OF_DISKS: [(&str, &str); 3] =
            [("virtio", "virtio-blk"), ("ide", "ide"), ("ide-pio", "ide-pio")];
        let disk = OF_DISKS.iter().find(|(name, _)| *name == self.disk);
        let words = [disk.map_or("", |(_, word)| word), self.card, self.board, self.interrupts];
        let mut pairs = Vec::new();
        for (number, first) in words.iter().enumerate() {
            pairs.extend(words.iter().skip(number + 1).map(|second| (*first, *second)));
        }
        pairs
    }

    fn words(&self) -> [&'static str; 8] {
        let Self { disk, card, board, interrupts } = *self;
        ["--disk-bus", disk, "--net-model", card, "--board", board, "--intr", interrupts]
    }

    fn is_virtio(&self) -> bool {
        self.disk == "virtio"
    }

    /// The machine around a root, a script and a card.
    fn guest(&self, image: &Path, script: &Path) -> Guest {
        let kernel = match self.board {
            "real16" => kit::bzimage(),
            _ => kit::vmlinux(),
        };
        let guest = Guest::with_kernel(&kernel).arg("--mode").arg("hvm").quiet().word("ro");
        let guest = self.words().into_iter().fold(guest, Guest::arg);
        let guest = guest.arg("--net").arg("user,backend=internal");
        let guest = guest.arg("--rootfs").arg(image);
        // Linux names SCSI disks in whatever order it finds them: there is one.
        match self.is_virtio() {
            true => guest.arg("--disk").arg(script).word("microvm.run=/dev/vdb"),
            false => guest.arg("--cdrom").arg(script).word("microvm.run=/dev/sr0"),
        }
    }

    /// The reason for which it is refused, if it is.
    fn refused(&self, image: &Path, script: &Path) -> Result<Option<String>, String> {
        let mut command = self.guest(image, script).arg("--print-config").command();
        let output = command.output().map_err(|error| error.to_string())?;
        let told = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        match output.status.code() {
            Some(0) => Ok(None),
            Some(3) if told.lines().count() == 1 && told.contains(": ") => Ok(Some(told)),
            other => Err(format!("{:?}: status {other:?}: {told}", self.words())),
        }
    }

    /// Boots it: the disk is written and read, the gateway answers, and drivers, board
    /// and hypervisor are those that were asked for.
    fn boot(&self, script: &Path) -> Result<(), libtest_mimic::Failed> {
        let directory = tempfile::tempdir()?;
        let image = directory.path().join("root.img");
        std::fs::copy(kit::root(), &image)?;
        let file = std::fs::File::options().write(true).open(&image)?;
        let end = file.metadata()?.len();
        file.set_len(end + DATA as u64)?;
        let guest = self.guest(&image, script).word(format!("mixture.seek={}", end / BLOCK));
        let outcome = guest.run()?.script_passed()?;
        let is = |name: &str, wanted: &str| {
            let what = format!("{:?}: {name} is {wanted:?}", self.words());
            outcome.value(name).and_then(|found| check(found == wanted, &what, &outcome))
        };
        is("disk", if self.is_virtio() { "vda" } else { "sda" })?;
        is(
            "card",
            match self.card {
                "virtio" => "virtio_net",
                "rtl8139" => "8139too",
                _ => "ne2k-pci",
            },
        )?;
        is("bridge", if self.board == "pvh" { "" } else { "0x1237" })?;
        is("detected", if self.interrupts == "pv" { "1" } else { "0" })?;
        let written = std::fs::read(&image)?.split_off(end as usize);
        let holds = written.iter().all(|byte| *byte == b'm');
        Ok(check(holds, &format!("{:?}: it is in the image", self.words()), &outcome)?)
    }
}

/// What each guest does.
const SCRIPT: &str = "#!/bin/sh
    for word in $(cat /proc/cmdline); do
        case $word in mixture.seek=*) seek=${word#*=} ;; esac
    done
    disk=$(basename $(ls -d /sys/block/sda /sys/block/vda 2>/dev/null))
    head -c 32768 /dev/zero | tr '\\0' m >/tmp/data
    dd if=/tmp/data of=/dev/$disk bs=4k seek=$seek conv=fsync,notrunc 2>/dev/null || exit 2
    echo 3 >/proc/sys/vm/drop_caches
    dd if=/dev/$disk bs=4k skip=$seek count=8 2>/dev/null | cmp - /tmp/data || exit 3
    ip addr add 10.0.2.15/24 dev eth0; ip link set eth0 up
    ping -c 1 -W 20 -s 1400 10.0.2.2 >/dev/null || exit 4
    echo disk=$disk
    echo card=$(basename $(readlink /sys/class/net/eth0/device/driver))
    echo bridge=$(cat /sys/bus/pci/devices/0000:00:00.0/device 2>/dev/null | grep 1237)
    echo detected=$(dmesg | grep -c 'Hypervisor detected')
";

fn mixtures() -> Verdict {
    let directory = tempfile::tempdir()?;
    let script = directory.path().join("script");
    let mut disc = SCRIPT.as_bytes().to_vec();
    disc.resize(64 << 10, 0);
    std::fs::write(&script, disc)?;
    let mut works = Vec::new();
    for mixture in all() {
        if mixture.refused(&kit::root(), &script)?.is_none() {
            works.push(mixture);
        }
    }
    // Without a motherboard there are neither its drives and cards nor its timers;
    // interrupts of the monitor's need both drives and cards of real machines.
    let can = |mixture: &Mixture| match (mixture.board, mixture.interrupts) {
        ("pvh", "pv") => mixture.is_virtio() && mixture.card == "virtio",
        ("pvh", _) => false,
        (_, "user") => !mixture.is_virtio() && mixture.card != "virtio",
        _ => true,
    };
    let wanted: Vec<Mixture> = all().into_iter().filter(can).collect();
    if works != wanted {
        let differ = all().into_iter().filter(|m| works.contains(m) != wanted.contains(m));
        let words: Vec<_> = differ.map(|mixture| mixture.words()).collect();
        return Err(format!("refused and should not be, or the other way: {words:?}").into());
    }
    let every = std::env::var_os(EVERY).is_some_and(|value| value == "all");
    let booted = if every { works } else { some(&works) };
    for mixture in &booted {
        mixture.boot(&script)?;
    }
    Ok(Completion::Completed)
}
