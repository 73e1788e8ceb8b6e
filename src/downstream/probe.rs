//! Whether the service can be connected to: name, port, TLS. Nothing is sent, not even a request line.

use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use ureq::http::Uri;

use super::credentials::Keyring;
use super::tls::Tls;
use crate::config;

/// Where it was connected to.
///
/// # Errors
/// One sentence that names the setting to look at.
pub fn probe(config: &config::Downstream) -> Result<String, String> {
    let uri: Uri = config.url.parse().map_err(|_| "downstream.url cannot be used".to_owned())?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let shown = config.origin();
    let words = |e: &std::io::Error| e.to_string().split(" (os error").next().unwrap_or_default().to_owned();
    let addresses = (host, port)
        .to_socket_addrs()
        .map_err(|e| format!("{shown}: the host name does not resolve ({}): is downstream.url right?", words(&e)))?;
    let mut last = format!("{shown}: the host name has no address: is downstream.url right?");
    for address in addresses {
        let socket = match TcpStream::connect_timeout(&address, config.connect_timeout) {
            Ok(socket) => socket,
            Err(e) => {
                last =
                    format!("{shown}: no connection to {address} ({}): is the service up, and downstream.url right?", words(&e));
                continue;
            }
        };
        if is_tls {
            let timeouts = socket
                .set_read_timeout(Some(config.connect_timeout))
                .and_then(|()| socket.set_write_timeout(Some(config.connect_timeout)));
            timeouts.map_err(|e| format!("{shown}: {}", words(&e)))?;
            shake_hands(config, host, socket).map_err(|why| format!("{shown}: {why}"))?;
        }
        return Ok(format!("{shown} ({address})"));
    }
    Err(last)
}

fn shake_hands(config: &config::Downstream, host: &str, socket: TcpStream) -> Result<(), String> {
    let keyring = Arc::new(Keyring::new(&config.security, true)?);
    let tls = Tls { keyring, service_expiry: Arc::new(AtomicI64::new(0)) };
    match tls.shake_hands(host, socket) {
        Ok(_) => Ok(()),
        Err(ureq::Error::Io(e)) => Err(format!("the TLS handshake broke off ({e}): is it an https port?")),
        Err(ureq::Error::Other(why)) => Err(why.to_string()),
        Err(other) => Err(other.to_string()),
    }
}
