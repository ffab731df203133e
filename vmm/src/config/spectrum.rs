//! Where on the spectrum of virtualization a machine is: a mode, and the
//! switches that it presets.

use super::{Config, ConfigError, Transport, Vhost};
use devices::virtio::block::Engine;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

/// An enumeration whose values are words, in configuration files and options.
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$doc])* #[serde(rename = $word)] $variant,)*
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(format!("must be one of {}", [$($word),*].join(", "))),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $word,)*
                })
            }
        }
    };
}

words! {
    /// A row of Xen's table.
    #[derive(Default)]
    Mode {
        /// A PC without anything made for virtual machines.
        Hvm = "hvm",
        /// The same with virtio disks and cards.
        HvmPv = "hvm-pv",
        /// With KVM's clock, interrupts and hints as well.
        Pvhvm = "pvhvm",
        /// And without a PC around them.
        #[default]
        Pv = "pv",
    }
}

words! {
    /// What disks are attached to.
    DiskBus {
        /// virtio-blk.
        Virtio = "virtio",
        /// IDE with bus-master DMA.
        Ide = "ide",
        /// IDE whose data the processor moves.
        IdePio = "ide-pio",
    }
}

words! {
    /// What network cards are.
    NetModel {
        /// virtio-net.
        Virtio = "virtio",
        /// RTL8139.
        Rtl8139 = "rtl8139",
        /// NE2000 on PCI (RTL8029).
        Ne2000 = "ne2000",
    }
}

words! {
    /// The motherboard, and how the guest is entered.
    BoardKind {
        /// None: the kernel is entered in protected or long mode.
        Pvh = "pvh",
        /// A PC (i440FX, PIIX); the kernel is entered in the same way.
        Direct = "direct",
        /// A PC; a bzImage is entered in real mode.
        Real16 = "real16",
        /// A PC with a BIOS that boots from a disk.
        Bios = "bios",
    }
}

words! {
    /// Who provides interrupts and timers.
    Intr {
        /// All of it in the monitor.
        User = "user",
        /// PIC, IOAPIC, local APIC and PIT in KVM, and no features of KVM's own.
        Kernel = "kernel",
        /// Local APICs in KVM, the rest in the monitor; KVM's features as the mode
        /// has them.
        Split = "split",
        /// As `kernel`, with KVM's clock and its other features.
        Pv = "pv",
    }
}

/// What a machine is made of, once its mode and its switches are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choices {
    /// What disks are attached to.
    pub disk_bus: DiskBus,
    /// What network cards are.
    pub net_model: NetModel,
    /// The motherboard.
    pub board: BoardKind,
    /// Interrupts and timers.
    pub intr: Intr,
    /// Whether the guest may use KVM's clock and its other features.
    pub paravirtual: bool,
}

impl Choices {
    const fn of(mode: Mode) -> Self {
        let (disk_bus, net_model) = match mode {
            Mode::Hvm => (DiskBus::Ide, NetModel::Rtl8139),
            _ => (DiskBus::Virtio, NetModel::Virtio),
        };
        let board = match mode {
            Mode::Pv => BoardKind::Pvh,
            _ => BoardKind::Direct,
        };
        let intr = match mode {
            Mode::Hvm | Mode::HvmPv => Intr::Kernel,
            Mode::Pvhvm | Mode::Pv => Intr::Pv,
        };
        Self { disk_bus, net_model, board, intr, paravirtual: matches!(intr, Intr::Pv) }
    }

    /// Whether there is a motherboard.
    pub fn has_board(&self) -> bool {
        self.board != BoardKind::Pvh
    }

    /// Whether disks are virtio's.
    pub fn virtio_disks(&self) -> bool {
        self.disk_bus == DiskBus::Virtio
    }

    /// Whether network cards are virtio's.
    pub fn virtio_nets(&self) -> bool {
        self.net_model == NetModel::Virtio
    }
}

/// IDE drives that there is room for.
const MAX_DRIVES: usize = devices::legacy::ide::CHANNELS * devices::legacy::ide::DRIVES;

impl Config {
    /// The mode's presets, with the switches that were set in their places. A
    /// device that needs a motherboard brings one.
    pub fn choices(&self) -> Choices {
        let preset = Choices::of(self.mode);
        let disk_bus = self.disk_bus.unwrap_or(preset.disk_bus);
        let net_model = self.net_model.unwrap_or(preset.net_model);
        let intr = self.intr.unwrap_or(preset.intr);
        // It says where chips are, and leaves the mode's features as they are.
        let paravirtual = match intr {
            Intr::User | Intr::Kernel => false,
            Intr::Split => preset.paravirtual,
            Intr::Pv => true,
        };
        let needs_board = (disk_bus != DiskBus::Virtio && self.all_disks().count() > 0)
            || (net_model != NetModel::Virtio && !self.nets.is_empty())
            || self.cdrom.is_some()
            || !paravirtual;
        let board = self.board.unwrap_or(match preset.board {
            BoardKind::Pvh if needs_board => BoardKind::Direct,
            board => board,
        });
        Choices { disk_bus, net_model, board, intr, paravirtual }
    }

