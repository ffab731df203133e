//! Frames and the values in them.

use std::fmt;

/// The largest frame for the guest: arguments and environment of 6 MiB, the most
/// that Linux takes, and everything else.
pub const MAX_TO_GUEST: u32 = 16 << 20;
/// The largest frame for the host.
pub const MAX_TO_HOST: u32 = 16 << 10;

/// Length and kind.
const HEADER: usize = 5;

/// What is wrong with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// It is longer than any may be.
    TooLong(u32),
    /// There is no such kind, or no such value.
    Unknown(u8),
    /// Its body ends too early.
    Short,
    /// Its body goes on after its end.
    Long,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(len) => write!(f, "a frame of {len} bytes"),
            Self::Unknown(value) => write!(f, "an unknown value, {value}"),
            Self::Short => write!(f, "a frame that ends too early"),
            Self::Long => write!(f, "a frame with more in it than belongs there"),
        }
    }
}

impl std::error::Error for Error {}

/// Frames out of bytes as they come.
#[derive(Debug)]
pub struct Decoder {
    bytes: Vec<u8>,
    max: u32,
}

impl Decoder {
    /// For frames of at most `max` bytes.
    pub fn new(max: u32) -> Self {
        Self { bytes: Vec::new(), max }
    }

    /// Takes what has come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame: its kind and its body.
    pub fn next_frame(&mut self) -> Result<Option<(u8, Vec<u8>)>, Error> {
        let Some((header, rest)) = self.bytes.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [a, b, c, d, kind] = *header;
        let len = u32::from_le_bytes([a, b, c, d]);
        if len > self.max {
            return Err(Error::TooLong(len));
        }
        let Some(body) = rest.get(..len as usize).map(<[u8]>::to_vec) else { return Ok(None) };
        self.bytes.drain(..HEADER + body.len());
        Ok(Some((kind, body)))
    }
}

/// Puts a frame together.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub fn new(kind: u8) -> Self {
        Self(vec![0, 0, 0, 0, kind])
    }

    pub fn finish(mut self) -> Vec<u8> {
        let len = (self.0.len() - HEADER) as u32;
        self.0[..4].copy_from_slice(&len.to_le_bytes());
        self.0
    }

    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub fn bool(&mut self, value: bool) {
        self.u8(value.into());
    }

    pub fn u16(&mut self, value: u16) {
        self.0.extend(value.to_le_bytes());
    }

    pub fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    pub fn bytes(&mut self, value: &[u8]) {
        self.u32(value.len() as u32);
        self.0.extend_from_slice(value);
    }

    pub fn list<T>(&mut self, values: &[T], mut put: impl FnMut(&mut Self, &T)) {
        self.u32(values.len() as u32);
        values.iter().for_each(|value| put(self, value));
    }

    pub fn option<T>(&mut self, value: &Option<T>, put: impl FnOnce(&mut Self, &T)) {
        self.bool(value.is_some());
        if let Some(value) = value {
            put(self, value);
        }
    }
}

/// Takes a body apart.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    pub fn finish(self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::Long) }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Error::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Error::Short)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub fn u8(&mut self) -> Result<u8, Error> {
        self.array().map(|[byte]| byte)
    }

    pub fn bool(&mut self) -> Result<bool, Error> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Error::Unknown(other)),
        }
    }

    pub fn u16(&mut self) -> Result<u16, Error> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn bytes(&mut self) -> Result<Vec<u8>, Error> {
        let len = self.u32()?;
        self.take(len as usize).map(<[u8]>::to_vec)
    }

    /// Every element takes at least a byte, so a count that lies ends with the
    /// body; nothing is kept ready for it.
    pub fn list<T>(
        &mut self,
        mut get: impl FnMut(&mut Self) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let count = self.u32()?;
        let mut list = Vec::new();
        for _ in 0..count {
            list.push(get(self)?);
        }
        Ok(list)
    }

    pub fn option<T>(
        &mut self,
        get: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        self.bool()?.then(|| get(self)).transpose()
    }
}
