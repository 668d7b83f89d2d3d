//! The lines of CRIU's log that say why it failed.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// As much of a log as is looked at. Errors come early: what follows the first is its consequence.
const MAX_BYTES: u64 = 1 << 20;

/// As many lines as an error message carries.
const MAX_LINES: usize = 6;

/// What CRIU calls an error and works on regardless: raising its own limits without CAP_SYS_RESOURCE.
const HARMLESS: [&str; 1] = ["rlimit: Can't setup RLIMIT_NOFILE for self"];

/// The first lines in the log that are errors, without time stamps; empty where there are none.
pub fn first_errors(log: &Path) -> io::Result<Vec<String>> {
    let mut bytes = Vec::new();
    File::open(log)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(errors_in(&String::from_utf8_lossy(&bytes)))
}

/// The error lines of a failed operation, or a line that says why there are none.
pub fn explain(log: &Path) -> Vec<String> {
    match first_errors(log) {
        Ok(lines) if lines.is_empty() => vec![format!("{} names no error", log.display())],
        Ok(lines) => lines,
        Err(error) => vec![format!("{} cannot be read: {error}", log.display())],
    }
}

fn errors_in(text: &str) -> Vec<String> {
    let errors = text.lines().filter(|line| line.contains("Error ("));
    errors
        .filter(|line| !HARMLESS.iter().any(|harmless| line.contains(harmless)))
        .take(MAX_LINES)
        .map(|line| without_time(line).to_owned())
        .collect()
}

/// `(00.131990)    949: Error (file.c:94): text` without its first part.
fn without_time(line: &str) -> &str {
    line.strip_prefix('(')
        .and_then(|rest| rest.split_once(')'))
        .map_or(line, |(_, rest)| rest.trim_start())
}

#[cfg(test)]
mod tests {
    use super::{MAX_LINES, errors_in, explain};
    use std::path::Path;

    #[test]
    fn the_causes_are_found_and_the_noise_is_not() {
        let log = "(00.055749) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n\
                   (00.063658) Warn  (criu/cr-restore.c:1050): Set CLONE_PARENT\n\
                   (00.131990)    949: Error (soccr/soccr.c:94): Can't turn TCP repair mode ON: Operation not permitted\n\
                   (00.135061) Error (criu/cr-restore.c:2331): Restoring FAILED.\n";
        let lines = errors_in(log);
        assert_eq!(lines.len(), 2);
        assert_eq!(
            lines[0],
            "949: Error (soccr/soccr.c:94): Can't turn TCP repair mode ON: Operation not permitted"
        );
    }

    #[test]
    fn a_flood_of_errors_is_cut() {
        let log = "Error (x.c:1): again\n".repeat(100);
        assert_eq!(errors_in(&log).len(), MAX_LINES);
    }

    #[test]
    fn a_missing_log_is_said_to_be_missing() {
        let lines = explain(Path::new("/nonexistent/dump.log"));
        assert!(lines[0].contains("cannot be read"), "{lines:?}");
    }
}
