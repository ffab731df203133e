//! The Generic Event Device (ACPI 6.5, 5.6.9): the power button, and PCI slots
//! whose functions come and go (6.3).
//!
//! ```text
//! Scope (\_SB.PCI0) {
//!     OperationRegion (SLTR, SystemIO, slots, 12)
//!     Field (SLTR, DWordAcc) { PCIU, 32, PCID, 32, B0EJ, 32 }
//!     Device (S01) {
//!         Name (_ADR, 0x00010000)
//!         Name (_SUN, 1)
//!         Method (_EJ0, 1) { B0EJ = 2 }
//!     }                                           … to S1F
//!     Method (PCNT, 0, Serialized) {
//!         Local0 = PCIU; Local1 = PCID
//!         If (Local0 & 2) { Notify (S01, 1) }     // device check: look again
//!         If (Local1 & 2) { Notify (S01, 3) }     // eject request
//!     }                                           … for each slot
//! }
//! Device (PWRB) { Name (_HID, "PNP0C0C") }
//! Device (GED) {
//!     Name (_HID, "ACPI0013")
//!     Name (_CRS, ResourceTemplate () { Interrupt (Consumer, Edge, ActiveHigh) { gsi } })
//!     OperationRegion (EVTR, SystemIO, port, 1)
//!     Field (EVTR, ByteAcc) { EVTS, 8 }
//!     Method (_EVT, 1, Serialized) {
//!         Local0 = EVTS
//!         If (Local0 & 1) { Notify (PWRB, 0x80) }
//!         If (Local0 & 2) { \_SB.PCI0.PCNT () }
//!     }
//! }
//! ```

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If,
    Interrupt, Local, Method, MethodCall, Name, Notify, OpRegion, OpRegionSpace, Path,
    ResourceTemplate, Scope, Store, ZERO,
};

/// Slots of bus 0 that functions can be put into: all but the host bridge's.
const SLOTS: std::ops::Range<u32> = 1..32;
/// `Notify`: the power button was pressed (4.8.3.1).
const PRESSED: u8 = 0x80;
/// `Notify`: device check (5.6.6).
const DEVICE_CHECK: u8 = 1;
/// `Notify`: eject request.
const EJECT_REQUEST: u8 = 3;

/// What the tables say of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Events {
    /// Their interrupt, edge-triggered.
    pub gsi: u32,
    /// Byte port that tells what happened: bit 0 the power button, bit 1 the
    /// slots.
    pub port: u16,
    /// The first of the ports of PCI slots, if functions may come and go.
    pub slots: Option<u16>,
}

impl Events {
    /// Writes what belongs into the scope `_SB_`.
    pub(super) fn describe(&self, pci: bool, aml: &mut Vec<u8>) {
        let slots = self.slots.filter(|_| pci);
        if let Some(port) = slots {
            pci_slots(port, aml);
        }
        let button = EISAName::new("PNP0C0C");
        let hid = Name::new("_HID".into(), &button);
        Device::new("PWRB".into(), vec![&hid]).to_aml_bytes(aml);
        self.device(slots.is_some(), aml);
    }

    fn device(&self, slots: bool, aml: &mut Vec<u8>) {
        let hid = Name::new("_HID".into(), &"ACPI0013");
        let uid = Name::new("_UID".into(), &ZERO);
        let irq = Interrupt::new(true, true, false, false, self.gsi);
        let resources = ResourceTemplate::new(vec![&irq]);
        let crs = Name::new("_CRS".into(), &resources);
        let region = OpRegion::new("EVTR".into(), OpRegionSpace::SystemIO, &self.port, &1u8);
        let field = field("EVTR", FieldAccessType::Byte, vec![FieldEntry::Named(*b"EVTS", 8)]);
        let (happened, events) = (Local(0), Path::new("EVTS"));
        let read = Store::new(&happened, &events);
        let button = Path::new("PWRB");
        let notify = Notify::new(&button, &PRESSED);
        let pressed = And::new(&ZERO, &happened, &1u8);
        let pressed = If::new(&pressed, vec![&notify]);
        let look = MethodCall::new("\\_SB_.PCI0.PCNT".into(), vec![]);
        let changed = And::new(&ZERO, &happened, &2u8);
        let changed = If::new(&changed, vec![&look]);
        let mut steps: Vec<&dyn Aml> = vec![&read, &pressed];
        if slots {
            steps.push(&changed);
        }
        let event = Method::new("_EVT".into(), 1, true, steps);
        let parts: Vec<&dyn Aml> = vec![&hid, &uid, &crs, &region, &field, &event];
        Device::new("GED_".into(), parts).to_aml_bytes(aml);
    }
}

fn field(region: &str, access: FieldAccessType, entries: Vec<FieldEntry>) -> Field {
    Field::new(region.into(), access, FieldLockRule::NoLock, FieldUpdateRule::Preserve, entries)
}

/// The slots of bus 0 and how they are told of.
fn pci_slots(port: u16, aml: &mut Vec<u8>) {
    let mut inside = Vec::new();
    OpRegion::new("SLTR".into(), OpRegionSpace::SystemIO, &port, &12u8).to_aml_bytes(&mut inside);
    let named = [*b"PCIU", *b"PCID", *b"B0EJ"].map(|name| FieldEntry::Named(name, 32));
    field("SLTR", FieldAccessType::DWord, named.to_vec()).to_aml_bytes(&mut inside);
    for slot in SLOTS {
        pci_slot(slot, &mut inside);
    }
    let (new, old) = (Local(0), Local(1));
    let (up, down) = (Path::new("PCIU"), Path::new("PCID"));
    let mut steps = Vec::new();
    Store::new(&new, &up).to_aml_bytes(&mut steps);
    Store::new(&old, &down).to_aml_bytes(&mut steps);
    for slot in SLOTS {
        let (path, bit) = (Path::new(&name(slot)), 1u32 << slot);
        for (bits, what) in [(&new, DEVICE_CHECK), (&old, EJECT_REQUEST)] {
            let notify = Notify::new(&path, &what);
            let told = And::new(&ZERO, bits, &bit);
            If::new(&told, vec![&notify]).to_aml_bytes(&mut steps);
        }
    }
    let steps = Raw(steps);
    Method::new("PCNT".into(), 0, true, vec![&steps]).to_aml_bytes(&mut inside);
    aml.extend(Scope::raw("PCI0".into(), inside));
}

fn pci_slot(slot: u32, aml: &mut Vec<u8>) {
    let (address, number, bit) = (slot << 16, slot as u8, 1u32 << slot);
    let adr = Name::new("_ADR".into(), &address);
    let sun = Name::new("_SUN".into(), &number);
    let register = Path::new("B0EJ");
    let give_back = Store::new(&register, &bit);
    let eject = Method::new("_EJ0".into(), 1, true, vec![&give_back]);
    Device::new(name(slot).as_str().into(), vec![&adr, &sun, &eject]).to_aml_bytes(aml);
}

fn name(slot: u32) -> String {
    format!("S{slot:02X}_")
}

/// Terms that are bytes already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}
