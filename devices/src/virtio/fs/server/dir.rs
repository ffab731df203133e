//! Directories.

use super::{Answer, Request, Server, bytes, entry};
use crate::virtio::fs::fuse::*;
use rustix::fs::{FileType, OFlags, RawDir, SeekFrom, seek};
use rustix::io::Errno;
use std::mem::MaybeUninit;
use zerocopy::FromZeros;

/// What the host is asked for at once.
const CHUNK: usize = 16 << 10;

impl Server<'_> {
    pub(super) fn opendir(&mut self, r: Request<'_>) -> Answer {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let directory = self.share.reopen(r.header.nodeid, flags)?;
        let fh = self.share.keep(directory)?;
        Ok(bytes(OpenOut { fh, ..OpenOut::default() }))
    }

    /// Entries from an offset on, with what a lookup of each would bring if
    /// `plus`. Offsets are the host's own, so they stay good whatever happens
    /// to the directory.
    pub(super) fn readdir(&mut self, mut r: Request<'_>, plus: bool) -> Answer {
        let ReadIn { fh, offset, size, .. } = r.args.take()?;
        let room = r.room.min(size as usize);
        seek(self.share.handle(fh)?, SeekFrom::Start(offset))?;
        let mut answer = Vec::with_capacity(room.min(CHUNK));
        let mut buffer = [MaybeUninit::uninit(); CHUNK];
        loop {
            let found = self.chunk(fh, &mut buffer)?;
            if found.is_empty() {
                return Ok(answer);
            }
            for entry in found {
                let len = entry.len(plus);
                if answer.len() + len > room {
                    return Ok(answer);
                }
                self.tell(r.header.nodeid, &entry, plus, &mut answer);
            }
        }
    }

    /// The next entries of an open directory.
    fn chunk(&self, fh: u64, buffer: &mut [MaybeUninit<u8>; CHUNK]) -> Result<Vec<Found>, Errno> {
        let mut directory = RawDir::new(self.share.handle(fh)?, buffer);
        let mut all = Vec::new();
        loop {
            let Some(found) = directory.next() else { return Ok(all) };
            let found = found?;
            all.push(Found {
                name: found.file_name().to_bytes().to_vec(),
                ino: found.ino(),
                next: found.next_entry_cookie(),
                kind: found.file_type(),
            });
            // What was read ahead is one system call's worth.
            if directory.is_buffer_empty() {
                return Ok(all);
            }
        }
    }

    fn tell(&mut self, parent: u64, found: &Found, plus: bool, answer: &mut Vec<u8>) {
        if plus {
            let own = matches!(found.name.as_slice(), b"." | b"..");
            let known = match own {
                true => None,
                // One that is gone by now is told without a node.
                false => self.share.lookup(parent, &found.name).ok(),
            };
            let entry = known.map_or_else(EntryOut::new_zeroed, |(node, stat)| entry(node, &stat));
            answer.extend(bytes(entry));
        }
        let kind = found.kind.as_raw_mode() >> 12;
        let namelen = found.name.len() as u32;
        answer.extend(bytes(Dirent { ino: found.ino, off: found.next, namelen, kind }));
        answer.extend(&found.name);
        answer.resize(answer.len().next_multiple_of(8), 0);
    }
}

/// An entry of a directory.
struct Found {
    name: Vec<u8>,
    ino: u64,
    next: u64,
    kind: FileType,
}

impl Found {
    fn len(&self, plus: bool) -> usize {
        let entry = if plus { size_of::<EntryOut>() } else { 0 };
        entry + (size_of::<Dirent>() + self.name.len()).next_multiple_of(8)
    }
}
