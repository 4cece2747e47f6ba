//! tar-split: lines with one JSON object each, from which, with the files of a layer, its tar is
//! rebuilt.
//!
//! Format (vbatts/tar-split, tar/storage/entry.go, as Docker writes it):
//! `{"type":1,"name":…,"size":…,"payload":…,"position":n}` is the content of a file; payload is the
//! base64 of its CRC-64 (ISO polynomial, Go's hash/crc64, big-endian), name is `name_raw` in base64
//! if it is not UTF-8, and size is left out if it is 0. `{"type":2,"payload":…,"position":n}` is a
//! piece of the tar, in base64.
//!
//! Docker's reader rejects a repeated path and ignores files of size 0. Some content is not in a
//! file byte for byte (sparse files, second entries of a name). It is written as pieces, and the
//! file's line has a checksum without a size: Docker can rebuild the tar, and this program can
//! still check the file.

use std::borrow::Cow;
use std::io::{BufRead, Read as _, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;

use super::error::{Error, Result};
use super::path_set::{PathSet, Room};

/// The limit of bytes of the tar in one line that this program writes.
pub(super) const PIECE: usize = 1 << 20;

/// The length limit of a line. Docker's longest lines are pieces of 1 MiB, or a header with its
/// extensions.
const MAX_LINE: u64 = 32 << 20;

/// Writes tar-split lines.
pub(super) struct TarSplitWriter<'d, W> {
    out: W,
    position: u64,
    line: String,
    /// The paths that have a line.
    seen: PathSet<'d>,
}

impl<'d, W: Write> TarSplitWriter<'d, W> {
    /// Makes a writer. `room` is for data that does not fit into memory.
    pub(super) fn new(out: W, room: Room<'d>) -> Self {
        Self {
            out,
            position: 0,
            line: String::new(),
            seen: PathSet::new(room),
        }
    }

    /// Adds a (cleaned) path; returns whether it is new.
    pub(super) fn first(&mut self, path: &[u8]) -> Result<bool> {
        self.seen.first(path).map_err(failed)
    }

    /// Writes a piece of the tar.
    pub(super) fn segment(&mut self, bytes: &[u8]) -> Result<()> {
        self.line.clear();
        self.line.push_str("{\"type\":2,\"payload\":\"");
        BASE64.encode_string(bytes, &mut self.line);
        self.line.push('"');
        self.end()
    }

    /// Writes bytes of the tar of any length as pieces; none if it is empty.
    pub(super) fn segments(&mut self, bytes: &[u8]) -> Result<()> {
        bytes
            .chunks(PIECE)
            .try_for_each(|piece| self.segment(piece))
    }

    /// Writes an entry with the length of its content and the checksum, if it has one.
    pub(super) fn file(&mut self, name: &[u8], size: u64, crc: Option<u64>) -> Result<()> {
        self.line.clear();
        self.line.push_str("{\"type\":1");
        match std::str::from_utf8(name) {
            Ok("") => {}
            Ok(name) => {
                self.line.push_str(",\"name\":");
                quote(name, &mut self.line);
            }
            Err(_) => {
                self.line.push_str(",\"name_raw\":\"");
                BASE64.encode_string(name, &mut self.line);
                self.line.push('"');
            }
        }
        if size > 0 {
            self.line.push_str(&format!(",\"size\":{size}"));
        }
        self.line.push_str(",\"payload\":");
        match crc {
            None => self.line.push_str("null"),
            Some(crc) => {
                self.line.push('"');
                BASE64.encode_string(crc.to_be_bytes(), &mut self.line);
                self.line.push('"');
            }
        }
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.line
            .push_str(&format!(",\"position\":{}}}\n", self.position));
        self.position += 1;
        self.out.write_all(self.line.as_bytes()).map_err(failed)
    }

    /// Returns the output, to which more may be written.
    #[cfg(feature = "registry")]
    pub(super) fn into_output(self) -> W {
        self.out
    }

    pub(super) fn finish(mut self) -> Result<()> {
        self.out.flush().map_err(failed)
    }
}

fn failed(source: std::io::Error) -> Error {
    Error::Write {
        what: "tar-split",
        source,
    }
}

/// Writes a string as Go's encoding/json does.
fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// A line of tar-split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TarSplitLine {
    /// Bytes of the tar.
    Segment(Vec<u8>),
    /// The content of a file of the layer.
    File {
        /// The name in the tar.
        name: Vec<u8>,
        /// The bytes of content that belong at this place of the tar.
        size: u64,
        /// The CRC-64 of the content, if the line has one.
        crc: Option<u64>,
    },
}

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(rename = "type")]
    kind: u64,
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    name_raw: Option<Cow<'a, str>>,
    size: Option<u64>,
    #[serde(borrow)]
    payload: Option<Cow<'a, str>>,
    position: u64,
}

/// Reads tar-split lines; memory is bounded by the length limit of a line.
pub struct TarSplitReader<R> {
    input: R,
    /// The number of lines read so far.
    number: u64,
    buffer: Vec<u8>,
}

