//! Tar archives, as a stream of entries: POSIX.1-1988 (`ustar`), its extended
//! headers (`pax`, POSIX.1-2001), and GNU's long names and large numbers.
//!
//! ```text
//!  header 512 ─ data, padded to 512 ─ header … ─ two blocks of zeros
//!  'x' header ─ "27 path=a long name\n" … ─ the header that it is about
//! ```
//!
//! Extended attributes are the records `SCHILY.xattr.NAME`. Sparse files of
//! GNU tar and multiple volumes are refused: no layer has them.

use super::limits;
use std::io::{self, ErrorKind, Read};

const BLOCK: usize = 512;

/// What an archive is read from.
pub trait Input: Read + Sized {
    /// Passes over so many bytes, or to the end.
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let passed = io::copy(&mut self.by_ref().take(bytes), &mut io::sink())?;
        if passed < bytes { Err(invalid("ends within a file")) } else { Ok(()) }
    }

    /// Where in its file it is, if the archive's bytes are as they are there.
    fn offset(&self) -> Option<u64> {
        None
    }
}

impl Input for &[u8] {}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A file, with [`Entry::size`] bytes of data.
    File,
    /// Another name, [`Entry::link`], of a file.
    HardLink,
    /// A symbolic link to [`Entry::link`].
    Symlink,
    /// A character device of these numbers.
    Character(u32, u32),
    /// A block device of these numbers.
    Block(u32, u32),
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// A header, with what its extended headers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// Its path, as it is written there.
    pub path: Vec<u8>,
    /// Where a link leads.
    pub link: Vec<u8>,
    /// Permissions, with set-user-ID and the like.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was changed: seconds, and nanoseconds after them.
    pub mtime: (i64, u32),
    /// Bytes of data that follow.
    pub size: u64,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What extended headers say of the next entry.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An archive that is read from its beginning to its end.
pub struct Reader<I> {
    input: I,
    /// Bytes of the present entry's data, and of its padding, still to come.
    data: u64,
    padding: u64,
    ended: bool,
}

impl<I: Input> Reader<I> {
    /// Starts at the first header.
    pub fn new(input: I) -> Self {
        Self { input, data: 0, padding: 0, ended: false }
    }

    /// What it reads from.
    pub fn into_input(self) -> I {
        self.input
    }

    /// Where the present entry's data is, if the input is a file as it is.
    pub fn offset(&self) -> Option<u64> {
        self.input.offset()
    }

    /// The next entry; its data can then be read from this reader.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let mut extended = Extended::default();
        loop {
            let Some(header) = self.next_header()? else {
                return Ok(None);
            };
            let size = number(&header[124..136]).ok_or_else(|| invalid("a size is no number"))?;
            match header[156] {
                b'x' => extended.records(&self.extension(size)?)?,
                // Global records: programs write comments there.
                b'g' => drop(self.extension(size)?),
                b'L' => extended.path = Some(text(&self.extension(size)?).to_vec()),
                b'K' => extended.link = Some(text(&self.extension(size)?).to_vec()),
                // A volume's name.
                b'V' => {}
                _ => return self.entry(&header, size, extended).map(Some),
            }
        }
    }

    /// Passes over the rest of the present entry; the next header, if any.
    fn next_header(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        if self.ended {
            return Ok(None);
        }
        let rest = self.data + self.padding;
        if rest > 0 {
            self.input.skip(rest)?;
        }
        (self.data, self.padding) = (0, 0);
        let mut header = [0; BLOCK];
        let end = !self.block(&mut header)?;
        if end || header == [0; BLOCK] {
            self.ended = true;
            if !end && self.block(&mut header)? && header != [0; BLOCK] {
                return Err(invalid("a block of zeros between its files"));
            }
            return Ok(None);
        }
        if !checksum_fits(&header) {
            return Err(invalid("no tar archive, or damaged: a checksum is wrong"));
        }
        Ok(Some(header))
    }

    /// Reads a block; false if the archive ends before it.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> io::Result<bool> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(invalid("ends within a header")),
                Ok(more) => filled += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn announce(&mut self, size: u64) {
        self.data = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    /// The data of an extended header.
    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > limits::TAR_EXTENSION {
            return Err(invalid("an extended header of more than 1 MiB"));
        }
        self.announce(size);
        let mut data = Vec::new();
        self.read_to_end(&mut data)?;
        Ok(data)
    }

    fn entry(&mut self, header: &[u8; BLOCK], size: u64, more: Extended) -> io::Result<Entry> {
        let path = more.path.unwrap_or_else(|| path(header));
        let device = || Some((small(&header[329..337])?, small(&header[337..345])?));
        let no_number = || invalid("an owner, mode or device is no number");
        let kind = match header[156] {
            // Before POSIX a directory was a file whose name ends so.
            b'0' | 0 | b'7' if path.ends_with(b"/") => EntryKind::Directory,
            b'0' | 0 | b'7' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => device().map(|(a, b)| EntryKind::Character(a, b)).ok_or_else(no_number)?,
            b'4' => device().map(|(a, b)| EntryKind::Block(a, b)).ok_or_else(no_number)?,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            b'S' => return Err(invalid("a sparse file: write the archive without --sparse")),
            _ => return Err(invalid("an entry of a kind that is not POSIX's")),
        };
        // Other kinds have no data, whatever their size says.
        let size = if kind == EntryKind::File { more.size.unwrap_or(size) } else { 0 };
        if size > limits::CONTENT {
            return Err(invalid("a file of more than 1 TiB"));
        }
        self.announce(size);
        let id = |given: Option<u32>, field: &[u8]| given.or_else(|| small(field));
        Ok(Entry {
            kind,
            path,
            link: more.link.unwrap_or_else(|| text(&header[157..257]).to_vec()),
            mode: (small(&header[100..108]).ok_or_else(no_number)? & 0o7777) as u16,
            uid: id(more.uid, &header[108..116]).ok_or_else(no_number)?,
            gid: id(more.gid, &header[116..124]).ok_or_else(no_number)?,
            mtime: more.mtime.unwrap_or_else(|| (signed(&header[136..148]), 0)),
            size,
            xattrs: more.xattrs,
        })
    }
}

