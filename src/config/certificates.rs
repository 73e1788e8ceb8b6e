//! Files with certificates and keys in PEM form, looked at when the configuration is read: what is wrong is said there and not
//! at the first connection. Each error is one sentence without any of the content.

use std::path::{Path, PathBuf};

use openssl::pkey::{PKey, Private};
use openssl::x509::X509;

use super::secret;

/// The path as it is on this machine.
pub(super) fn path(written: &str) -> Result<PathBuf, String> {
    if is_hidden(written) {
        return Ok(written.into());
    }
    secret::expand(written, |variable| std::env::var_os(variable))
}

/// Whether only the main process can see it (see [`secret::is_hidden`]).
pub(super) fn is_hidden(written: &str) -> bool {
    secret::is_hidden(written, |variable| std::env::var_os(variable))
}

/// What a file of certificates holds, and that it holds some.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let pem = std::fs::read(path).map_err(|e| format!("{} cannot be read: {}", path.display(), super::io_text(&e)))?;
    parse(&pem, path).map(|_| pem)
}

/// Its certificates, the first one first.
pub(super) fn parse(pem: &[u8], path: &Path) -> Result<Vec<X509>, String> {
    match X509::stack_from_pem(pem) {
        Ok(stack) if !stack.is_empty() => Ok(stack),
        _ => Err(format!("{} holds no certificate in PEM form", path.display())),
    }
}

/// What a key's file holds. It is a secret: nobody else may read it.
pub(super) fn read_key(written: &str) -> Result<Vec<u8>, String> {
    if is_hidden(written) {
        return Ok(Vec::new());
    }
    let pem = secret::read_now(written)?;
    parse_key(&pem, written).map(|_| pem)
}

fn parse_key(pem: &[u8], shown: &str) -> Result<PKey<Private>, String> {
    // An empty passphrase, so that OpenSSL does not ask on the terminal for that of an encrypted key.
    PKey::private_key_from_pem_passphrase(pem, b"")
        .map_err(|_| format!("{shown} holds no private key in PEM form without a passphrase"))
}

/// Whether a key is that of the first certificate; both have been read.
pub(super) fn match_each_other(chain: &[u8], chain_file: &Path, key: &[u8], key_file: &str) -> Result<(), String> {
    let private = parse_key(key, key_file)?;
    let fits = parse(chain, chain_file)?[0].public_key().is_ok_and(|public| public.public_eq(&private));
    if fits { Ok(()) } else { Err(format!("{key_file} is not the key of the certificate in {}", chain_file.display())) }
}
