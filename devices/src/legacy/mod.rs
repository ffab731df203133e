//! Devices of the PC that every kernel knows: serial port, keyboard
//! controller, real-time clock, power management, pvpanic, POST port.

pub mod debug;
pub mod i8042;
pub mod pm;
pub mod power;
pub mod pvpanic;
pub mod rtc;
pub mod serial;
