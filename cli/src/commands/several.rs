//! One thing done to several names, as Docker does it: each name is printed when it is done, a failure does not keep the
//! others from their turn, and is the exit code in the end.

use crate::failure::Failure;
use crate::output::Output;

/// Does something to each name.
///
/// # Errors
/// [`Failure::Some`] when one of them failed; each failure has been told then.
pub async fn each(
    output: Output,
    names: &[String],
    mut act: impl AsyncFnMut(&str) -> Result<String, Failure>,
) -> Result<(), Failure> {
    let mut failed = 0;
    for name in names {
        match act(name).await {
            Ok(done) => output.line(&done)?,
            Err(failure) => {
                failure.print();
                failed += 1;
            }
        }
    }
    verdict(failed, names.len())
}

/// Collects a record for each name; those that could be had are printed even when others fail.
///
/// # Errors
/// As [`each`].
pub async fn inspect<T: serde::Serialize>(
    output: Output,
    names: &[String],
    mut get: impl AsyncFnMut(&str) -> Result<T, Failure>,
) -> Result<(), Failure> {
    let mut records = Vec::new();
    for name in names {
        match get(name).await {
            Ok(record) => records.push(record),
            Err(failure) => failure.print(),
        }
    }
    output.records(&records)?;
    verdict(names.len() - records.len(), names.len())
}

fn verdict(failed: usize, all: usize) -> Result<(), Failure> {
    if failed == 0 {
        Ok(())
    } else {
        Err(Failure::Some { failed, all })
    }
}
