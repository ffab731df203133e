//! What an image may have at most. All are far beyond real images: they are
//! there for those that were made to fill a disk, memory or time.

/// Files, directories, links and devices.
pub const ENTRIES: u64 = 2_000_000;
/// Bytes of all its files.
pub const CONTENT: u64 = 1 << 40;
/// Bytes of names, links and attributes, all of which are in memory.
pub const METADATA: u64 = 512 << 20;
/// Bytes of a path, as Linux has it.
pub const PATH: usize = 4096;
/// Bytes of a name, as Linux has it.
pub const NAME: usize = 255;
/// Directories within each other.
pub const DEPTH: usize = 512;
/// Symbolic links on the way to one file, as Linux has it.
pub const LINKS: usize = 40;
/// Bytes of an extended attribute's value, and of all of one file.
pub const ATTRIBUTES: usize = 65_535;
/// Bytes of the extended header of one entry in a tar archive.
pub const TAR_EXTENSION: u64 = 1 << 20;
/// Bytes of a JSON document.
pub const DOCUMENT: u64 = 4 << 20;
/// Layers.
pub const LAYERS: usize = 512;
/// Indexes within each other.
pub const INDEXES: usize = 8;
/// How many times its size compressed data may expand to ...
pub const EXPANSION: u64 = 250;
/// ... beyond this: a few files of zeros are no attack.
pub const EXPANSION_FREE: u64 = 256 << 20;