/// The present entry's data.
impl<I: Input> Read for Reader<I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.data).map_or(buffer.len(), |rest| rest.min(buffer.len()));
        if most == 0 {
            return Ok(0);
        }
        match self.input.read(&mut buffer[..most])? {
            0 => Err(invalid("ends within a file")),
            more => {
                self.data -= more as u64;
                Ok(more)
            }
        }
    }
}

impl Extended {
    /// `LENGTH KEY=VALUE\n`, where the length counts all of it.
    fn records(&mut self, mut data: &[u8]) -> io::Result<()> {
        let damaged = || invalid("an extended header is damaged");
        while !data.is_empty() {
            let space = data.iter().take(8).position(|&b| b == b' ').ok_or_else(damaged)?;
            let length = decimal(&data[..space]).ok_or_else(damaged)? as usize;
            if length <= space + 1 || length > data.len() {
                return Err(damaged());
            }
            let (record, rest) = data.split_at(length);
            let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(damaged)?;
            let equals = record.iter().position(|&b| b == b'=').ok_or_else(damaged)?;
            self.record(&record[..equals], &record[equals + 1..]).ok_or_else(damaged)?;
            data = rest;
        }
        if self.path.as_deref().is_some_and(|path| path == b"\0sparse") {
            return Err(invalid("a sparse file: write the archive without --sparse"));
        }
        Ok(())
    }

    /// An empty value takes an earlier one back.
    fn record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let given = !value.is_empty();
        match key {
            b"path" => self.path = given.then(|| value.to_vec()),
            b"linkpath" => self.link = given.then(|| value.to_vec()),
            b"size" => self.size = if given { Some(decimal(value)?) } else { None },
            b"uid" => self.uid = if given { Some(decimal(value)?.try_into().ok()?) } else { None },
            b"gid" => self.gid = if given { Some(decimal(value)?.try_into().ok()?) } else { None },
            b"mtime" => self.mtime = if given { Some(time(value)?) } else { None },
            _ if key.starts_with(b"GNU.sparse.") => self.path = Some(b"\0sparse".to_vec()),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.retain(|(known, _)| known != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Some(())
    }
}

/// `name`, after `prefix` where the header is POSIX's; GNU's has other fields
/// in its place.
fn path(header: &[u8; BLOCK]) -> Vec<u8> {
    let (name, prefix) = (text(&header[..100]), text(&header[345..500]));
    if &header[257..263] == b"ustar\0" && !prefix.is_empty() {
        [prefix, b"/", name].concat()
    } else {
        name.to_vec()
    }
}

/// The sum of all bytes, with spaces in place of the checksum. Old programs
/// took bytes as signed.
fn checksum_fits(header: &[u8; BLOCK]) -> bool {
    let counted = |at: usize| if (148..156).contains(&at) { b' ' } else { header[at] };
    let unsigned: u64 = (0..BLOCK).map(|at| u64::from(counted(at))).sum();
    let signed: i64 = (0..BLOCK).map(|at| i64::from(counted(at) as i8)).sum();
    number(&header[148..156]).is_some_and(|sum| sum == unsigned || i64::try_from(sum) == Ok(signed))
}

/// Up to the first zero.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Octal digits among spaces and zeros; or GNU's binary, whose first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if let Some(&first) = field.first()
        && first & 0x80 != 0
    {
        // The second bit is the sign.
        let start = if first & 0x40 == 0 { u64::from(first & 0x3f) } else { return None };
        return field[1..]
            .iter()
            .try_fold(start, |sum, &byte| sum.checked_mul(256).map(|sum| sum | u64::from(byte)));
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0u64, |sum, &byte| match byte {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

fn small(field: &[u8]) -> Option<u32> {
    number(field)?.try_into().ok()
}

/// A time before 1970 that is in GNU's binary, and any that is none, is 1970.
fn signed(field: &[u8]) -> i64 {
    number(field).and_then(|number| i64::try_from(number).ok()).unwrap_or(0)
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, &byte| match byte {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// `-12.5` is half a second after -13.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(value) => (true, value),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |&byte| byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanoseconds = 0;
    for place in parts.next().unwrap_or_default().iter().chain(b"000000000".iter()).take(9) {
        nanoseconds = nanoseconds * 10 + decimal(&[*place])? as u32;
    }
    Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, reason)
}
