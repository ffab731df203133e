//! The names of registers, as their data sheets have them.
//!
//! PIIX: Intel 82371AB (290562). ATA: T13 D1532, 82371AB 4.2 for the bus master.
//! RTL8139: Realtek RTL8139C(L)+. NE2000: National DP8390D. 16550: PC16550D. virtio:
//! OASIS virtio 1.2, 4.1 and 4.2.

use arch::layout;
use vmm::config::{Config, NetModel, Transport};
use vmm::record::{Access, Kind};

/// Where the registers of a machine are.
pub struct Map {
    ranges: Vec<Range>,
}

struct Range {
    ports: bool,
    base: u64,
    len: u64,
    device: String,
    chip: Chip,
}

#[derive(Clone, Copy)]
enum Chip {
    Named(&'static [(u64, &'static str)]),
    Rtl8139,
    Ne2000,
    VirtioMmio,
    VirtioPci,
    LocalApic,
}

/// Who exits without touching a register.
pub const PROCESSOR: &str = "processor";

/// A device's part of each PCI window; a virtio function's BAR.
const PARTS: u64 = 32;
const MEMORY_PART: u64 = layout::PCI_WINDOW_SIZE / PARTS;
const PORT_PART: u64 = layout::PCI_PORTS_SIZE / PARTS;
/// The PIIX's device number.
const PIIX: u64 = 1;

const FIXED: &[(u64, u64, &str, Chip)] = &[
    (0x20, 2, "PIC", Chip::Named(&[(0, "command"), (1, "mask")])),
    (0xa0, 2, "PIC", Chip::Named(&[(0, "command, slave"), (1, "mask, slave")])),
    (0x4d0, 2, "PIC", Chip::Named(&[(0, "ELCR1"), (1, "ELCR2")])),
    (
        0x40,
        4,
        "PIT",
        Chip::Named(&[(0, "counter 0"), (1, "counter 1"), (2, "counter 2"), (3, "control")]),
    ),
    (0x60, 1, "i8042", Chip::Named(&[(0, "data")])),
    (0x61, 1, "PIT", Chip::Named(&[(0, "port B")])),
    (0x64, 1, "i8042", Chip::Named(&[(0, "status or command")])),
    (0x70, 2, "RTC", Chip::Named(&[(0, "index"), (1, "data")])),
    (0x80, 1, "POST code", Chip::Named(&[(0, "delay")])),
    (0x92, 1, "port 92", Chip::Named(&[(0, "A20")])),
    (0x170, 8, "IDE", Chip::Named(ATA)),
    (0x1f0, 8, "IDE", Chip::Named(ATA)),
    (0x376, 1, "IDE", Chip::Named(&[(0, "alternate status or control")])),
    (0x3f6, 1, "IDE", Chip::Named(&[(0, "alternate status or control")])),
    (0x3f8, 8, "COM1", Chip::Named(UART)),
    (0x505, 1, "pvpanic", Chip::Named(&[(0, "events")])),
    (
        0x600,
        0x40,
        "PM",
        Chip::Named(&[(0, "PM1_STS"), (2, "PM1_EN"), (4, "PM1_CNT"), (8, "PM_TMR")]),
    ),
    (
        0xcf8,
        8,
        "PCI",
        Chip::Named(&[
            (0, "CONFIG_ADDRESS"),
            (4, "CONFIG_DATA"),
            (5, "CONFIG_DATA"),
            (6, "CONFIG_DATA"),
            (7, "CONFIG_DATA"),
        ]),
    ),
];

const ATA: &[(u64, &str)] = &[
    (0, "data"),
    (1, "error or features"),
    (2, "sector count"),
    (3, "LBA low"),
    (4, "LBA mid"),
    (5, "LBA high"),
    (6, "device"),
    (7, "status or command"),
];
const BUS_MASTER: &[(u64, &str)] =
    &[(0, "BMICP"), (2, "BMISP"), (4, "BMIDTPP"), (8, "BMICS"), (10, "BMISS"), (12, "BMIDTPS")];