    /// What carries virtio devices: a motherboard has a PCI bus for them.
    pub fn transport(&self) -> Transport {
        let default = match self.choices().has_board() {
            true => Transport::Pci,
            false => Transport::Mmio,
        };
        self.transport.unwrap_or(default)
    }

    /// Whether there is an entropy device: with every other virtio device, and
    /// where it was asked for.
    pub fn has_rng(&self) -> bool {
        let choices = self.choices();
        choices.virtio_disks()
            || choices.virtio_nets()
            || self.rng.is_some()
            || self.vsock.is_some()
            || !self.shares.is_empty()
            || self.balloon.is_some()
            || self.has_console()
    }

    fn has_kernel(&self) -> bool {
        !self.kernel.as_os_str().is_empty() || self.initrd.is_some() || !self.cmdline.is_empty()
    }

    pub(super) fn validate_choices(&self) -> Result<(), ConfigError> {
        let choices = self.choices();
        let refuse = |what, value: &dyn fmt::Display, why| {
            Err(ConfigError::Choice { what, value: value.to_string(), why })
        };
        match choices.board {
            BoardKind::Bios if self.has_kernel() => {
                let why = "it boots from a disk, with that disk's kernel and command line: leave \
                           out --kernel, --initrd and --cmdline, or use real16 or direct";
                return refuse("board", &choices.board, why);
            }
            BoardKind::Bios => {}
            _ if self.firmware.is_some() => {
                let why = "only --board bios starts any: use it, or leave --firmware out";
                return refuse("firmware", &"given", why);
            }
            BoardKind::Pvh | BoardKind::Direct | BoardKind::Real16 => {}
        }
        match choices.intr {
            Intr::User if self.cpus > 1 => {
                let why = "the monitor's local APIC starts no other processors: use one vCPU";
                return refuse("intr", &choices.intr, why);
            }
            Intr::User if self.has_rng() => {
                let why = "virtio cards interrupt by MSI-X, which needs KVM's local APIC: \
                           use kernel, or --disk-bus ide with --net-model rtl8139";
                return refuse("intr", &choices.intr, why);
            }
            Intr::User | Intr::Kernel | Intr::Split | Intr::Pv => {}
        }
        if !choices.has_board() {
            let why = "board pvh has no motherboard for it: leave --board out, or use direct";
            if !choices.virtio_disks() && self.all_disks().count() > 0 {
                return refuse("disk-bus", &choices.disk_bus, why);
            }
            if !choices.virtio_nets() && !self.nets.is_empty() {
                return refuse("net-model", &choices.net_model, why);
            }
            if self.cdrom.is_some() {
                let why = "board pvh has no IDE controller: leave --board out, or use direct";
                return refuse("cdrom", &"given", why);
            }
            if !choices.paravirtual {
                let why = "a kernel without KVM's clock needs the timers of a motherboard: \
                           leave --board out, or use direct";
                return refuse("intr", &choices.intr, why);
            }
        } else if self.transport == Some(Transport::Mmio) {
            let why = "on a motherboard virtio devices are PCI cards, as its interrupt lines \
                       are taken: use pci";
            return refuse("transport", &"mmio", why);
        }
        let disks = if choices.virtio_disks() { 0 } else { self.all_disks().count() };
        let drives = disks + usize::from(self.cdrom.is_some());
        if drives > MAX_DRIVES {
            return Err(ConfigError::Drives(drives));
        }
        self.validate_real_devices(&choices)?;
        if !choices.paravirtual && self.pv_features != PvFeatures::default() {
            let why = "only --intr pv has any, and split in the modes pvhvm and pv: use it, or \
                       leave --pv-features out";
            return refuse("pv-features", &self.pv_features, why);
        }
        Ok(())
    }

