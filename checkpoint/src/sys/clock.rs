//! The clock that two processes on one host can compare.
#![expect(
    unsafe_code,
    reason = "clock_gettime has no safe wrapper among the features this workspace enables"
)]

/// Microseconds of `CLOCK_MONOTONIC`: the same clock in every process of a host.
pub fn monotonic_us() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a valid, writable timespec for the duration of the call, and CLOCK_MONOTONIC always exists, so
    // the call cannot fail and writes both fields.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let micros = u64::try_from(now.tv_nsec / 1000).unwrap_or(0);
    seconds * 1_000_000 + micros
}

#[cfg(test)]
mod tests {
    use super::monotonic_us;

    #[test]
    fn the_clock_never_goes_back() {
        let first = monotonic_us();
        assert!(first > 0);
        assert!(monotonic_us() >= first);
    }
}
