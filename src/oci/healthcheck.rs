//! The instruction HEALTHCHECK of a Dockerfile.
//!
//! ```text
//! HEALTHCHECK NONE
//! HEALTHCHECK [--interval=T] [--timeout=T] [--start-period=T] [--start-interval=T] [--retries=N] CMD …
//! ```
//! Times are durations of Go, such as `1m30s`; the configuration has nanoseconds (moby,
//! builder/dockerfile; Dockerfile reference).

use serde_json::{Map, Value, json};

/// The shortest time that Docker accepts, in nanoseconds.
const SHORTEST: u64 = 1_000_000;

const USAGE: &str = "write HEALTHCHECK NONE, or HEALTHCHECK [--interval=T] [--timeout=T] \
    [--start-period=T] [--start-interval=T] [--retries=N] CMD COMMAND, with times such as 1m30s";

/// Returns the value of `Healthcheck` in the configuration. The error is the reason.
pub(super) fn parse(rest: &str) -> Result<Value, &'static str> {
    let mut check = Map::new();
    let mut rest = rest.trim();
    while let Some(flag) = rest.strip_prefix("--") {
        let (flag, after) = flag.split_once(char::is_whitespace).ok_or(USAGE)?;
        let (name, value) = flag.split_once('=').ok_or(USAGE)?;
        let key = match name {
            "interval" => "Interval",
            "timeout" => "Timeout",
            "start-period" => "StartPeriod",
            "start-interval" => "StartInterval",
            "retries" => "Retries",
            _ => return Err(USAGE),
        };
        let number = if key == "Retries" {
            value.parse::<u32>().map_err(|_| USAGE)?.into()
        } else {
            let time = nanoseconds(value).ok_or(USAGE)?;
            if (1..SHORTEST).contains(&time) {
                return Err("a time of a health check is 0 or at least 1ms");
            }
            time
        };
        check.insert(key.to_owned(), json!(number));
        rest = after.trim_start();
    }
    let (kind, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let command = command.trim();
    let test = match kind.to_ascii_uppercase().as_str() {
        "NONE" if command.is_empty() && check.is_empty() => json!(["NONE"]),
        "CMD" if !command.is_empty() => match serde_json::from_str::<Vec<String>>(command) {
            Ok(words) if words.is_empty() => return Err(USAGE),
            Ok(words) => json!([vec!["CMD".to_owned()], words].concat()),
            Err(_) => json!(["CMD-SHELL", command]),
        },
        _ => return Err(USAGE),
    };
    check.insert("Test".to_owned(), test);
    Ok(Value::Object(check))
}

/// Parses a duration as Go's time.ParseDuration does, without a sign.
fn nanoseconds(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("μs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    if text == "0" {
        return Some(0);
    }
    let mut total = 0u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let length = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(length);
        let (_, size) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.len() > 9 {
            return None;
        }
        let whole: u64 = if whole.is_empty() {
            0
        } else {
            whole.parse().ok()?
        };
        total = total.checked_add(whole.checked_mul(*size)?)?;
        if !fraction.is_empty() {
            let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
            let part = u128::from(*size) * fraction.parse::<u128>().ok()? / scale;
            total = total.checked_add(u64::try_from(part).ok()?)?;
        }
        rest = after;
    }
    // Go's durations are signed.
    (!text.is_empty() && i64::try_from(total).is_ok()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        let second = 1_000_000_000;
        assert_eq!(nanoseconds("1m30s"), Some(90 * second));
        assert_eq!(nanoseconds("1.5h"), Some(5400 * second));
        assert_eq!(nanoseconds(".5s"), Some(second / 2));
        assert_eq!(nanoseconds("100ms"), Some(second / 10));
        assert_eq!(nanoseconds("3µs"), Some(3000));
        assert_eq!(nanoseconds("0"), Some(0));
        for bad in [
            "",
            "5",
            "s",
            "-1s",
            "1d",
            "1s2",
            ".s",
            "99999999999h",
            "1..5s",
        ] {
            assert_eq!(nanoseconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn checks_are_written_as_docker_writes_them() {
        let check = parse("--interval=5m --retries=3 CMD curl -f http://localhost/ || exit 1");
        assert_eq!(
            check.unwrap(),
            json!({
                "Interval": 300_000_000_000u64, "Retries": 3,
                "Test": ["CMD-SHELL", "curl -f http://localhost/ || exit 1"],
            })
        );
        assert_eq!(
            parse("cmd [\"/check\", \"-v\"]").unwrap(),
            json!({"Test": ["CMD", "/check", "-v"]})
        );
        assert_eq!(parse("NONE").unwrap(), json!({"Test": ["NONE"]}));
        for bad in [
            "",
            "CMD",
            "CMD []",
            "NONE x",
            "--interval=5m NONE",
            "--interval=1us CMD x",
            "--what=1 CMD x",
            "--retries=-1 CMD x",
            "--interval CMD x",
            "RUN x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
