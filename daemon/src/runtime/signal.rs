//! Signals by name or number, as people and images write them.

use std::str::FromStr;

use nix::sys::signal::Signal;
use tranship_proto::v1::ContainerSpec;

use super::image_config::ImageConfig;

/// Not a signal.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a signal: give a name such as SIGTERM or a number from 1 to 64")]
pub struct UnknownSignal(pub String);

/// The highest signal number of Linux.
const LAST_SIGNAL: i32 = 64;

/// The number of a signal given as `SIGTERM`, `term`, `15`, `RTMIN+3` or `SIGRTMAX-1`.
///
/// # Errors
/// It is none of these.
pub fn parse_signal(text: &str) -> Result<i32, UnknownSignal> {
    let unknown = || UnknownSignal(text.to_owned());
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=LAST_SIGNAL).contains(&number) {
            Ok(number)
        } else {
            Err(unknown())
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if name.starts_with("RTM") {
        return real_time(name).ok_or_else(unknown);
    }
    Signal::from_str(&format!("SIG{name}"))
        .map(|signal| signal as i32)
        .map_err(|_| unknown())
}

fn real_time(name: &str) -> Option<i32> {
    let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    let number = if let Some(offset) = name.strip_prefix("RTMIN") {
        first + offset_of(offset, '+')?
    } else {
        last - offset_of(name.strip_prefix("RTMAX")?, '-')?
    };
    (first..=last).contains(&number).then_some(number)
}

fn offset_of(text: &str, sign: char) -> Option<i32> {
    if text.is_empty() {
        Some(0)
    } else {
        text.strip_prefix(sign)?.parse::<u8>().ok().map(i32::from)
    }
}

/// The signal that asks a container to stop: the user's, else the image's, else SIGTERM.
///
/// # Errors
/// The one that was given is not a signal.
pub fn stop_signal(spec: &ContainerSpec, image: &ImageConfig) -> Result<i32, UnknownSignal> {
    let given = if spec.stop_signal.is_empty() {
        &image.stop_signal
    } else {
        &spec.stop_signal
    };
    if given.is_empty() {
        Ok(libc::SIGTERM)
    } else {
        parse_signal(given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_mean_the_same() {
        for text in ["SIGTERM", "TERM", "term", "15"] {
            assert_eq!(parse_signal(text), Ok(15), "{text}");
        }
        assert_eq!(parse_signal("SIGRTMIN+3"), Ok(libc::SIGRTMIN() + 3));
        assert_eq!(parse_signal("rtmax"), Ok(64));
        for text in ["", "0", "65", "-9", "SIGFOO", "RTMIN+99", "RTMIN-1", "RTMAX+1"] {
            assert!(parse_signal(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_users_stop_signal_wins_over_the_images() {
        let image = ImageConfig {
            stop_signal: "SIGINT".to_owned(),
            ..ImageConfig::default()
        };
        let mut spec = ContainerSpec::default();
        assert_eq!(stop_signal(&spec, &image), Ok(2));
        assert_eq!(stop_signal(&spec, &ImageConfig::default()), Ok(15));
        spec.stop_signal = "QUIT".to_owned();
        assert_eq!(stop_signal(&spec, &image), Ok(3));
    }
}
