//! The FUSE kernel protocol, version 7.31 and later, without a library. No other code knows its
//! bytes. Source of the format: Linux `include/uapi/linux/fuse.h`.
//!
//! ```text
//! worker: read(2) ──► request (parsed, borrowed) ──► Handler ──► reply: one writev(2)
//! rings:  io_uring_enter(2), which also sends the answer before ──► ... ──► slot ──┘
//! ```
//!
//! Every byte is checked: a message that is too short or lacks its NUL gives EINVAL.

pub(super) mod abi;
mod answers;
mod connection;
mod dispatch;
mod idle_priority;
pub(super) mod notify;
mod reply;
pub(super) mod request;
mod ring_message;
mod rings;
mod slot;

pub(super) use connection::{Connection, Limits};
pub(super) use dispatch::Dispatch;
