//! ACPI tables (ACPI 6.5): a hardware-reduced machine, or a PC.
//!
//! ```text
//!  RSDP ─► XSDT ─► FADT ─► DSDT   COM1, virtio-mmio devices, pvpanic, PCI, \_S5
//!              │      └─► FACS    of a PC
//!              └─► MADT           local APICs, IOAPIC
//! ```
//!
//! Hardware-reduced means that there is no PIC, PIT, RTC or PM timer for an
//! operating system to look for; sleep and reset are two byte-wide ports. Stock
//! distribution kernels find their virtio devices here, as `LNRO0005`.
//!
//! A PC ([`Pc`]) has all of those, and the fixed hardware of power management;
//! its parts of the tables are in [`pc`].

mod pc;

mod events;
mod linked;

pub use events::Events;
pub use linked::{Linked, linked};

use crate::layout;
use acpi_tables::{
    Aml,
    aml::{
        AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name,
        PackageBuilder, Path, ResourceTemplate, Scope,
    },
    facs::FACS,
    fadt::{FADTBuilder, Flags},
    gas::{AccessSize, AddressSpace as GasSpace, GAS},
    madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic},
    rsdp::Rsdp,
    sdt::Sdt,
    xsdt::XSDT,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

const OEM: [u8; 6] = *b"MICROV";
const OEM_TABLE: [u8; 8] = *b"MICROVM ";
const OEM_REVISION: u32 = 1;

/// A virtio-mmio device, for the DSDT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioMmio {
    /// Its registers.
    pub base: u64,
    /// Their size in bytes.
    pub size: u64,
    /// Its edge-triggered interrupt.
    pub gsi: u32,
}

/// The machine as the tables describe it.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// vCPUs; APIC IDs count from 0.
    pub cpus: u32,
    /// virtio-mmio devices in the order of their numbers.
    pub virtio: Vec<VirtioMmio>,
    /// Whether COM1 exists.
    pub serial: bool,
    /// Byte port for sleep control (`SLEEP_CONTROL_REG`); status is the next one.
    pub sleep_port: u16,
    /// Byte port of the reset register; any write resets.
    pub reset_port: u16,
    /// Port of the pvpanic device, if any.
    pub pvpanic_port: Option<u16>,
    /// Whether there is a PCI bus.
    pub pci: bool,
    /// The motherboard, if there is one: sleep and reset are its own then.
    pub pc: Option<Pc>,
    /// What may happen while the machine runs.
    pub events: Option<Events>,
}

/// Where the interrupt pin of a PCI card leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciInterrupt {
    /// The card's device number on bus 0.
    pub device: u8,
    /// 1: INTA#.
    pub pin: u8,
    /// The interrupt, level-triggered.
    pub gsi: u32,
}

/// A PC's motherboard, for the tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pc {
    /// The PM1a event block, of four bytes.
    pub event_block: u16,
    /// The PM1a control block, of two bytes.
    pub control_block: u16,
    /// The PM timer, of four bytes.
    pub timer_block: u16,
    /// The system control interrupt.
    pub sci: u8,
    /// `SLP_TYP` of soft off.
    pub soft_off: u8,
    /// The port of the reset control register, and what resets.
    pub reset: (u16, u8),
    /// Interrupts of PCI cards.
    pub interrupts: Vec<PciInterrupt>,
    /// Where BARs are: from, and how many bytes.
    pub window: (u64, u64),
}

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// They don't fit in [`layout::ACPI_SIZE`].
    #[error("ACPI tables of {0} bytes don't fit")]
    TooLarge(usize),
    /// The guest has no memory there.
    #[error("ACPI tables: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// Writes all tables; returns the address of the RSDP.
pub fn write(mem: &GuestMemoryMmap<()>, machine: &Machine) -> Result<u64, AcpiError> {
    let blob = tables(machine);
    if blob.len() as u64 > layout::ACPI_SIZE {
        return Err(AcpiError::TooLarge(blob.len()));
    }
    mem.write_slice(&blob, GuestAddress(layout::ACPI))?;
    Ok(layout::ACPI)
}

/// All tables as they lie in memory from [`layout::ACPI`] on.
fn tables(machine: &Machine) -> Vec<u8> {
    // The RSDP leads; its place is kept until the XSDT's address is known.
    let mut blob = vec![0; Rsdp::len().next_multiple_of(16)];
    let places = place(machine, layout::ACPI, &mut blob);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, places.xsdt).to_aml_bytes(&mut rsdp);
    blob[..rsdp.len()].copy_from_slice(&rsdp);
    blob
}

/// Addresses of tables.
struct Places {
    fadt: u64,
    facs: Option<u64>,
    xsdt: u64,
}

