//! The helper of demo, tests and benches.
fn main() {}
