//! What a disk does: a file in a directory, or a block device.
//!
//! Past the page cache (`O_DIRECT`) where the file system can: the cache is the
//! same memory everywhere.

use crate::report;
use crate::timing::Budget;
use guest::system::pages;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// How much of the disk is used.
const SIZE: u64 = 8 << 20;
const LARGE: usize = 64 << 10;
const SMALL: usize = 4 << 10;

/// Every kind by its name.
pub fn measure(budget: Budget, place: &Path) {
    const NAMES: [&str; 4] = ["disk_write", "disk_read", "disk_random_read", "disk_fsync"];
    let device = fs::metadata(place).is_ok_and(|meta| meta.file_type().is_block_device());
    let path = if device { place.to_owned() } else { place.join("agent.disk") };
    match open(&path) {
        Ok(mut disk) => {
            report(NAMES[0], disk.stream(budget, true));
            report(NAMES[1], disk.stream(budget, false));
            report(NAMES[2], disk.random(budget));
            report(NAMES[3], disk.durable(budget));
        }
        Err(error) => {
            for name in NAMES {
                report(name, Err(io::Error::new(error.kind(), error.to_string())));
            }
        }
    }
    if device {
        return report("create_unlink", Err(io::Error::other("a disk without a file system")));
    }
    let _ = fs::remove_file(&path);
    report("create_unlink", create(budget, &place.join("agent.file")));
}

/// Two kinds of requests in exact numbers: reads, and durable writes.
pub fn count(read: Budget, write: Budget, place: &Path, told: impl Fn(&str, io::Result<Vec<f64>>)) {
    const NAMES: [&str; 2] = ["exits_disk_read", "exits_disk_fsync"];
    let device = fs::metadata(place).is_ok_and(|meta| meta.file_type().is_block_device());
    let path = if device { place.to_owned() } else { place.join("agent.disk") };
    match open(&path) {
        Ok(mut disk) => {
            told(NAMES[0], disk.random(read));
            told(NAMES[1], disk.durable(write));
        }
        Err(error) => {
            for name in NAMES {
                told(name, Err(io::Error::new(error.kind(), error.to_string())));
            }
        }
    }
    if !device {
        let _ = fs::remove_file(&path);
    }
}

fn create(budget: Budget, path: &Path) -> io::Result<Vec<f64>> {
    budget.time(|count| {
        (0..count).try_for_each(|_| {
            File::create(path)?;
            fs::remove_file(path)
        })
    })
}

fn open(path: &Path) -> io::Result<Disk> {
    let options = |flags| {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).custom_flags(flags);
        options
    };
    let filled = |file: File| -> io::Result<Disk> {
        let disk = Disk { file, buffer: pages(LARGE)? };
        for at in (0..SIZE).step_by(LARGE) {
            disk.write(LARGE, at)?;
        }
        Ok(disk)
    };
    // A file system that has no way past its cache says so at the latest when it
    // is written to.
    options(libc::O_DIRECT).open(path).and_then(filled).or_else(|_| filled(options(0).open(path)?))
}

struct Disk {
    file: File,
    buffer: &'static mut [u8],
}

impl Disk {
    fn write(&self, len: usize, at: u64) -> io::Result<()> {
        let from = self.buffer.get(..len).unwrap_or_default();
        whole(self.file.write_at(from, at)?, len)
    }

    fn read(&mut self, len: usize, at: u64) -> io::Result<()> {
        let to = self.buffer.get_mut(..len).unwrap_or_default();
        whole(self.file.read_at(to, at)?, len)
    }

    fn stream(&mut self, budget: Budget, write: bool) -> io::Result<Vec<f64>> {
        let mut at = 0;
        budget.rate(LARGE, |count| {
            (0..count).try_for_each(|_| {
                at = (at + LARGE as u64) % SIZE;
                if write { self.write(LARGE, at) } else { self.read(LARGE, at) }
            })
        })
    }

    fn random(&mut self, budget: Budget) -> io::Result<Vec<f64>> {
        let mut x = 88_172_645_463_325_252_u64;
        budget.time(|count| {
            (0..count).try_for_each(|_| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                self.read(SMALL, x % (SIZE / SMALL as u64) * SMALL as u64)
            })
        })
    }

    fn durable(&mut self, budget: Budget) -> io::Result<Vec<f64>> {
        budget.time(|count| {
            (0..count).try_for_each(|_| {
                self.write(SMALL, 0)?;
                self.file.sync_data()
            })
        })
    }
}

fn whole(done: usize, len: usize) -> io::Result<()> {
    if done == len { Ok(()) } else { Err(io::Error::other("less than asked for")) }
}
