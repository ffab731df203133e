//! What a guest that measures itself and the host say to each other.
//!
//! ```text
//!  guest                              host
//!  OUT 0x80 ← mark(op, 0)             an operation begins
//!     … n times …
//!  OUT 0x80 ← mark(op, n)             and has ended
//!  OUT 0x84 ← text                    lines: "log …", "why OP …", "cpus N"
//! ```
//!
//! Ports need neither driver nor configuration, so this works in any machine. The
//! guest only does things; time and exits are the host's to measure, because a
//! guest's clock may cost exits itself.

/// Where marks are written, 32 bits each.
pub const MARK_PORT: u16 = 0x80;
/// Where text is written, four bytes at a time.
pub const DATA_PORT: u16 = 0x84;

/// The variable in init's environment, so on the kernel's command line, that makes
/// it measure, and how much.
pub const VARIABLE: &str = "MICROVM_MEASURE";
/// The number of sectors by which the disk that may be overwritten is known.
pub const SCRATCH: &str = "MICROVM_SCRATCH";
/// Where packets are sent back, and streams taken: `ADDRESS:PORT`.
pub const PEER: &str = "MICROVM_PEER";
/// Is set where there is a root disk to mount.
pub const ROOT: &str = "MICROVM_ROOT";

/// Bytes of a block, an operation of a stream.
pub const BLOCK: usize = 64 << 10;
/// Bytes of a small request to a disk.
pub const PAGE: usize = 4 << 10;
/// Bytes of a packet's content.
pub const PACKET: usize = 1400;
/// How long a timer is waited for, in microseconds.
pub const TICK_US: u64 = 4000;

/// What init is to measure: the values of [`VARIABLE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Only the way to it.
    Boot,
    /// And everything that one processor can do, with few repetitions.
    Quick,
    /// The same with many.
    Full,
    /// Interrupts between processors alone.
    Ipi,
    /// Ticks alone.
    Tick,
}

impl Task {
    const ALL: [Self; 5] = [Self::Boot, Self::Quick, Self::Full, Self::Ipi, Self::Tick];

    /// As it is on the kernel's command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Quick => "quick",
            Self::Full => "full",
            Self::Ipi => "ipi",
            Self::Tick => "tick",
        }
    }

    /// The task of such a word.
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|task| task.word() == word)
    }
}

/// The upper byte of every mark, which tells them from other writes.
const MAGIC: u32 = 0x4d << 24;

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $code:literal $word:literal,)*) => {
        /// Something that is measured, or a milestone.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Operation { $($(#[$doc])* $name = $code,)* }

        impl Operation {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name in reports.
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
        }
    };
}

operations! {
    /// The root file system is mounted.
    Root = 1 "root",
    /// Init has started.
    Init = 2 "init",
    /// Nothing at all: what marks cost.
    Nothing = 3 "nothing",
    /// One request of 4 KiB, for its anatomy.
    OneRead = 4 "one-read",
    /// Requests of 4 KiB.
    Read = 5 "read",
    /// The same to the disk.
    Write = 6 "write",
    /// Blocks of 64 KiB.
    ReadStream = 7 "read-stream",
    /// The same to the disk.
    WriteStream = 8 "write-stream",
    /// One packet out and in again, for its anatomy.
    OnePacket = 9 "one-packet",
    /// A packet out and in again.
    Packet = 10 "packet",
    /// Blocks of 64 KiB over TCP, out.
    SendStream = 11 "send-stream",
    /// Being woken by a timer.
    Tick = 12 "tick",
    /// An interrupt from one processor to another, and the answer.
    Ipi = 13 "ipi",
    /// There is no more.
    Done = 14 "done",
}

impl Operation {
    /// The operation of a mark, and how often: 0 is its begin. `None` is somebody
    /// else's write.
    pub fn of(word: u32) -> Option<(Self, u32)> {
        let code = word >> 16 & 0xff;
        let operation = Self::ALL.iter().find(|operation| **operation as u32 == code)?;
        (word & 0xff << 24 == MAGIC).then_some((*operation, word & 0xffff))
    }

    /// The mark of having done it `count` times, at most 65535.
    pub fn mark(self, count: u32) -> u32 {
        MAGIC | (self as u32) << 16 | count.min(0xffff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_have_words() {
        assert!(Task::ALL.iter().all(|task| Task::of(task.word()) == Some(*task)));
        assert_eq!(Task::of("all"), None);
    }

    #[test]
    fn marks_are_read_as_they_are_written() {
        for operation in Operation::ALL {
            for count in [0, 1, 0xffff] {
                assert_eq!(Operation::of(operation.mark(count)), Some((*operation, count)));
            }
        }
        assert_eq!(Operation::Read.mark(1 << 20), Operation::Read.mark(0xffff));
        for word in [0, 0x12, 0x4d00_0000, 0x4dff_0001, 0x4e01_0000] {
            assert_eq!(Operation::of(word), None, "{word:#x}");
        }
    }
}
