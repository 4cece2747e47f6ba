//! The limits of a container, as they are written on the command line.

/// Reads a number of bytes with the units of engines (b, k, m, g: powers of 1024).
pub(super) fn memory(text: &str) -> Result<i64, String> {
    let lower = text.to_ascii_lowercase();
    let (number, unit) = match lower.char_indices().next_back() {
        Some((at, 'b')) => (&lower[..at], 1),
        Some((at, 'k')) => (&lower[..at], 1 << 10),
        Some((at, 'm')) => (&lower[..at], 1 << 20),
        Some((at, 'g')) => (&lower[..at], 1 << 30),
        _ => (lower.as_str(), 1),
    };
    let bytes = number.parse().ok().filter(|number: &i64| *number > 0);
    let bytes = bytes.and_then(|number| number.checked_mul(unit));
    bytes.ok_or_else(|| "give a number of bytes above 0, such as 512m or 2g".into())
}

/// Reads a number of processes.
pub(super) fn processes(text: &str) -> Result<i64, String> {
    let number = text.parse().ok().filter(|number: &i64| *number > 0);
    number.ok_or_else(|| "give a number above 0".into())
}

/// Reads a number of processors.
pub(super) fn processors(text: &str) -> Result<f64, String> {
    // The kernel gives at least a millisecond of each period, which is a tenth of a second.
    let number = text.parse().ok();
    let number = number.filter(|number: &f64| (0.01..=1_000_000.0).contains(number));
    number.ok_or_else(|| "give a number of processors, at least 0.01, such as 1.5".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        assert_eq!(memory("1000"), Ok(1000));
        assert_eq!(memory("512m"), Ok(512 << 20));
        assert_eq!(memory("2G"), Ok(2 << 30));
        assert_eq!(memory("7b"), Ok(7));
        for wrong in [
            "",
            "m",
            "0",
            "-1",
            "1t",
            "1.5g",
            "9223372036854775807k",
            "\u{e9}",
        ] {
            assert!(memory(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(processes("20"), Ok(20));
        for wrong in ["", "0", "-1", "x"] {
            assert!(processes(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(processors("0.5"), Ok(0.5));
        for wrong in ["", "0", "-1", "nan", "inf", "0.001"] {
            assert!(processors(wrong).is_err(), "{wrong:?}");
        }
    }
}
