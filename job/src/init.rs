//! The init of a job's guest, and the initramfs that it comes in
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).

use crate::modules::Module;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::PathBuf;

/// `S_IFREG`, `S_IFDIR`, `S_IFCHR`.
const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const DEVICE: u32 = 0o020_000;

/// The initramfs as a file that has no name, and the path by which this process
/// reaches it.
pub fn initramfs(modules: &[Module]) -> io::Result<(File, PathBuf)> {
    // SAFETY: the name ends with NUL; the descriptor is nobody else's.
    let mut file = unsafe {
        match libc::memfd_create(c"initramfs".as_ptr(), libc::MFD_CLOEXEC) {
            -1 => return Err(io::Error::last_os_error()),
            fd => File::from_raw_fd(fd),
        }
    };
    file.write_all(&archive("init", &guest_programs::init()?, modules))?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok((file, path.into()))
}

/// An initramfs with the program under this name, and modules for it to load.
pub fn archive(name: &str, program: &[u8], modules: &[Module]) -> Vec<u8> {
    let size: usize = modules.iter().map(|module| module.content.len() + 256).sum();
    let mut archive = Vec::with_capacity(program.len() + size + 1024);
    entry(&mut archive, "dev", DIRECTORY | 0o755, (0, 0), &[]);
    // Opened for init before there is anything else.
    entry(&mut archive, "dev/console", DEVICE | 0o600, (5, 1), &[]);
    entry(&mut archive, "dev/null", DEVICE | 0o666, (1, 3), &[]);
    entry(&mut archive, name, FILE | 0o755, (0, 0), program);
    if !modules.is_empty() {
        entry(&mut archive, "modules", DIRECTORY | 0o755, (0, 0), &[]);
        // In the order in which they are loaded.
        let order: String = modules.iter().map(|module| format!("{}\n", module.file)).collect();
        entry(&mut archive, "modules/order", FILE | 0o644, (0, 0), order.as_bytes());
    }
    for module in modules {
        let file = format!("modules/{}", module.file);
        entry(&mut archive, &file, FILE | 0o644, (0, 0), &module.content);
    }
    entry(&mut archive, "TRAILER!!!", 0, (0, 0), &[]);
    archive
}

/// Adds an entry of the `newc` form: a header of hex numbers, the name, the
/// content, both filled up to four bytes.
fn entry(to: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
    let inode = to.len() as u32;
    let (len, name_len) = (content.len() as u32, name.len() as u32 + 1);
    let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
    to.extend_from_slice(b"070701");
    for number in [inode, mode, 0, 0, links, 0, len, 0, 0, device.0, device.1, name_len, 0] {
        to.extend_from_slice(format!("{number:08x}").as_bytes());
    }
    to.extend_from_slice(name.as_bytes());
    to.push(0);
    pad(to);
    to.extend_from_slice(content);
    pad(to);
}

fn pad(to: &mut Vec<u8>) {
    to.resize(to.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    #[test]
    fn the_archive_is_one_that_cpio_reads() {
        let module = Module { file: "a.ko".to_owned(), content: vec![1; 5] };
        let (mut file, path) = initramfs(&[module]).unwrap();
        assert_eq!(std::fs::metadata(path).unwrap().len() % 4, 0);
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        let mut at = 0;
        let mut names = Vec::new();
        loop {
            let field = |n: usize| {
                let text = &bytes[at + 6 + 8 * n..at + 14 + 8 * n];
                u32::from_str_radix(std::str::from_utf8(text).unwrap(), 16).unwrap() as usize
            };
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (size, name_len) = (field(6), field(11));
            let name = at + 110;
            names.push(String::from_utf8(bytes[name..name + name_len - 1].to_vec()).unwrap());
            let content = (name + name_len).next_multiple_of(4);
            if names.last().unwrap() == "init" {
                assert_eq!(&bytes[content..content + size], guest_programs::init().unwrap());
            }
            at = (content + size).next_multiple_of(4);
            if names.last().unwrap() == "TRAILER!!!" {
                break;
            }
        }
        assert_eq!(at, bytes.len());
        let modules = ["modules", "modules/order", "modules/a.ko"];
        assert_eq!(names[..4], ["dev", "dev/console", "dev/null", "init"]);
        assert_eq!(names[4..], [&modules[..], &["TRAILER!!!"]].concat());
    }
}