const UART: &[(u64, &str)] = &[
    (0, "RBR or THR"),
    (1, "IER"),
    (2, "IIR or FCR"),
    (3, "LCR"),
    (4, "MCR"),
    (5, "LSR"),
    (6, "MSR"),
    (7, "SCR"),
];
const RTL8139: &[(u64, &str)] = &[
    (0x00, "IDR"),
    (0x08, "MAR"),
    (0x10, "TSD0"),
    (0x14, "TSD1"),
    (0x18, "TSD2"),
    (0x1c, "TSD3"),
    (0x20, "TSAD0"),
    (0x24, "TSAD1"),
    (0x28, "TSAD2"),
    (0x2c, "TSAD3"),
    (0x30, "RBSTART"),
    (0x37, "CR"),
    (0x38, "CAPR"),
    (0x3a, "CBR"),
    (0x3c, "IMR"),
    (0x3e, "ISR"),
    (0x40, "TCR"),
    (0x44, "RCR"),
    (0x48, "TCTR"),
    (0x4c, "MPC"),
    (0x50, "9346CR"),
    (0x51, "CONFIG0"),
    (0x52, "CONFIG1"),
    (0x58, "MSR"),
    (0x59, "CONFIG3"),
    (0x5a, "CONFIG4"),
    (0x5c, "MULINT"),
    (0x62, "BMCR"),
    (0x64, "BMSR"),
    (0x66, "ANAR"),
    (0x68, "ANLPAR"),
    (0x6a, "ANER"),
    (0x70, "NWAYTR"),
    (0x74, "CSCR"),
    (0x78, "PARA78"),
    (0x7c, "PARA7C"),
    (0xd8, "CONFIG5"),
];
const NE2000: &[(u64, &str)] = &[
    (0x00, "CR"),
    (0x01, "PSTART"),
    (0x02, "PSTOP"),
    (0x03, "BNRY"),
    (0x04, "TPSR or TSR"),
    (0x05, "TBCR0"),
    (0x06, "TBCR1"),
    (0x07, "ISR or CURR"),
    (0x08, "RSAR0"),
    (0x09, "RSAR1"),
    (0x0a, "RBCR0"),
    (0x0b, "RBCR1"),
    (0x0c, "RCR"),
    (0x0d, "TCR"),
    (0x0e, "DCR"),
    (0x0f, "IMR"),
    (0x10, "data port"),
    (0x1f, "reset"),
];
const VIRTIO_MMIO: &[(u64, &str)] = &[
    (0x000, "MagicValue"),
    (0x004, "Version"),
    (0x008, "DeviceID"),
    (0x00c, "VendorID"),
    (0x010, "DeviceFeatures"),
    (0x014, "DeviceFeaturesSel"),
    (0x020, "DriverFeatures"),
    (0x024, "DriverFeaturesSel"),
    (0x030, "QueueSel"),
    (0x034, "QueueNumMax"),
    (0x038, "QueueNum"),
    (0x044, "QueueReady"),
    (0x050, "QueueNotify"),
    (0x060, "InterruptStatus"),
    (0x064, "InterruptACK"),
    (0x070, "Status"),
    (0x080, "QueueDescLow"),
    (0x084, "QueueDescHigh"),
    (0x090, "QueueDriverLow"),
    (0x094, "QueueDriverHigh"),
    (0x0a0, "QueueDeviceLow"),
    (0x0a4, "QueueDeviceHigh"),
    (0x0fc, "ConfigGeneration"),
];
const VIRTIO_PCI: &[(u64, &str)] = &[
    (0x00, "device_feature_select"),
    (0x04, "device_feature"),
    (0x08, "driver_feature_select"),
    (0x0c, "driver_feature"),
    (0x10, "config_msix_vector"),
    (0x12, "num_queues"),
    (0x14, "device_status"),
    (0x15, "config_generation"),
    (0x16, "queue_select"),
    (0x18, "queue_size"),
    (0x1a, "queue_msix_vector"),
    (0x1c, "queue_enable"),
    (0x1e, "queue_notify_off"),
    (0x20, "queue_desc"),
    (0x28, "queue_driver"),
    (0x30, "queue_device"),
];
const LOCAL_APIC: &[(u64, &str)] = &[
    (0x20, "ID"),
    (0x30, "version"),
    (0x80, "TPR"),
    (0xb0, "EOI"),
    (0xd0, "LDR"),
    (0xe0, "DFR"),
    (0xf0, "SVR"),
    (0x280, "ESR"),
    (0x300, "ICR low"),
    (0x310, "ICR high"),
    (0x320, "LVT timer"),
    (0x340, "LVT performance"),
    (0x350, "LVT LINT0"),
    (0x360, "LVT LINT1"),
    (0x370, "LVT error"),
    (0x380, "timer initial count"),
    (0x390, "timer current count"),
    (0x3e0, "timer divide"),
];

