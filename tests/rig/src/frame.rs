//! The one byte stream between the caller and the rig, cut into frames.
//!
//! Standard output, standard error, the exit status and, the other way,
//! standard input and window sizes all share one serial line. One line keeps
//! their order (an exit status can never overtake the last output) and works
//! on every emulator, down to a 16550 whose output is a file.
//!
//! A frame is one type byte, a little-endian `u32` length and the payload.

use std::fmt;

/// Largest payload a sender may put in one frame.
pub const MAX_PAYLOAD: usize = 64 * 1024;

const HEADER: usize = 5;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// To the caller: the command is about to start.
    Started = b'S',
    /// To the caller: bytes of standard output (or of the terminal).
    Stdout = b'1',
    /// To the caller: bytes of standard error.
    Stderr = b'2',
    /// To the caller: the command has ended; one byte, its status as a shell
    /// would say it (128 + n for a signal). Always the last frame.
    Exit = b'X',
    /// To the caller: what tracing saw, as text.
    Report = b'R',
    /// To the caller: the rig itself failed; a message for the user.
    Failure = b'F',
    /// To the rig: bytes of standard input; none at all means end of file.
    Stdin = b'0',
    /// To the rig: rows and columns of the caller's terminal, two `u16`.
    Window = b'W',
    /// To the rig: send this signal to the command.
    Signal = b'K',
    /// To the rig: nothing but an interrupt. QEMU 7.2 entering or leaving a
    /// guest can lose the interrupt that a timer raises at that moment, and
    /// the rig would sleep for ever; any other interrupt brings it back.
    Beat = b'B',
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            b'S' => Self::Started,
            b'1' => Self::Stdout,
            b'2' => Self::Stderr,
            b'X' => Self::Exit,
            b'R' => Self::Report,
            b'F' => Self::Failure,
            b'0' => Self::Stdin,
            b'W' => Self::Window,
            b'K' => Self::Signal,
            b'B' => Self::Beat,
            _ => return None,
        })
    }
}

/// One decoded frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What the payload is.
    pub kind: Kind,
    /// The bytes carried.
    pub payload: Vec<u8>,
}

/// The stream is not ours: the peer is broken or somebody else wrote to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Garbled {
    /// The type byte found.
    pub kind: u8,
    /// The length found.
    pub length: u32,
}

impl fmt::Display for Garbled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "garbled frame from the rig (type {:#04x}, length {})", self.kind, self.length)
    }
}

impl std::error::Error for Garbled {}

/// Appends `payload` to `out` as one frame, or several if it is long.
///
/// An empty payload is a frame of its own: for [`Kind::Stdin`] it means end of
/// file.
pub fn encode(kind: Kind, payload: &[u8], out: &mut Vec<u8>) {
    let mut rest = payload;
    loop {
        let (now, later) = rest.split_at(rest.len().min(MAX_PAYLOAD));
        out.push(kind as u8);
        // The split above keeps the length far below 2^32.
        out.extend_from_slice(&(now.len() as u32).to_le_bytes());
        out.extend_from_slice(now);
        if later.is_empty() {
            return;
        }
        rest = later;
    }
}

/// Turns a stream, in whatever pieces it arrives, back into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Takes in the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        // Compact once per push, so that memory stays bounded by what is unread.
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if one has arrived.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Garbled> {
        let unread = &self.buffer[self.start..];
        let Some((&[kind, l0, l1, l2, l3], body)) = unread.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let garbled = Garbled { kind, length };
        if length as usize > MAX_PAYLOAD {
            return Err(garbled);
        }
        let kind = Kind::from_byte(kind).ok_or(garbled)?;
        let Some(payload) = body.get(..length as usize) else {
            return Ok(None);
        };
        let payload = payload.to_vec();
        self.start += HEADER + payload.len();
        Ok(Some(Frame { kind, payload }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drain(decoder: &mut Decoder) -> Vec<Frame> {
        std::iter::from_fn(|| decoder.next_frame().expect("well-formed stream")).collect()
    }

    #[test]
    fn empty_payload_is_a_frame() {
        let mut out = Vec::new();
        encode(Kind::Stdin, b"", &mut out);
        let mut decoder = Decoder::default();
        decoder.push(&out);
        let frames = drain(&mut decoder);
        assert_eq!(frames.len(), 1);
        assert!(frames[0].payload.is_empty());
    }

    #[test]
    fn long_payload_is_split_and_rejoined() {
        let bytes: Vec<u8> = (0..MAX_PAYLOAD * 2 + 7).map(|i| i as u8).collect();
        let mut out = Vec::new();
        encode(Kind::Stdout, &bytes, &mut out);
        let mut decoder = Decoder::default();
        decoder.push(&out);
        let frames = drain(&mut decoder);
        assert_eq!(frames.len(), 3);
        let joined: Vec<u8> = frames.into_iter().flat_map(|f| f.payload).collect();
        assert_eq!(joined, bytes);
    }

    #[test]
    fn unknown_type_and_absurd_length_are_refused() {
        let mut decoder = Decoder::default();
        decoder.push(b"?\x01\0\0\0x");
        assert!(decoder.next_frame().is_err());
        let mut decoder = Decoder::default();
        decoder.push(b"1\xff\xff\xff\xff");
        assert!(decoder.next_frame().is_err());
    }

    proptest! {
        #[test]
        fn any_cut_of_the_stream_decodes_alike(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..8),
            cut in 1usize..50,
        ) {
            let mut stream = Vec::new();
            for payload in &payloads {
                encode(Kind::Stderr, payload, &mut stream);
            }
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in stream.chunks(cut) {
                decoder.push(piece);
                seen.extend(drain(&mut decoder).into_iter().map(|f| f.payload));
            }
            prop_assert_eq!(seen, payloads);
        }
    }
}
