//! Times of images: RFC 3339, as configurations have them, and as people read them.

use std::time::{Duration, SystemTime};

/// Parses a time with any offset from UTC, as Go writes it. `None` if it is none.
pub(super) fn parse(text: &str) -> Option<SystemTime> {
    let text = text.trim();
    if !text.is_ascii() {
        return None;
    }
    if let Some(utc) = text.strip_suffix(['Z', 'z']) {
        return humantime::parse_rfc3339_weak(&format!("{utc}Z")).ok();
    }
    // The offset has six characters: +02:00.
    let (time, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let (hours, minutes): (u64, u64) = (hours.parse().ok()?, minutes.parse().ok()?);
    let offset_by = Duration::from_secs((hours * 60 + minutes) * 60);
    let local = humantime::parse_rfc3339_weak(&format!("{time}Z")).ok()?;
    match offset.as_bytes().first()? {
        b'+' => local.checked_sub(offset_by),
        b'-' => local.checked_add(offset_by),
        _ => None,
    }
}

/// Returns a time as people read it: `3 weeks ago`; `-` if it is unknown.
pub(super) fn since(created: Option<&str>) -> String {
    match created.and_then(parse) {
        Some(time) => ago(SystemTime::now().duration_since(time).unwrap_or_default()),
        None => "-".to_owned(),
    }
}

/// As [`since`], for seconds since 1970.
pub(super) fn since_seconds(seconds: u64) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    let passed = time.map(|time| SystemTime::now().duration_since(time).unwrap_or_default());
    passed.map_or("-".to_owned(), ago)
}

/// Returns seconds since 1970 as RFC 3339; `-` beyond the year 9999.
pub(super) fn absolute(seconds: u64) -> String {
    // The last second that the format can show.
    if seconds > 253_402_300_799 {
        return "-".to_owned();
    }
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    humantime::format_rfc3339_seconds(time).to_string()
}

/// The words of Docker's `units.HumanDuration`.
fn ago(passed: Duration) -> String {
    let seconds = passed.as_secs();
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    let text = match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours <= 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    };
    text + " ago"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_engines_are_read() {
        let seconds = |text: &str| {
            let time = parse(text)?;
            Some(time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs())
        };
        assert_eq!(seconds("1970-01-01T00:01:00Z"), Some(60));
        assert_eq!(seconds("1970-01-01T01:00:05.123456789Z"), Some(3605));
        assert_eq!(seconds("1970-01-01T02:00:00+02:00"), Some(0));
        assert_eq!(seconds("1970-01-01T02:00:00.5-01:30"), Some(12600));
        for bad in [
            "",
            "Z",
            "yesterday",
            "1970-01-01",
            "+02:00",
            "ä+02:00",
            "x+99:99",
        ] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
        assert_eq!(since(Some("never")), "-");
        assert_eq!(since(None), "-");
        assert_eq!(absolute(60), "1970-01-01T00:01:00Z");
        assert_eq!(absolute(u64::MAX), "-");
    }

    #[test]
    fn durations_are_those_of_docker() {
        for (seconds, text) in [
            (0, "Less than a second ago"),
            (1, "1 second ago"),
            (59, "59 seconds ago"),
            (60, "About a minute ago"),
            (3599, "59 minutes ago"),
            (3600, "About an hour ago"),
            (7200, "2 hours ago"),
            (3 * 86400, "3 days ago"),
            (21 * 86400, "3 weeks ago"),
            (100 * 86400, "3 months ago"),
            (800 * 86400, "2 years ago"),
        ] {
            assert_eq!(ago(Duration::from_secs(seconds)), text, "{seconds}");
        }
    }
}
