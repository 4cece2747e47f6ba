//! The priorities and the CPUs of the server's threads. The server reacts to other work on the
//! machine, so these tests have a program of their own, which cargo runs alone, and run one after
//! another.

#![allow(clippy::unwrap_used, clippy::panic)]

mod giving_way;
