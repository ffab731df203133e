//! The machine: KVM, memory, vCPU threads, event loop, assembly from a configuration, lifecycle
