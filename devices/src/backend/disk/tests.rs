//! Images of the host: opening, locking, reading and writing.

use super::*;
use crate::virtio::queue::IoVecStore;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tempfile::{NamedTempFile, tempdir};

fn image(len: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(len).unwrap();
    file
}

fn open(path: &Path, read_only: bool) -> Result<RawDisk, DiskError> {
    RawDisk::open(path, RawOptions { read_only, ..Default::default() })
}

fn refusal(path: &Path, read_only: bool) -> String {
    open(path, read_only).unwrap_err().to_string()
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
        assert_eq!(open(image(bytes).path(), true).unwrap().len(), len);
    }
}

#[test]
fn one_writer_or_many_readers() {
    let file = image(4096);
    let writer = open(file.path(), false).unwrap();
    for read_only in [true, false] {
        let text = refusal(file.path(), read_only);
        assert!(text.contains("locked by another process"), "{text}");
    }
    drop(writer);
    let readers = [0; 2].map(|_| open(file.path(), true).unwrap());
    assert!(refusal(file.path(), false).contains("read-only in both places"));
    drop(readers);
    open(file.path(), false).unwrap();
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
fn a_file_that_another_process_opened_is_taken_as_it_must_be() {
    let image = image(8192);
    let (read_only, direct) = (RawOptions { read_only: true, ..Default::default() }, true);
    let adopt = |file, options| RawDisk::adopt(image.path(), file, options);
    let opened = |write: bool| File::options().read(true).write(write).open(image.path()).unwrap();
    let text = |file, options| adopt(file, options).unwrap_err().to_string();
    assert!(text(opened(false), RawOptions::default()).contains("for writing"));
    assert!(
        text(File::options().append(true).read(true).open(image.path()).unwrap(), read_only)
            .contains("not opened for reading")
    );
    assert!(text(File::open("/dev/null").unwrap(), read_only).contains("a character device"));
    assert!(
        text(opened(true), RawOptions { direct, ..Default::default() }).contains("O_DIRECT"),
        "the open file says how it is used"
    );
    let file: File = open(image.path(), false).unwrap().into();
    let disk = adopt(file, RawOptions::default()).unwrap();
    assert!(refusal(image.path(), true).contains("locked by"), "the lock goes with the file");
    write(&disk, 512, b"x").unwrap();
    disk.unlock();
    open(image.path(), false).unwrap();
    drop(disk);
    let disk = adopt(opened(true), read_only).unwrap();
    assert!(refusal(image.path(), false).contains("locked by"), "and is taken where it was not");
    assert_eq!(read(&disk, 512, 1).unwrap(), b"x");
}

#[test]
fn bytes_go_in_and_come_out() {
    let file = image(8192);
    let disk = open(file.path(), false).unwrap();
    write(&disk, 512, &[5; 1024]).unwrap();
    disk.flush().unwrap();
    assert_eq!(read(&disk, 1024, 1024).unwrap(), [[5; 512], [0; 512]].concat());
    let read_only = {
        drop(disk);
        open(file.path(), true).unwrap()
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
    let disk = open(file.path(), false).unwrap();
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
    let disk = open(file.path(), false).unwrap();
    file.as_file().set_len(1024).unwrap();
    assert_eq!(read(&disk, 0, 2048).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_full_file_system_is_an_error() {
    let file = File::options().read(true).write(true).open("/dev/full").unwrap();
    let disk = RawDisk::of(file, 4096);
    assert_eq!(write(&disk, 0, &[1; 512]).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    assert!(write(&disk, u64::MAX, &[1; 512]).is_err());
    assert!(disk.write_zeroes(u64::MAX, 512, true).is_err());
}

#[test]
fn zeroes_are_zeroes_and_holes_give_back_their_space() {
    let mut file = image(0);
    file.write_all(&[9; 1 << 20]).unwrap();
    file.flush().unwrap();
    let disk = open(file.path(), false).unwrap();
    disk.write_zeroes(512, 1024, false).unwrap();
    assert_eq!(read(&disk, 0, 2048).unwrap(), [[9; 512], [0; 512], [0; 512], [9; 512]].concat());
    disk.write_zeroes(4096, 4096, true).unwrap();
    assert_eq!(read(&disk, 4096, 4096).unwrap(), [0; 4096]);
    disk.write_zeroes_plainly(16384, 100_000).unwrap();
    assert_eq!(read(&disk, 16384, 100_001).unwrap()[99_998..], [0, 0, 9]);
    disk.flush().unwrap();
    let before = file.as_file().metadata().unwrap().blocks();
    disk.discard(1 << 19, 1 << 19).unwrap();
    let meta = file.as_file().metadata().unwrap();
    assert!(meta.blocks() < before, "{} of {before} blocks left", meta.blocks());
    assert_eq!(meta.len(), 1 << 20, "the size stays");
}

/// A range of an image is a disk of its own: nothing around it is touched.
#[test]
fn a_range_is_a_disk_of_its_own() {
    let mut file = image(0);
    file.write_all(&[9; 16 << 10]).unwrap();
    let range = |offset, len| RawOptions { offset, len, ..Default::default() };
    let disk = RawDisk::open(file.path(), range(4096, Some(4096))).unwrap();
    assert_eq!(disk.len(), 4096);
    write(&disk, 0, &[1; 4096]).unwrap();
    disk.write_zeroes(512, 512, false).unwrap();
    disk.discard(2048, 512).unwrap();
    let bytes = std::fs::read(file.path()).unwrap();
    let wanted = [vec![9; 4096], vec![1; 512], vec![0; 512], vec![1; 1024], vec![0; 512]].concat();
    assert_eq!(bytes[..6656], wanted);
    assert_eq!(bytes[6656..8192], [1; 1536]);
    assert_eq!(bytes[8192..], [9; 8192]);
    // Neighbours are free, what is shared is locked.
    let rest = RawDisk::open(file.path(), range(8192, None)).unwrap();
    assert_eq!(rest.len(), 8192);
    let refused = |options| RawDisk::open(file.path(), options).unwrap_err().to_string();
    assert!(refused(range(7680, Some(1024))).contains("locked"));
    assert!(refused(range(0, None)).contains("locked"));
    drop(rest);
    assert!(refused(range(8192, Some(8704))).contains("not all in the image"));
    assert!(refused(range(u64::MAX - 511, Some(1024))).contains("image"));
    assert!(refused(range(100, Some(512))).contains("whole sectors"));
}

#[test]
fn a_disk_grows_with_its_file() {
    let file = image(4096);
    let mut disk = open(file.path(), false).unwrap();
    disk.resize(Some(8192)).unwrap();
    assert_eq!((disk.len(), file.as_file().metadata().unwrap().len()), (8192, 8192));
    write(&disk, 7680, &[1; 512]).unwrap();
    file.as_file().set_len(12_300).unwrap();
    disk.resize(None).unwrap();
    assert_eq!(disk.len(), 12_288);
    assert!(disk.resize(Some(1000)).is_err());
    let mut range =
        RawDisk::open(image(8192).path(), RawOptions { len: Some(4096), ..Default::default() });
    assert!(range.as_mut().unwrap().resize(None).is_err());
}

/// Wherever buffers lie, direct I/O moves the same bytes.
#[test]
fn direct_io_takes_any_buffer() {
    // Not in memory: such a file system may have no direct I/O.
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let options = RawOptions { direct: true, ..Default::default() };
    let disk = match RawDisk::open(file.path(), options) {
        Ok(disk) => disk,
        Err(e) => return eprintln!("skipped: {e}"),
    };
    let unit = disk.geometry().logical as usize;
    let mut data: Vec<u8> = (0..unit * 3 + 1).map(|i| i as u8).collect();
    for skew in [0, 1] {
        let mut store = IoVecStore::new();
        let part = &mut data[skew..skew + unit * 3];
        let copy = part.to_vec();
        disk.write_at(&mut IoVecs::from_slice(&mut store, part), unit as u64).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap()[unit..unit * 4], copy);
        part.fill(0);
        disk.read_at(&mut IoVecs::from_slice(&mut store, part), unit as u64).unwrap();
        assert_eq!(part, copy);
    }
}

#[test]
fn a_qcow2_image_stands_on_its_backing_file() {
    let dir = tempdir().unwrap();
    let (base, top) = (dir.path().join("base"), dir.path().join("top"));
    std::fs::write(&base, vec![7; 1 << 20]).unwrap();
    testing::make_qcow2_on(&top, 1 << 20, &base);
    let qcow2 = |read_only| Qcow2Disk::open(&top, read_only);
    let read = |disk: &Qcow2Disk, offset, len| {
        let mut data = vec![0xaa; len];
        disk.read_at(&mut IoVecs::from_slice(&mut IoVecStore::new(), &mut data), offset).unwrap();
        data
    };
    {
        let disk = qcow2(false).unwrap();
        assert_eq!(disk.len(), 1 << 20);
        assert_eq!(read(&disk, 300_000, 600), [7; 600]);
        let mut data = [1; 1024];
        disk.write_at(&mut IoVecs::from_slice(&mut IoVecStore::new(), &mut data), 512).unwrap();
        disk.write_zeroes(1 << 19, 4096, true).unwrap();
        disk.flush().unwrap();
        // Every file of the chain is locked.
        assert!(Qcow2Disk::files(&top, true).err().unwrap().to_string().contains("locked"));
        assert!(qcow2(false).err().unwrap().to_string().contains("locked"));
        assert!(open(&base, false).unwrap_err().to_string().contains("locked"));
    }
    let disk = qcow2(true).unwrap();
    assert_eq!(read(&disk, 0, 2048), [[7; 512], [1; 512], [1; 512], [7; 512]].concat());
    assert_eq!(read(&disk, 1 << 19, 4096), [0; 4096]);
    assert_eq!(std::fs::read(&base).unwrap(), vec![7; 1 << 20], "the backing file is as it was");
    drop(disk);
    std::fs::remove_file(&base).unwrap();
    let text = qcow2(true).err().unwrap().to_string();
    assert!(text.starts_with(&format!("disk {}: ", top.display())), "{text}");
    let raw = image(1 << 20);
    let text = Qcow2Disk::open(raw.path(), true).err().unwrap().to_string();
    assert!(text.contains("not usable as qcow2"), "{text}");
}

#[test]
fn the_files_of_a_qcow2_image_can_be_handed_over() {
    let dir = tempdir().unwrap();
    let (base, top) = (dir.path().join("base"), dir.path().join("top"));
    std::fs::write(&base, vec![7; 1 << 20]).unwrap();
    testing::make_qcow2_on(&top, 1 << 20, &base);
    let files = Qcow2Disk::files(&top, false).unwrap();
    assert_eq!(files.len(), 2);
    assert!(refusal(&base, false).contains("locked by"), "the locks go with them");
    let disk = Qcow2Disk::adopt(&top, files, false).unwrap();
    let mut data = vec![0xaa; 600];
    disk.read_at(&mut IoVecs::from_slice(&mut IoVecStore::new(), &mut data), 300_000).unwrap();
    assert_eq!(data, [7; 600]);
    drop(disk);
    let mut files = Qcow2Disk::files(&top, false).unwrap();
    let why = |files| Qcow2Disk::adopt(&top, files, false).err().unwrap().to_string();
    assert!(why(files.drain(..1).collect()).contains("did not come along"));
    drop(files);
    let mut files = Qcow2Disk::files(&top, false).unwrap();
    files.reverse();
    assert!(!why(files).is_empty(), "the base is no qcow2 image");
    assert!(why(Vec::new()).contains("did not come along"));
    open(&base, false).unwrap();
}
