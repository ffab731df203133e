//! The registers, one behaviour at a time.