impl<R: BufRead> TarSplitReader<R> {
    /// Makes a reader of `input`, which has uncompressed lines.
    pub fn new(input: R) -> Self {
        Self {
            input,
            number: 0,
            buffer: Vec::new(),
        }
    }

    fn bad(&self, what: impl Into<String>) -> Error {
        Error::Split {
            line: self.number,
            what: what.into(),
        }
    }

    /// Returns the next line; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Split`] for a line that is too long, cannot be read, or is not one of a tar-split.
    pub fn next_line(&mut self) -> std::result::Result<Option<TarSplitLine>, Error> {
        self.buffer.clear();
        self.number += 1;
        let mut input = (&mut self.input).take(MAX_LINE);
        let read = input.read_until(b'\n', &mut self.buffer);
        match read {
            Ok(0) => return Ok(None),
            Ok(n) if n as u64 >= MAX_LINE => {
                return Err(self.bad(format!("longer than {MAX_LINE} bytes")));
            }
            Ok(_) => {}
            Err(e) => return Err(self.bad(format!("cannot read: {e}"))),
        }
        let raw: Raw<'_> = serde_json::from_slice(&self.buffer)
            .map_err(|e| self.bad(format!("not a tar-split entry: {e}")))?;
        if raw.position != self.number - 1 {
            let what = format!("entry {} where {} belongs", raw.position, self.number - 1);
            return Err(self.bad(what));
        }
        self.interpret(&raw).map(Some)
    }

    fn interpret(&self, raw: &Raw<'_>) -> Result<TarSplitLine> {
        let bytes = |text: &str, what: &str| {
            let bytes = BASE64.decode(text);
            bytes.map_err(|e| self.bad(format!("{what} is not base64: {e}")))
        };
        let payload = raw.payload.as_deref();
        match raw.kind {
            2 => Ok(TarSplitLine::Segment(bytes(
                payload.unwrap_or(""),
                "payload",
            )?)),
            1 => {
                let name = match (&raw.name, &raw.name_raw) {
                    (_, Some(raw)) => bytes(raw, "name_raw")?,
                    (Some(name), None) => name.as_bytes().to_vec(),
                    (None, None) => Vec::new(),
                };
                let crc = match payload {
                    None | Some("") => None,
                    Some(text) => {
                        let crc = bytes(text, "payload")?.try_into();
                        let crc = crc.map_err(|_| self.bad("payload is not a CRC-64"))?;
                        Some(u64::from_be_bytes(crc))
                    }
                };
                let size = raw.size.unwrap_or(0);
                Ok(TarSplitLine::File { name, size, crc })
            }
            kind => Err(self.bad(format!("unknown type {kind}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_docker_and_read_back() {
        let mut out = Vec::new();
        let layer = std::fs::File::open("/").unwrap();
        let mut writer =
            TarSplitWriter::new(&mut out, Room::Beside(std::os::fd::AsFd::as_fd(&layer)));
        writer.segment(b"abc").unwrap();
        writer.file(b"d/", 0, None).unwrap();
        writer
            .file("é<&>\n\u{1}\"".as_bytes(), 3, Some(0x0102))
            .unwrap();
        writer.file(b"\xff/f", 0, None).unwrap();
        writer.segment(b"").unwrap();
        writer.finish().unwrap();
        let expected = r#"{"type":2,"payload":"YWJj","position":0}
{"type":1,"name":"d/","payload":null,"position":1}
{"type":1,"name":"é\u003c\u0026\u003e\n\u0001\"","size":3,"payload":"AAAAAAAAAQI=","position":2}
{"type":1,"name_raw":"/y9m","payload":null,"position":3}
{"type":2,"payload":"","position":4}
"#;
        assert_eq!(String::from_utf8(out.clone()).unwrap(), expected);
        let mut reader = TarSplitReader::new(&out[..]);
        let mut lines = Vec::new();
        while let Some(line) = reader.next_line().unwrap() {
            lines.push(line);
        }
        assert_eq!(lines.len(), 5);
        assert_eq!(lines[0], TarSplitLine::Segment(b"abc".to_vec()));
        let file = TarSplitLine::File {
            name: "é<&>\n\u{1}\"".as_bytes().to_vec(),
            size: 3,
            crc: Some(0x0102),
        };
        assert_eq!(lines[2], file);
    }

    #[test]
    fn garbage_is_an_error_that_names_the_line() {
        for bad in [
            "x",
            "{}",
            "[]",
            r#"{"type":3,"payload":"","position":1}"#,
            r#"{"type":2,"payload":"*","position":1}"#,
            r#"{"type":2,"payload":"","position":7}"#,
            r#"{"type":1,"name":"a","size":-1,"payload":null,"position":1}"#,
            r#"{"type":1,"name":"a","size":1,"payload":"AAAA","position":1}"#,
            r#"{"type":1,"name_raw":"?","payload":null,"position":1}"#,
        ] {
            let text = format!("{{\"type\":2,\"payload\":\"\",\"position\":0}}\n{bad}\n");
            let mut reader = TarSplitReader::new(text.as_bytes());
            reader.next_line().unwrap();
            let error = reader.next_line().unwrap_err().to_string();
            assert!(error.contains("line 2"), "{bad}: {error}");
        }
    }
}