/// Puts all tables but the RSDP behind what is in `blob`, which is at `base`.
fn place(machine: &Machine, base: u64, blob: &mut Vec<u8>) -> Places {
    let mut place = |table: &dyn Aml| {
        // The FACS wants a border of 64 bytes.
        blob.resize(blob.len().next_multiple_of(64), 0);
        let address = base + blob.len() as u64;
        table.to_aml_bytes(blob);
        address
    };
    let dsdt = place(&dsdt(machine));
    let facs = machine.pc.as_ref().map(|_| place(&FACS::new()));
    let (fadt, madt) = match &machine.pc {
        Some(board) => (
            place(&pc::fadt(board, dsdt, facs.unwrap_or(0))),
            place(&pc::madt(machine.cpus, board.sci)),
        ),
        None => (place(&fadt(machine, dsdt)), place(&madt(machine.cpus))),
    };
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(&xsdt);
    Places { fadt, facs, xsdt }
}

fn byte_port(port: u16) -> GAS {
    GAS::new(GasSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into())
}

/// The value that a write to the reset register carries.
const RESET_VALUE: u8 = 1;

fn fadt(machine: &Machine, dsdt: u64) -> impl Aml {
    // No VGA to probe, no CMOS RTC to read (5.2.9.3); bits 0 and 1 clear: no
    // legacy devices and no 8042 behind the buses that firmware describes.
    const VGA_NOT_PRESENT: u16 = 1 << 2;
    const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;
    let mut table = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup);
    table.iapc_boot_arch = (VGA_NOT_PRESENT | CMOS_RTC_NOT_PRESENT).into();
    table.reset_reg = byte_port(machine.reset_port);
    table.reset_value = RESET_VALUE;
    table.sleep_control_reg = byte_port(machine.sleep_port);
    table.sleep_status_reg = byte_port(machine.sleep_port + 1);
    table.finalize()
}

fn madt(cpus: u32) -> MADT {
    let mut madt = MADT::new(
        OEM,
        OEM_TABLE,
        OEM_REVISION,
        LocalInterruptController::Address(layout::LOCAL_APIC),
    );
    for id in 0..cpus as u8 {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC, 0));
    madt
}

fn dsdt(machine: &Machine) -> Sdt {
    let mut aml = Vec::new();
    if machine.serial {
        serial(&mut aml);
    }
    for (i, device) in machine.virtio.iter().enumerate() {
        virtio(i, device, &mut aml);
    }
    if machine.pci {
        root_bridge(machine.pc.as_ref(), &mut aml);
    }
    if let Some(events) = &machine.events {
        events.describe(machine.pci, &mut aml);
    }
    if let Some(port) = machine.pvpanic_port {
        let name = Name::new("_HID".into(), &"QEMU0001");
        let ports = IO::new(port, port, 1, 1);
        let resources = ResourceTemplate::new(vec![&ports]);
        let crs = Name::new("_CRS".into(), &resources);
        Device::new("PEVT".into(), vec![&name, &crs]).to_aml_bytes(&mut aml);
    }
    let scope = Scope::raw(Path::new("_SB_"), aml);
    let mut off = PackageBuilder::new();
    // SLP_TYPa; the other three fields have no meaning here.
    let soft_off = machine.pc.as_ref().map_or(5, |board| board.soft_off);
    for value in [soft_off, 0, 0, 0] {
        off.add_element(&value);
    }
    let mut sdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    sdt.append_slice(&scope);
    let mut s5 = Vec::new();
    Name::new("_S5_".into(), &off).to_aml_bytes(&mut s5);
    sdt.append_slice(&s5);
    sdt
}

fn serial(aml: &mut Vec<u8>) {
    let hid = EISAName::new("PNP0501");
    let hid = Name::new("_HID".into(), &hid);
    let uid = Name::new("_UID".into(), &0u8);
    let ports = IO::new(layout::COM1, layout::COM1, 1, 8);
    let irq = Interrupt::new(true, true, false, false, layout::COM1_GSI);
    let resources = ResourceTemplate::new(vec![&ports, &irq]);
    let crs = Name::new("_CRS".into(), &resources);
    Device::new("COM1".into(), vec![&hid, &uid, &crs]).to_aml_bytes(aml);
}

