//! x86-64: memory layout, CPUID and MSR policy, vCPU registers and state, ACPI tables
