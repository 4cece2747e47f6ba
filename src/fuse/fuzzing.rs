//! Gives fuzzers access to the parser of kernel messages (feature `fuzzing`). A panic is a finding.

use super::wire::request::{self, Request};

/// Parses a message with its header. Returns whether it was well formed.
pub fn message(bytes: &[u8]) -> bool {
    let Some((_, opcode, body)) = request::split(bytes) else {
        return false;
    };
    check(request::parse_short(opcode, body), body);
    check(request::parse(opcode, body), body)
}

fn check(parsed: Request<'_>, body: &[u8]) -> bool {
    let plain = |name: &[u8]| debug_assert!(!name.contains(&0), "{name:?}");
    match parsed {
        Request::Malformed => return false,
        Request::BatchForget(forgets) => {
            let bytes = forgets.iter().count() * size_of::<(u64, u64)>();
            debug_assert!(bytes <= body.len());
        }
        Request::Write(write) => debug_assert!(write.data.len() < body.len()),
        Request::SetXattr { name, value, .. } => {
            plain(name);
            debug_assert!(value.len() < body.len());
        }
        Request::Rename { name, to, .. } => [name, to.name].into_iter().for_each(plain),
        Request::SymLink { name, target } => [name, target].into_iter().for_each(plain),
        Request::Lookup { name }
        | Request::MkNod { name, .. }
        | Request::MkDir { name, .. }
        | Request::Unlink { name }
        | Request::RmDir { name }
        | Request::Link { name, .. }
        | Request::GetXattr { name, .. }
        | Request::RemoveXattr { name } => plain(name),
        _ => {}
    }
    true
}
