//! Work that may block a thread: storage drivers, mounts, files.

/// Runs `work` on a thread that may block. Once begun it goes on even when the caller is dropped.
pub async fn run<T, F>(work: F) -> T
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is being shut down: nobody is left who could use an answer.
            Err(_) => std::future::pending().await,
        },
    }
}
