//! Formats hostile text for messages: on one line, of bounded length, without control characters.

/// Formats bytes for a message: quoted, escaped, at most 100 of them.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    let (head, more) = match bytes.get(..100) {
        Some(head) if bytes.len() > 100 => (head, "…"),
        _ => (bytes, ""),
    };
    format!("\"{}{more}\"", head.escape_ascii())
}

/// Formats a message of another program, at most 200 characters of it.
pub(crate) fn shown(message: &str) -> String {
    message.chars().take(200).flat_map(printable).collect()
}

/// Escapes all characters that are not printable ASCII: some of them would affect a terminal or
/// break the line.
fn printable(c: char) -> impl Iterator<Item = char> {
    let plain = (' '..='~').contains(&c).then_some(c);
    let escape = plain.is_none().then(|| c.escape_unicode());
    plain.into_iter().chain(escape.into_iter().flatten())
}