impl Map {
    /// The registers of the machine that `config` describes.
    pub fn new(config: &Config) -> Self {
        let choices = config.choices();
        let mut map = Self { ranges: Vec::new() };
        for (base, len, device, chip) in FIXED {
            map.add(true, *base, *len, device, *chip);
        }
        map.add(false, layout::LOCAL_APIC.into(), 0x1000, "local APIC", Chip::LocalApic);
        let ioapic = Chip::Named(&[(0, "IOREGSEL"), (0x10, "IOWIN")]);
        map.add(false, layout::IOAPIC.into(), 0x1000, "IOAPIC", ioapic);
        let mut slot = if choices.has_board() { PIIX } else { 0 };
        if choices.has_board() {
            map.add(true, layout::PCI_PORTS.into(), 16, "IDE", Chip::Named(BUS_MASTER));
        }
        if !choices.virtio_nets() {
            for _ in &config.nets {
                slot += 1;
                let (device, chip) = match choices.net_model {
                    NetModel::Ne2000 => ("NE2000", Chip::Ne2000),
                    _ => ("RTL8139", Chip::Rtl8139),
                };
                let place = slot - 1;
                let ports = u64::from(layout::PCI_PORTS) + place * PORT_PART;
                map.add(true, ports, PORT_PART, device, chip);
                map.add(false, layout::PCI_WINDOW + place * MEMORY_PART, MEMORY_PART, device, chip);
            }
        }
        // The order in which the machine puts them on their bus.
        let mut virtio: Vec<String> = Vec::new();
        if choices.virtio_disks() {
            virtio.extend(config.all_disks().map(|_| "virtio-blk".to_owned()));
        }
        if choices.virtio_nets() {
            virtio.extend(config.nets.iter().map(|_| "virtio-net".to_owned()));
        }
        if config.has_rng() {
            virtio.push("virtio-rng".to_owned());
        }
        for (number, device) in virtio.iter().enumerate() {
            let number = number as u64;
            if config.transport() == Transport::Mmio {
                let base = layout::VIRTIO_MMIO + number * layout::VIRTIO_MMIO_SIZE;
                map.add(false, base, layout::VIRTIO_MMIO_SIZE, device, Chip::VirtioMmio);
            } else {
                let base = layout::PCI_WINDOW + (slot + number) * MEMORY_PART;
                map.add(false, base, MEMORY_PART, device, Chip::VirtioPci);
            }
        }
        map
    }

    fn add(&mut self, ports: bool, base: u64, len: u64, device: &str, chip: Chip) {
        self.ranges.push(Range { ports, base, len, device: device.to_owned(), chip });
    }

    fn range(&self, kind: Kind, address: u64) -> Option<&Range> {
        let ports = is_port(kind);
        self.ranges.iter().find(|range| {
            range.ports == ports && address.checked_sub(range.base).is_some_and(|at| at < range.len)
        })
    }

    /// Which device has a register, and what it calls it.
    pub fn name(&self, kind: Kind, address: u64) -> (String, String) {
        match kind {
            Kind::Halt => return (PROCESSOR.to_owned(), "HLT".to_owned()),
            Kind::Window => return (PROCESSOR.to_owned(), "interrupt window".to_owned()),
            Kind::Called => return (PROCESSOR.to_owned(), "called for an interrupt".to_owned()),
            _ => {}
        }
        match self.range(kind, address) {
            Some(range) => (range.device.clone(), range.chip.register(address - range.base)),
            None => ("nobody".to_owned(), "no device".to_owned()),
        }
    }

    /// What an access did, in words: `write 0x1f7  IDE status or command = 0xc8`.
    pub fn tell(&self, access: &Access) -> String {
        let (device, register) = self.name(access.kind, access.address);
        let verb = match access.kind {
            Kind::PortRead => "IN ",
            Kind::PortWrite => "OUT",
            Kind::MemoryRead => "load ",
            Kind::MemoryWrite => "store",
            Kind::Halt | Kind::Window | Kind::Called => return register,
        };
        let Access { address, value, items, size, .. } = access;
        let arrow = if is_read(access.kind) { "→" } else { "←" };
        let amount = match items {
            1 => format!("{value:#x}{}", meaning(&device, access)),
            _ => format!("{items} × {size} bytes"),
        };
        format!("{verb} {address:#x} {device} {register} {arrow} {amount}")
    }
}

impl Chip {
    fn register(self, offset: u64) -> String {
        let (table, at) = match self {
            Self::Named(table) => (table, offset),
            Self::Rtl8139 => (RTL8139, offset & 0xff),
            Self::Ne2000 => {
                (NE2000, if (0x10..0x18).contains(&offset) { 0x10 } else { offset & 0x1f })
            }
            Self::VirtioMmio if offset >= 0x100 => {
                return format!("configuration +{:#x}", offset - 0x100);
            }
            Self::VirtioMmio => (VIRTIO_MMIO, offset),
            Self::LocalApic => (LOCAL_APIC, offset),
            Self::VirtioPci => match offset >> 12 {
                0 => (VIRTIO_PCI, offset & !if offset >= 0x20 { 7 } else { 0 }),
                1 => return "ISR".to_owned(),
                2 => return format!("configuration +{:#x}", offset & 0xfff),
                3 => return "doorbell".to_owned(),
                4 => return "MSI-X table".to_owned(),
                _ => return format!("+{offset:#x}"),
            },
        };
        let found = table.iter().rev().find(|(start, _)| *start <= at);
        match found {
            Some((start, name)) if *start == at => (*name).to_owned(),
            Some((start, name)) if at - start < 8 => format!("{name} +{}", at - start),
            _ => format!("+{at:#x}"),
        }
    }
}