    /// Drives and cards of real machines have no queues, limits and offloads.
    fn validate_real_devices(&self, choices: &Choices) -> Result<(), ConfigError> {
        for disk in self.all_disks().filter(|_| !choices.virtio_disks()) {
            let plain = disk.rate.is_none() && disk.ops.is_none() && disk.queues.is_none();
            if !plain || disk.engine != Engine::default() {
                let why = "rate=, ops=, queues= and engine= are for --disk-bus virtio";
                return Err(ConfigError::Disk { path: disk.path.display().to_string(), why });
            }
        }
        for net in self.nets.iter().filter(|_| !choices.virtio_nets()) {
            let plain = net.rate.is_none() && net.ops.is_none() && net.queues.is_none();
            if !plain || net.mtu.is_some() || net.vhost != Vhost::Off {
                let why = "rate=, ops=, queues=, mtu= and vhost= are for --net-model virtio";
                let (what, value) = ("net", net.backend.name().to_owned());
                return Err(ConfigError::Choice { what, value, why });
            }
        }
        Ok(())
    }

    /// The machine's row of Xen's table, as far as it is the machine's; the last
    /// column is the host's.
    pub fn row(&self) -> String {
        let choices = self.choices();
        let (disks, nets) = (choices.virtio_disks(), choices.virtio_nets());
        let devices = match (disks, nets) {
            (true, true) => "P",
            (false, false) => "VS",
            (true, false) => "P/VS",
            (false, true) => "VS/P",
        };
        let intr = if choices.paravirtual { "P" } else { "VS" };
        let board = match choices.board {
            BoardKind::Pvh => "P",
            // The board is there, and the kernel does not start on it by itself.
            BoardKind::Direct => "VS/P",
            BoardKind::Real16 | BoardKind::Bios => "VS",
        };
        format!(
            "disk and network {devices} ({}, {}) | interrupts and timers {intr} ({}) | \
             motherboard and boot {board} ({})",
            choices.disk_bus, choices.net_model, choices.intr, choices.board
        )
    }
}

/// KVM's paravirtual features (Linux `Documentation/virt/kvm/x86/cpuid.rst`), by
/// the names that they have here, and their bits of leaf 0x40000001.
const FEATURES: [(&str, u32); 11] = [
    ("clock", 1 << 0 | 1 << 3),
    ("nop-io-delay", 1 << 1),
    ("async-pf", 1 << 4 | 1 << 10 | 1 << 14),
    ("steal-time", 1 << 5),
    ("eoi", 1 << 6),
    ("unhalt", 1 << 7),
    ("tlb-flush", 1 << 9),
    ("ipi", 1 << 11),
    ("poll-control", 1 << 12),
    ("sched-yield", 1 << 13),
    ("stable-clock", 1 << 24),
];
const ALL: &str = "all";

/// Which of KVM's paravirtual features a guest may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PvFeatures(u32);

impl Default for PvFeatures {
    fn default() -> Self {
        Self(u32::MAX)
    }
}

impl PvFeatures {
    /// The bits of leaf 0x40000001, EAX, that may be set.
    pub fn mask(self) -> u32 {
        self.0
    }
}

/// `NAME=on|off[,…]`, where NAME may be all.
impl FromStr for PvFeatures {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let parse =
            |why: String| ConfigError::Parse { what: "pv-features", text: text.to_owned(), why };
        let mut mask = u32::MAX;
        for word in text.split(',') {
            let (name, on) = match word.split_once('=') {
                Some((name, "on")) => (name, true),
                Some((name, "off")) => (name, false),
                _ => return Err(parse(format!("{word:?}: must be NAME=on or NAME=off"))),
            };
            let known = FEATURES.iter().find(|(known, _)| *known == name);
            let bits = match known {
                Some((_, bits)) => *bits,
                None if name == ALL => u32::MAX,
                None => {
                    let names: Vec<&str> = FEATURES.iter().map(|(name, _)| *name).collect();
                    return Err(parse(format!(
                        "{name}: must be all or one of {}",
                        names.join(", ")
                    )));
                }
            };
            mask = if on { mask | bits } else { mask & !bits };
        }
        Ok(Self(mask))
    }
}

impl fmt::Display for PvFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Bits without a name tell whether it began with all of them.
        let named = FEATURES.iter().fold(0, |all, (_, bits)| all | bits);
        let all = self.0 & !named != 0;
        write!(f, "{ALL}={}", if all { "on" } else { "off" })?;
        for (name, bits) in FEATURES {
            let on = self.0 & bits == bits;
            if on != all {
                write!(f, ",{name}={}", if on { "on" } else { "off" })?;
            }
        }
        Ok(())
    }
}

