//! Images of the host: opening, locking, reading and writing.

use super::*;
use crate::virtio::queue::IoVecStore;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use tempfile::{NamedTempFile, tempdir};

fn image(len: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(len).unwrap();
    file
}

fn refusal(path: &Path, read_only: bool) -> String {
    RawDisk::open(path, read_only).unwrap_err().to_string()
}

fn read(disk: &RawDisk, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut data = vec![0xaa; len];
    disk.read_at(&mut IoVecs::from_slice(&mut IoVecStore::new(), &mut data), offset)?;
    Ok(data)
}

fn write(disk: &RawDisk, offset: u64, data: &[u8]) -> io::Result<()> {
    let mut data = data.to_vec();
    disk.write_at(&mut IoVecs::from_slice(&mut IoVecStore::new(), &mut data), offset)
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    let dir = tempdir().unwrap();
    let text = |path: &Path, read_only| {
        let text = refusal(path, read_only);
        assert!(text.starts_with(&format!("disk {}: ", path.display())), "{text}");
        text
    };
    assert!(text(dir.path(), true).contains("a directory"));
    assert!(text(dir.path(), false).contains("directory"));
    assert!(text(Path::new("/dev/null"), true).contains("a character device"));
    assert!(text(&dir.path().join("none"), true).contains("No such file"));
    let pipe = dir.path().join("pipe");
    let name = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
    // SAFETY: a plain system call on a string that ends in zero.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    assert!(text(&pipe, true).contains("a pipe"), "and opening it doesn't hang");
    for len in [0, 511] {
        assert!(text(image(len).path(), true).contains("less than one sector"));
    }
}

#[test]
fn the_size_is_rounded_down_to_whole_sectors() {
    for (bytes, len) in [(512, 512), (1023, 512), (1024, 1024), (1 << 40, 1 << 40)] {
        assert_eq!(RawDisk::open(image(bytes).path(), true).unwrap().len(), len);
    }
}

#[test]
fn one_writer_or_many_readers() {
    let file = image(4096);
    let writer = RawDisk::open(file.path(), false).unwrap();
    for read_only in [true, false] {
        let text = refusal(file.path(), read_only);
        assert!(text.contains("locked by another process"), "{text}");
    }
    drop(writer);
    let readers = [0; 2].map(|_| RawDisk::open(file.path(), true).unwrap());
    assert!(refusal(file.path(), false).contains("read-only in both places"));
    drop(readers);
    RawDisk::open(file.path(), false).unwrap();
}

#[test]
fn a_classic_lock_is_respected_and_its_owner_named() {
    let file = image(4096);
    let mut range = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the command reads one `flock`.
    let locked = unsafe {
        libc::fcntl(file.as_file().as_raw_fd(), libc::F_SETLK, &mut range as *mut libc::flock)
    };
    assert_eq!(locked, 0);
    let text = refusal(file.path(), false);
    assert!(text.contains(&format!("locked by process {}", std::process::id())), "{text}");
}

#[test]
fn bytes_go_in_and_come_out() {
    let file = image(8192);
    let disk = RawDisk::open(file.path(), false).unwrap();
    write(&disk, 512, &[5; 1024]).unwrap();
    disk.flush().unwrap();
    assert_eq!(read(&disk, 1024, 1024).unwrap(), [[5; 512], [0; 512]].concat());
    let read_only = {
        drop(disk);
        RawDisk::open(file.path(), true).unwrap()
    };
    assert!(read_only.read_only());
    assert!(write(&read_only, 0, &[1; 512]).is_err());
    assert_eq!(read(&read_only, 512, 512).unwrap(), [5; 512]);
}

#[test]
fn more_pieces_than_one_call_takes_are_moved_in_several() {
    use crate::virtio::queue::Chain;
    use crate::virtio::testing::*;
    use vm_memory::{Bytes, GuestAddress};
    let file = image(3000 * 16);
    let disk = RawDisk::open(file.path(), false).unwrap();
    let (mem, mut rings) = (ram(), Rings::new(0x10000, 4096));
    let mut vq = rings.queue(4096);
    let pieces: Vec<_> = (0..3000).map(|i| (SEAM - 0x4000 + 32 * i, 16)).collect();
    for (addr, len) in &pieces {
        let data: Vec<u8> = (0..*len).map(|i| (*addr / 32) as u8 ^ i as u8).collect();
        mem.write_slice(&data, GuestAddress(*addr)).unwrap();
    }
    let head = rings.chain(&mem, &pieces, &[]);
    rings.offer(&mem, head);
    let (mut chain, mut store) = (Chain::new(), IoVecStore::new());
    assert!(vq.pop(&mem, &mut chain).unwrap());
    let mut from = chain.readable_iovecs(&mem, &mut store, 0, 3000 * 16).unwrap();
    disk.write_at(&mut from, 0).unwrap();
    let mut expected = vec![0; 3000 * 16];
    chain.read_at(&mem, 0, &mut expected).unwrap();
    assert_eq!(read(&disk, 0, 3000 * 16).unwrap(), expected);
    assert_eq!(expected[16..18], [(pieces[1].0 / 32) as u8, (pieces[1].0 / 32) as u8 ^ 1]);
}

#[test]
fn an_image_that_shrank_is_an_error_and_not_a_hang() {
    let file = image(8192);
    let disk = RawDisk::open(file.path(), false).unwrap();
    file.as_file().set_len(1024).unwrap();
    assert_eq!(read(&disk, 0, 2048).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_full_file_system_is_an_error() {
    let disk = RawDisk {
        file: OpenOptions::new().read(true).write(true).open("/dev/full").unwrap(),
        len: 4096,
        read_only: false,
        block_device: false,
    };
    assert_eq!(write(&disk, 0, &[1; 512]).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    assert!(write(&disk, u64::MAX, &[1; 512]).is_err());
    assert!(disk.write_zeroes(u64::MAX, 512, true).is_err());
}

#[test]
fn zeroes_are_zeroes_and_holes_give_back_their_space() {
    let mut file = image(0);
    file.write_all(&[9; 1 << 20]).unwrap();
    file.flush().unwrap();
    let disk = RawDisk::open(file.path(), false).unwrap();
    disk.write_zeroes(512, 1024, false).unwrap();
    assert_eq!(read(&disk, 0, 2048).unwrap(), [[9; 512], [0; 512], [0; 512], [9; 512]].concat());
    disk.write_zeroes(4096, 4096, true).unwrap();
    assert_eq!(read(&disk, 4096, 4096).unwrap(), [0; 4096]);
    disk.write_zeroes_plainly(16384, 100_000).unwrap();
    assert_eq!(read(&disk, 16384, 100_001).unwrap()[99_998..], [0, 0, 9]);
    disk.flush().unwrap();
    let before = disk.file().metadata().unwrap().blocks();
    disk.discard(1 << 19, 1 << 19).unwrap();
    let meta = disk.file().metadata().unwrap();
    assert!(meta.blocks() < before, "{} of {before} blocks left", meta.blocks());
    assert_eq!(meta.len(), 1 << 20, "the size stays");
}
