//! Which host has a container, when a migration may have ended either way.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::testbed::Host;
use crate::tranship::wait_for;

/// Both hosts decide what is in doubt within this time once both are back.
const DECIDED: Duration = Duration::from_secs(30);

/// The host on which the container runs. As soon as the daemons have talked the other one knows that it does not.
///
/// # Errors
/// They do not agree within 30 s, or both ran it for a while.
pub fn the_one_that_runs<'a>(container: &str, a: &'a Host, b: &'a Host) -> Result<&'a Host> {
    let mut states = (None, None);
    let mut both = false;
    wait_for(
        "one host to run the container and the other one to know it",
        DECIDED,
        || {
            states = (state(a, container)?, state(b, container)?);
            // The first may have handed over while the second was asked; one that still runs has not.
            both |= runs(&states.0) && runs(&states.1) && runs(&state(a, container)?);
            Ok((runs(&states.0) && gave_up(&states.1)) || (runs(&states.1) && gave_up(&states.0)))
        },
    )
    .with_context(|| format!("on a it is {:?}, on b {:?}", states.0, states.1))?;
    ensure!(!both, "for a while both hosts ran the container");
    Ok(if runs(&states.0) { a } else { b })
}

/// The container's state on a host, if it is there.
fn state(host: &Host, container: &str) -> Result<Option<String>> {
    let found = host.try_tranship(&["inspect", container])?;
    if !found.status.success() {
        return Ok(None);
    }
    let records: Value = serde_json::from_str(&found.text())?;
    Ok(records[0]["state"].as_str().map(str::to_owned))
}

fn runs(state: &Option<String>) -> bool {
    state.as_deref() == Some("running")
}

fn gave_up(state: &Option<String>) -> bool {
    matches!(state.as_deref(), None | Some("moved"))
}
