//! Where Linux guests run in tests: this host's KVM, or a software-emulated host with one
