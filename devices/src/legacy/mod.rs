//! Devices of the PC that every kernel knows: serial, i8042, RTC, power management, pvpanic.
