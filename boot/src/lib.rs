//! What the guest starts from: bzImage, ELF, PVH, initrd, command line
