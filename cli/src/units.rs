//! Sizes, CPUs, durations and times, as people write and read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Text that is not the quantity it should be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UnitError {
    /// Not a size.
    #[error("not a size: write a number and b, k, m, g or t, such as 512m")]
    Size,
    /// Not a number of CPUs.
    #[error("not a number of cpus: write one such as 1.5, with nine decimal places at most")]
    Cpus,
    /// Not a duration.
    #[error("not a duration: write one such as 100ms, 30s or 1h")]
    Duration,
}

/// Bytes of a size such as `512m`; powers of 1024, as Docker has them.
pub fn size(text: &str) -> Result<u64, UnitError> {
    let text = text.trim().to_ascii_lowercase();
    let split = text
        .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(UnitError::Size),
    };
    let (whole, thousandths) = decimal(number, 3).ok_or(UnitError::Size)?;
    let scale = 1_u128 << shift;
    let bytes = u128::from(whole) * scale + u128::from(thousandths) * scale / 1000;
    u64::try_from(bytes).map_err(|_| UnitError::Size)
}

/// Billionths of a CPU of a number such as `1.5`.
pub fn nano_cpus(text: &str) -> Result<u64, UnitError> {
    let (whole, billionths) = decimal(text.trim(), 9).ok_or(UnitError::Cpus)?;
    whole
        .checked_mul(1_000_000_000)
        .and_then(|nano| nano.checked_add(billionths))
        .ok_or(UnitError::Cpus)
}

/// A duration such as `100ms`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    let seconds = text.parse().map(Duration::from_secs).ok();
    seconds
        .or_else(|| humantime::parse_duration(text).ok())
        .ok_or(UnitError::Duration)
}

/// The digits before and after the point, the latter filled up to `places`.
fn decimal(text: &str, places: usize) -> Option<(u64, u64)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole)
        || !digits(fraction)
        || fraction.len() > places
        || (whole.is_empty() && fraction.is_empty())
    {
        return None;
    }
    let filled = format!("{fraction:0<places$}");
    Some((
        if whole.is_empty() { 0 } else { whole.parse().ok()? },
        filled.parse().ok()?,
    ))
}

/// Bytes for people: three digits and a unit, powers of 1000 as Docker prints them.
pub fn show_bytes(bytes: u64) -> String {
    let mut unit = 0;
    let mut scaled = bytes as f64;
    while scaled >= 999.5 && unit < 5 {
        scaled /= 1000.0;
        unit += 1;
    }
    let name = ["B", "kB", "MB", "GB", "TB", "PB"][unit];
    match scaled {
        _ if unit == 0 => format!("{bytes} B"),
        small if small < 9.995 => format!("{small:.2} {name}"),
        middle if middle < 99.95 => format!("{middle:.1} {name}"),
        large => format!("{large:.0} {name}"),
    }
}

/// Microseconds as milliseconds.
pub fn show_us(microseconds: u64) -> String {
    let milliseconds = microseconds as f64 / 1000.0;
    if milliseconds < 100.0 {
        format!("{milliseconds:.1} ms")
    } else {
        format!("{milliseconds:.0} ms")
    }
}

/// How long ago a time was, in one unit.
pub fn show_age(milliseconds: i64) -> String {
    if milliseconds <= 0 {
        return String::from("never");
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis();
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    format!(
        "{} ago",
        show_span(now.saturating_sub(milliseconds).max(0) / 1000)
    )
}

/// Seconds in the largest unit they fill.
pub fn show_span(seconds: i64) -> String {
    let units = [
        ("week", 604_800),
        ("day", 86_400),
        ("hour", 3600),
        ("minute", 60),
        ("second", 1),
    ];
    let found = units.iter().find(|(_, length)| seconds >= *length);
    match found {
        None => "less than a second".to_owned(),
        Some((name, length)) => match seconds / length {
            1 => format!("1 {name}"),
            count => format!("{count} {name}s"),
        },
    }
}

/// A time in the local zone.
pub fn show_time(milliseconds: i64) -> String {
    let Ok(time) = jiff::Timestamp::from_millisecond(milliseconds) else {
        return milliseconds.to_string();
    };
    time.to_zoned(jiff::tz::TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(size("512m"), Ok(512 << 20));
        assert_eq!(size("1.5G"), Ok(3 << 29));
        assert_eq!(size("100"), Ok(100));
        assert_eq!(size("64KiB"), Ok(64 << 10));
        for bad in [
            "",
            "m",
            "-1m",
            "1x",
            "1.2.3m",
            "99999999999999999999",
            "20000000t",
            ".",
        ] {
            assert_eq!(size(bad), Err(UnitError::Size), "{bad:?}");
        }
    }

    #[test]
    fn cpus_are_exact_to_the_billionth() {
        assert_eq!(nano_cpus("1.5"), Ok(1_500_000_000));
        assert_eq!(nano_cpus(".000000001"), Ok(1));
        for bad in ["", "x", "-1", "1e3", "0.0000000001", "99999999999"] {
            assert_eq!(nano_cpus(bad), Err(UnitError::Cpus), "{bad:?}");
        }
    }

    #[test]
    fn durations_have_units_or_are_seconds() {
        assert_eq!(duration("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h 5m"), Ok(Duration::from_secs(3900)));
        assert_eq!(duration("soon"), Err(UnitError::Duration));
    }

    #[test]
    fn bytes_are_shown_with_three_digits() {
        let shown = [0, 999, 1000, 123_456, 1_073_741_824, u64::MAX].map(show_bytes);
        assert_eq!(
            shown,
            ["0 B", "999 B", "1.00 kB", "123 kB", "1.07 GB", "18447 PB"]
        );
    }

    #[test]
    fn spans_are_shown_in_one_unit() {
        assert_eq!(
            [0, 1, 59, 61, 7200, 90_000].map(show_span)[..],
            [
                "less than a second",
                "1 second",
                "59 seconds",
                "1 minute",
                "2 hours",
                "1 day"
            ]
        );
    }
}