/// Whether it concerns a port.
pub fn is_port(kind: Kind) -> bool {
    matches!(kind, Kind::PortRead | Kind::PortWrite)
}

fn is_read(kind: Kind) -> bool {
    matches!(kind, Kind::PortRead | Kind::MemoryRead)
}

/// What a value means where it is a word of its own.
fn meaning(device: &str, access: &Access) -> &'static str {
    const COMMANDS: &[(u64, &str)] = &[
        (0x20, " READ SECTORS"),
        (0x24, " READ SECTORS EXT"),
        (0x25, " READ DMA EXT"),
        (0x30, " WRITE SECTORS"),
        (0x34, " WRITE SECTORS EXT"),
        (0x35, " WRITE DMA EXT"),
        (0xc4, " READ MULTIPLE"),
        (0xc5, " WRITE MULTIPLE"),
        (0xc8, " READ DMA"),
        (0xca, " WRITE DMA"),
        (0xe7, " FLUSH CACHE"),
        (0xea, " FLUSH CACHE EXT"),
        (0xec, " IDENTIFY"),
    ];
    const STATUS: &[(u64, &str)] =
        &[(0x50, " ready"), (0x58, " ready, data"), (0xd0, " busy"), (0x80, " busy")];
    let command = [0x1f7, 0x177].contains(&access.address) && access.kind == Kind::PortWrite;
    let status =
        [0x1f7, 0x177, 0x3f6, 0x376].contains(&access.address) && access.kind == Kind::PortRead;
    let words = match device {
        "IDE" if command => COMMANDS,
        "IDE" if status => STATUS,
        _ => return "",
    };
    words.iter().find(|(value, _)| *value == access.value).map_or("", |(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Subject;

    fn map(subject: &str) -> Map {
        let mut config = Config::new("k");
        config.rootfs = Some("r".parse().unwrap());
        config.disks = vec!["d".parse().unwrap()];
        config.nets = vec!["user,backend=internal".parse().unwrap()];
        subject.parse::<Subject>().unwrap().configure(&mut config);
        Map::new(&config)
    }

    fn access(kind: Kind, address: u64, value: u64) -> Access {
        Access { at: 0, kind, address, size: 1, items: 1, value }
    }

    #[test]
    fn registers_have_their_names_in_every_mode() {
        let name = |subject: &str, kind, address| {
            let (device, register) = map(subject).name(kind, address);
            format!("{device} {register}")
        };
        use Kind::{MemoryRead as R, MemoryWrite as W, PortRead as In, PortWrite as Out};
        for (subject, kind, address, words) in [
            ("hvm", In, 0x1f7, "IDE status or command"),
            ("hvm", Out, 0xc000, "IDE BMICP"),
            ("hvm", In, 0x608, "PM PM_TMR"),
            ("hvm", W, 0xd010_8010, "RTL8139 TSD0"),
            ("hvm-pio", Out, 0xc110, "NE2000 data port"),
            ("hvm-user", W, 0xfee0_00b0, "local APIC EOI"),
            ("hvm-pv", W, 0xd010_8014, "virtio-blk device_status"),
            ("hvm-pv", R, 0xd011_a003, "virtio-net configuration +0x3"),
            ("pv", R, 0xd000_0060, "virtio-blk InterruptStatus"),
            ("pv", W, 0xd000_2050, "virtio-net QueueNotify"),
            ("pv", W, 0xd000_3070, "virtio-rng Status"),
            ("pv", In, 0x1234, "nobody no device"),
            ("pv", Kind::Halt, 0, "processor HLT"),
        ] {
            if words.contains("configuration") {
                // Disks are two here, so the card is the third function.
                assert_eq!(name(subject, kind, 0xd010_8000 + 2 * 0x8000 + 0x2003), words);
                continue;
            }
            assert_eq!(name(subject, kind, address), words, "{subject}");
        }
    }

    #[test]
    fn accesses_are_told_with_what_their_values_mean() {
        let map = map("hvm");
        let told = map.tell(&access(Kind::PortWrite, 0x1f7, 0xc8));
        assert_eq!(told, "OUT 0x1f7 IDE status or command ← 0xc8 READ DMA");
        let told = map.tell(&access(Kind::PortRead, 0x3f6, 0x50));
        assert_eq!(told, "IN  0x3f6 IDE alternate status or control → 0x50 ready");
        let many = Access { items: 128, size: 2, ..access(Kind::PortRead, 0x1f0, 0) };
        assert_eq!(map.tell(&many), "IN  0x1f0 IDE data → 128 × 2 bytes");
    }
}
