//! Images of the host: opening, locking, reading and writing.
