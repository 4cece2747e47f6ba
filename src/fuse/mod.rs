//! The transport: translates FUSE requests to calls of [`crate::union`].
