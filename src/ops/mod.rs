//! placeholder
pub mod exporter;
pub mod health;
pub mod instance;
pub mod metrics;
pub mod signals;
pub mod spawn;
pub mod stop;
pub mod systemd {
    #![allow(missing_docs)]
    pub fn ready() {}
    pub fn status(_: &str) {}
    pub fn stopping() {}
    pub fn extend_timeout(_: std::time::Duration) {}
}
pub mod throttle {
    #![allow(missing_docs)]
    #[derive(Default)]
    pub struct Throttle;
    impl Throttle {
        pub fn admit(&mut self, _key: &str, _now: std::time::Instant) -> Option<String> {
            Some(String::new())
        }
    }
}
