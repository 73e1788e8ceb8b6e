//! How much may be taken into memory.

use std::time::Duration;

/// Temporary until the core lands.
pub fn limit(workers: usize, mean_request: Duration, lease: Duration) -> usize {
    let per_worker = (lease.as_secs_f64() / 3.0) / mean_request.as_secs_f64().max(1e-6);
    ((workers as f64 * per_worker) as usize).clamp(1, 1024)
}