/// Bus 0, the ports that configure it and what it decodes.
fn root_bridge(board: Option<&Pc>, aml: &mut Vec<u8>) {
    const CONFIG: u16 = 0xcf8;
    let hid = EISAName::new("PNP0A03");
    let hid = Name::new("_HID".into(), &hid);
    let uid = Name::new("_UID".into(), &0u8);
    let bbn = Name::new("_BBN".into(), &0u8);
    let buses = AddressSpace::new_bus_number(0u16, 0u16);
    let ports = IO::new(CONFIG, CONFIG, 1, 8);
    let standard = (layout::PCI_WINDOW, layout::PCI_WINDOW_SIZE);
    let (first, size) = board.map_or(standard, |board| board.window);
    let last = first + size - 1;
    let not_cached = AddressSpaceCacheable::NotCacheable;
    let memory = AddressSpace::new_memory(not_cached, true, first as u32, last as u32, None);
    // The board's bus has all ports but its own.
    let low = AddressSpace::new_io(0u16, CONFIG - 1, None);
    let high = AddressSpace::new_io(CONFIG + 8, u16::MAX, None);
    let mut decoded: Vec<&dyn Aml> = vec![&buses, &ports, &memory];
    if board.is_some() {
        decoded.extend([&low as &dyn Aml, &high]);
    }
    let resources = ResourceTemplate::new(decoded);
    let crs = Name::new("_CRS".into(), &resources);
    let mut about: Vec<&dyn Aml> = vec![&hid, &uid, &bbn, &crs];
    let routes = board.map(|board| pc::routes(&board.interrupts));
    let routing = routes.as_ref().map(|routes| Name::new("_PRT".into(), routes));
    about.extend(routing.as_ref().map(|name| name as &dyn Aml));
    Device::new("PCI0".into(), about).to_aml_bytes(aml);
}

fn virtio(number: usize, device: &VirtioMmio, aml: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &"LNRO0005");
    let id = number as u8;
    let uid = Name::new("_UID".into(), &id);
    // The bus is coherent: without _CCA Linux would refuse to do DMA on some
    // architectures; on x86 it is a courtesy.
    let cca = Name::new("_CCA".into(), &1u8);
    let registers = Memory32Fixed::new(true, device.base as u32, device.size as u32);
    let irq = Interrupt::new(true, true, false, false, device.gsi);
    let resources = ResourceTemplate::new(vec![&registers, &irq]);
    let crs = Name::new("_CRS".into(), &resources);
    let name = format!("VR{number:02}");
    Device::new(name.as_str().into(), vec![&hid, &uid, &cca, &crs]).to_aml_bytes(aml);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(cpus: u32, devices: u32) -> Machine {
        Machine {
            cpus,
            virtio: (0..devices)
                .map(|i| VirtioMmio {
                    base: layout::VIRTIO_MMIO + u64::from(i) * 4096,
                    size: 4096,
                    gsi: 5 + i,
                })
                .collect(),
            serial: true,
            sleep_port: 0x600,
            reset_port: 0x602,
            pvpanic_port: Some(0x505),
            pci: devices == 0,
            pc: None,
            events: Some(Events { gsi: 9, port: 0x604, slots: (devices == 0).then_some(0x610) }),
        }
    }

    fn board() -> Pc {
        Pc {
            event_block: 0x600,
            control_block: 0x604,
            timer_block: 0x608,
            sci: 9,
            soft_off: 0,
            reset: (0xcf9, 6),
            interrupts: (2..32)
                .map(|device| PciInterrupt { device, pin: 1, gsi: 10 + u32::from(device) % 2 })
                .collect(),
            window: (layout::PCI_FIRMWARE_WINDOW, layout::PCI_FIRMWARE_WINDOW_SIZE),
        }
    }

    fn table_at(blob: &[u8], address: u64) -> &[u8] {
        let at = (address - layout::ACPI) as usize;
        let len = u32::from_le_bytes(blob[at + 4..at + 8].try_into().unwrap()) as usize;
        &blob[at..at + len]
    }

    #[test]
    fn every_table_is_reachable_and_sums_to_zero() {
        let board = |cpus| Machine { pc: Some(board()), ..machine(cpus, 0) };
        for machine in [machine(1, 0), machine(1, 1), machine(32, 16), board(1), board(32)] {
            let blob = tables(&machine);
            assert!(blob.len() as u64 <= layout::ACPI_SIZE);
            let sum = |b: &[u8]| b.iter().fold(0u8, |s, b| s.wrapping_add(*b));
            assert_eq!(&blob[..8], b"RSD PTR ");
            assert_eq!(sum(&blob[..20]), 0);
            assert_eq!(sum(&blob[..36]), 0);
            let xsdt = table_at(&blob, u64::from_le_bytes(blob[24..32].try_into().unwrap()));
            assert_eq!((&xsdt[..4], sum(xsdt)), (&b"XSDT"[..], 0));
            let mut names = Vec::new();
            for entry in xsdt[36..].chunks(8) {
                let table = table_at(&blob, u64::from_le_bytes(entry.try_into().unwrap()));
                assert_eq!(sum(table), 0);
                names.push(table[..4].to_vec());
                if &table[..4] == b"FACP" {
                    let dsdt =
                        table_at(&blob, u64::from_le_bytes(table[140..148].try_into().unwrap()));
                    assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
                }
            }
            assert_eq!(names, [b"FACP", b"APIC"]);
        }
    }
}
