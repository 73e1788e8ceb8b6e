//! Whether the service can be connected to: name, port, TLS. Nothing is sent, not even a request line.

use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use ureq::http::Uri;

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
            shake_hands(host, socket).map_err(|why| format!("{shown}: {why}"))?;
        }
        return Ok(format!("{shown} ({address})"));
    }
    Err(last)
}

fn shake_hands(host: &str, socket: TcpStream) -> Result<(), String> {
    let internal = |e: openssl::error::ErrorStack| format!("OpenSSL: {e}");
    let verdict = Arc::new(AtomicI32::new(0));
    let mut ssl = SslConnector::builder(SslMethod::tls_client()).map_err(internal)?.build().configure().map_err(internal)?;
    let seen = Arc::clone(&verdict);
    ssl.set_verify_callback(SslVerifyMode::PEER, move |accepted, context| {
        if !accepted {
            seen.store(context.error().as_raw(), Ordering::Relaxed);
        }
        accepted
    });
    match ssl.connect(host, socket) {
        Ok(_) => Ok(()),
        // X509_V_ERR_* of x509_vfy.h.
        Err(_) => Err(match verdict.load(Ordering::Relaxed) {
            0 => "the TLS handshake failed: is it an https port?",
            9 => "its certificate is not valid yet: is one of the clocks wrong?",
            10 => "its certificate has expired",
            62..=64 => "its certificate is for another host name",
            _ => "no CA that is trusted here has signed its certificate",
        }
        .to_owned()),
    }
}