impl Serialize for PvFeatures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PvFeatures {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut Config);

    fn config(change: impl FnOnce(&mut Config)) -> Config {
        let mut config = Config::new("k");
        config.rootfs = Some("r".parse().unwrap());
        change(&mut config);
        config
    }

    #[test]
    fn modes_are_presets_and_switches_go_before_them() {
        let hvm = config(|c| c.mode = Mode::Hvm);
        assert_eq!(hvm.choices().disk_bus, DiskBus::Ide);
        assert_eq!((hvm.transport(), hvm.has_rng()), (Transport::Pci, false));
        let pv = config(|_| {});
        assert_eq!(pv.choices(), Choices::of(Mode::Pv));
        assert_eq!((pv.transport(), pv.has_rng()), (Transport::Mmio, true));
        let mixed = config(|c| {
            c.mode = Mode::Hvm;
            c.disk_bus = Some(DiskBus::Virtio);
            c.intr = Some(Intr::Pv);
        });
        assert_eq!(mixed.choices().disk_bus, DiskBus::Virtio);
        assert!(mixed.row().contains("P/VS (virtio, rtl8139)"), "{}", mixed.row());
        for config in [hvm, pv, mixed] {
            config.validate().unwrap();
        }
    }

    #[test]
    fn what_needs_a_motherboard_brings_one() {
        let changes: [Change; 3] = [
            |c| c.disk_bus = Some(DiskBus::Ide),
            |c| c.cdrom = Some("cd.iso".into()),
            |c| c.intr = Some(Intr::Kernel),
        ];
        for change in changes {
            let config = config(change);
            assert_eq!(config.choices().board, BoardKind::Direct);
            config.validate().unwrap();
        }
        // No card is there that would need it.
        let none = config(|c| c.net_model = Some(NetModel::Rtl8139));
        assert_eq!(none.choices().board, BoardKind::Pvh);
    }

    #[test]
    fn where_chips_are_changes_no_features() {
        let split = |mode| {
            let config = config(|c| (c.mode, c.intr) = (mode, Some(Intr::Split)));
            config.validate().unwrap();
            config.choices()
        };
        assert!(!split(Mode::HvmPv).paravirtual);
        let (pvhvm, pv) = (split(Mode::Pvhvm), split(Mode::Pv));
        assert!(pvhvm.paravirtual && pv.paravirtual);
        assert!(pvhvm.has_board() && !pv.has_board());
    }

    #[test]
    fn mixtures_that_cannot_work_are_refused_with_the_reason() {
        let cases: [(Change, &str); 11] = [
            (
                |c| {
                    c.mode = Mode::Hvm;
                    c.disks = vec!["d,rate=1M".parse().unwrap()];
                },
                "--disk-bus virtio",
            ),
            (
                |c| {
                    c.mode = Mode::Hvm;
                    c.nets = vec!["tap=t,queues=2".parse().unwrap()];
                },
                "--net-model virtio",
            ),
            (|c| c.board = Some(BoardKind::Bios), "leave out --kernel"),
            (|c| c.firmware = Some("bios.bin".into()), "leave --firmware out"),
            (|c| c.intr = Some(Intr::User), "MSI-X"),
            (
                |c| {
                    c.mode = Mode::Hvm;
                    c.intr = Some(Intr::User);
                    c.cpus = 2;
                },
                "one vCPU",
            ),
            (
                |c| {
                    c.board = Some(BoardKind::Pvh);
                    c.disk_bus = Some(DiskBus::Ide);
                },
                "no motherboard",
            ),
            (
                |c| {
                    c.mode = Mode::Hvm;
                    c.board = Some(BoardKind::Pvh);
                    c.disk_bus = Some(DiskBus::Virtio);
                },
                "timers of a motherboard",
            ),
            (
                |c| {
                    c.mode = Mode::HvmPv;
                    c.transport = Some(Transport::Mmio);
                },
                "PCI cards",
            ),
            (
                |c| {
                    c.mode = Mode::Hvm;
                    c.disks = vec!["d".parse().unwrap(); 4];
                },
                "5 IDE drives",
            ),
            (
                |c| {
                    c.mode = Mode::HvmPv;
                    c.pv_features = "eoi=off".parse().unwrap();
                },
                "only --intr pv",
            ),
        ];
        for (change, part) in cases {
            let config = config(change);
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn features_are_told_as_they_are_read() {
        for (text, bits) in [
            ("all=on", u32::MAX),
            ("all=on,clock=off", !9),
            ("all=off,eoi=on,ipi=on", 1 << 6 | 1 << 11),
            ("all=off", 0),
        ] {
            let features: PvFeatures = text.parse().unwrap();
            assert_eq!(features.mask(), bits, "{text}");
            assert_eq!(features.to_string(), text);
            let json = serde_json::to_string(&features).unwrap();
            assert_eq!(serde_json::from_str::<PvFeatures>(&json).unwrap(), features);
        }
        assert_eq!("clock=off".parse::<PvFeatures>().unwrap().mask(), !9);
        for (text, part) in [("clock", "clock"), ("sun=on", "steal-time"), ("", "NAME=on")] {
            let error = text.parse::<PvFeatures>().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
