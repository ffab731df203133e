use super::*;
use proptest::prelude::*;
use std::io::Write;
use std::path::PathBuf;

fn open(bytes: &[u8]) -> Result<Kernel, KernelError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    Kernel::open(file.path())
}

fn reason(bytes: &[u8]) -> ImageError {
    match open(bytes) {
        Err(KernelError::Image { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

/// A minimal 64-bit ELF with one segment of `size` bytes at 16 MiB.
fn elf(size: u64) -> Vec<u8> {
    let mut e = b"\x7fELF\x02\x01\x01".to_vec();
    e.resize(16, 0);
    e.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    e.extend(0x100_0000u64.to_le_bytes()); // e_entry
    e.extend(64u64.to_le_bytes()); // e_phoff
    e.resize(52, 0);
    e.extend([64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    e.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    for v in [120, 0x100_0000, 0x100_0000, size, size * 2, 0x1000] {
        e.extend(u64::to_le_bytes(v));
    }
    e.resize(120 + size as usize, 0xf4);
    e
}

/// The header of a bzImage with one setup sector and 4 KiB behind it.
fn bzimage() -> Vec<u8> {
    let mut b = vec![0; 1024 + 4096];
    b[0x1f1] = 1;
    b[0x1f4..0x1f8].copy_from_slice(&256u32.to_le_bytes());
    b[0x202..0x206].copy_from_slice(b"HdrS");
    b[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    b[0x211] = 1;
    b[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    b[0x236] = 1;
    b[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
    b[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
    b[0x260..0x264].copy_from_slice(&0x200_0000u32.to_le_bytes());
    b
}

#[test]
fn good_images_are_told_apart() {
    let k = open(&elf(64)).unwrap();
    assert!(matches!(k.format, Format::Elf(_)));
    assert_eq!(k.end(), 0x100_0000 + 128);
    assert_eq!(k.protocol(), "64-bit boot protocol");
    let k = open(&bzimage()).unwrap();
    assert!(matches!(k.format, Format::BzImage(_)));
    assert_eq!((k.end(), k.cmdline_limit()), (0x300_0000, 2047));
    // Memtest86+ ends in the middle of the paragraph that is its last.
    open(&bzimage()[..1024 + 4096 - 15]).unwrap();
}

#[test]
fn what_is_wrong_is_said() {
    assert_eq!(reason(b""), ImageError::Empty);
    assert_eq!(reason(b"hello"), ImageError::Unknown);
    assert_eq!(reason(b"\x1f\x8b\x08"), ImageError::Compressed("gzip"));
    assert!(matches!(reason(&elf(64)[..150]), ImageError::Truncated { .. }));
    assert!(matches!(reason(&elf(64)[..70]), ImageError::Truncated { .. }));
    assert!(matches!(reason(&elf(64)[..20]), ImageError::Truncated { .. }));
    assert!(matches!(reason(&bzimage()[..3000]), ImageError::Truncated { .. }));
    assert!(matches!(reason(&bzimage()[..1024 + 4096 - 16]), ImageError::Truncated { .. }));
    let mut arm = elf(64);
    arm[18] = 183;
    assert_eq!(reason(&arm), ImageError::Architecture("AArch64".into()));
    let mut x32 = elf(64);
    x32[4] = 1;
    assert_eq!(reason(&x32), ImageError::Architecture("x32".into()));
    let mut lost = elf(64);
    lost[24..32].copy_from_slice(&0u64.to_le_bytes());
    assert!(matches!(reason(&lost), ImageError::Header(_)));
    let mut old = bzimage();
    old[0x206] = 0;
    assert!(matches!(reason(&old), ImageError::Header(_)));
    let mut narrow = bzimage();
    narrow[0x236] = 0;
    assert_eq!(reason(&narrow), ImageError::Architecture("32-bit x86".into()));
}

#[test]
fn what_is_no_file_is_refused() {
    let missing = Kernel::open(&PathBuf::from("/nonexistent/vmlinux")).unwrap_err();
    assert!(missing.to_string().starts_with("kernel /nonexistent/vmlinux: No such file"));
    let dir = Kernel::open(&std::env::temp_dir()).unwrap_err();
    assert!(dir.to_string().contains("is a directory"));
    let dev = Kernel::open(&PathBuf::from("/dev/null")).unwrap_err();
    assert!(dev.to_string().contains("is a device or pipe"));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
        let _ = open(&bytes);
    }

    #[test]
    fn no_damage_to_a_good_image_makes_it_panic(
        which in any::<bool>(), real_mode in any::<bool>(),
        at in 0usize..0x268, value in any::<u8>(), cut in 0usize..5200,
    ) {
        let mut image = if which { elf(600) } else { bzimage() };
        if let Some(b) = image.get_mut(at) { *b = value; }
        image.truncate(cut.max(1));
        if let Ok(kernel) = open(&image) {
            let ram = crate::Ram::from_ranges(&[(vm_memory::GuestAddress(0), 64 << 20)]).unwrap();
            let way = if real_mode { crate::Way::RealMode } else { crate::Way::Direct };
            let payload = crate::Payload { kernel: &kernel, initrd: None, cmdline: "x", memory: 64 << 20, rsdp: 0, way };
            let _ = crate::load(&ram, &payload);
        }
    }
}

#[test]
fn a_pipe_is_refused_without_waiting_for_its_writer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the name ends with NUL and outlives the call.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    assert!(matches!(Kernel::open(&path), Err(KernelError::NotAFile { .. })));
    assert!(crate::Initrd::open(&path).is_err());
}
