//! x86-64 as a guest sees it: memory map, CPUID and MSR policy, the registers
//! a vCPU starts with, the state it is saved as, and the tables (ACPI, MP)
//! that describe the machine to an operating system.
//!
//! Everything here is a pure function of plain data, or a few ioctls on a vCPU.

pub mod acpi;
pub mod cpuid;
pub mod layout;
pub mod mptable;
pub mod registers;
pub mod vcpu_state;
