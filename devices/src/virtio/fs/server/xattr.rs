//! Extended attributes. Those of users go through; others have a meaning to the
//! host's kernel that is not the guest's to give.

use super::{Answer, Request, Server, bytes};
use crate::virtio::fs::fuse::*;
use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
use rustix::io::Errno;

/// `XATTR_SIZE_MAX` and `XATTR_LIST_MAX`.
const MAX: usize = 64 << 10;

impl Server<'_> {
    fn path(&self, node: u64) -> Result<String, Errno> {
        Ok(format!("/proc/self/fd/{}", self.share.number(node)?))
    }

    pub(super) fn setxattr(&mut self, mut r: Request<'_>) -> Answer {
        let SetxattrIn { size, flags } = r.args.take()?;
        let name = r.args.string()?;
        let value = r.args.bytes(size as usize)?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        if !ours(name) {
            return Err(Errno::OPNOTSUPP);
        }
        setxattr(self.path(r.header.nodeid)?, name, value, flags)?;
        Ok(Vec::new())
    }

    pub(super) fn getxattr(&mut self, mut r: Request<'_>) -> Answer {
        let GetxattrIn { size, .. } = r.args.take()?;
        let name = r.args.string()?;
        if !ours(name) {
            return Err(Errno::OPNOTSUPP);
        }
        let mut value = vec![0; MAX];
        let len = getxattr(self.path(r.header.nodeid)?, name, &mut value[..])?;
        value.truncate(len);
        sized(value, size)
    }

    pub(super) fn listxattr(&mut self, mut r: Request<'_>) -> Answer {
        let GetxattrIn { size, .. } = r.args.take()?;
        let mut list = vec![0; MAX];
        let len = listxattr(self.path(r.header.nodeid)?, &mut list[..])?;
        list.truncate(len);
        let names = list.split_inclusive(|b| *b == 0).filter(|name| ours(name));
        sized(names.flatten().copied().collect(), size)
    }

    pub(super) fn removexattr(&mut self, mut r: Request<'_>) -> Answer {
        let name = r.args.string()?;
        if !ours(name) {
            return Err(Errno::OPNOTSUPP);
        }
        removexattr(self.path(r.header.nodeid)?, name)?;
        Ok(Vec::new())
    }
}

fn ours(name: &[u8]) -> bool {
    name.starts_with(b"user.")
}

/// What fits in `size`, or how large it is if nothing was to fit.
fn sized(value: Vec<u8>, size: u32) -> Answer {
    match size {
        0 => Ok(bytes(GetxattrOut { size: value.len() as u32, padding: 0 })),
        size if value.len() > size as usize => Err(Errno::RANGE),
        _ => Ok(value),
    }
}
