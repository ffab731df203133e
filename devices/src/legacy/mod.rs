//! Devices of the PC that every kernel knows: serial port, keyboard
//! controller, system control port, real-time clock, power management, pvpanic,
//! POST port; and the chips of the fully virtualized board: i440FX, PIIX, IDE.

pub mod debug;
pub mod fw_cfg;
pub mod i8042;
pub mod ide;
pub mod interrupts;
pub mod ioapic;
pub mod lapic;
pub mod nic;
pub mod pic;
pub mod piix;
pub mod pit;
pub mod pm;
pub mod port61;
pub mod port92;
pub mod power;
pub mod pvpanic;
pub mod rtc;
pub mod serial;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
