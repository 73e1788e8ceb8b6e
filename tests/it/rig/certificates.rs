//! Certificates for tests: an authority, and what it has issued.

use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{SslAcceptor, SslFiletype, SslMethod, SslVerifyMode};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::{X509, X509Builder, X509Name, X509NameBuilder};

pub struct Authority {
    certificate: X509,
    key: PKey<Private>,
}

/// A certificate and its key, as files.
pub struct Issued {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

const DAY: i64 = 86_400;

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = new_key();
        let mut builder = begin(name, &key, -DAY, 30 * DAY);
        builder.set_issuer_name(&common_name(name)).expect("an issuer");
        builder.append_extension(BasicConstraints::new().critical().ca().build().expect("CA")).expect("an extension");
        builder.sign(&key, MessageDigest::sha256()).expect("signed");
        Self { certificate: builder.build(), key }
    }

    pub fn write(&self, file: &Path) -> PathBuf {
        std::fs::write(file, self.certificate.to_pem().expect("PEM")).expect("written");
        file.to_owned()
    }

    /// What a server shows that has this certificate; clients of `authority` only, where one is given.
    pub fn acceptor(issued: &Issued, clients: Option<&Authority>) -> SslAcceptor {
        let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).expect("an acceptor");
        builder.set_certificate_chain_file(&issued.certificate).expect("a certificate");
        builder.set_private_key_file(&issued.key, SslFiletype::PEM).expect("a key");
        if let Some(authority) = clients {
            let mut store = X509StoreBuilder::new().expect("a store");
            store.add_cert(authority.certificate.clone()).expect("a certificate");
            builder.set_cert_store(store.build());
            builder.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
        }
        builder.build()
    }

    /// For `host` (a DNS name, or a user's name), valid for a day from now or no longer.
    pub fn issue(&self, host: &str, expired: bool, folder: &Path, stem: &str) -> Issued {
        self.issue_until(host, if expired { -DAY } else { DAY }, folder, stem)
    }

    /// That ends so many seconds from now.
    pub fn issue_until(&self, host: &str, ends: i64, folder: &Path, stem: &str) -> Issued {
        let key = new_key();
        let mut builder = begin(host, &key, ends.min(0) - DAY, ends);
        builder.set_issuer_name(self.certificate.subject_name()).expect("an issuer");
        let name = SubjectAlternativeName::new().dns(host).build(&builder.x509v3_context(Some(&self.certificate), None));
        builder.append_extension(name.expect("a name")).expect("an extension");
        builder.sign(&self.key, MessageDigest::sha256()).expect("signed");
        let issued = Issued { certificate: folder.join(format!("{stem}.crt")), key: folder.join(format!("{stem}.key")) };
        std::fs::write(&issued.certificate, builder.build().to_pem().expect("PEM")).expect("written");
        write_private(&issued.key, &key.private_key_to_pem_pkcs8().expect("PEM"));
        issued
    }
}

/// A file that only its owner may read.
pub fn write_private(file: &Path, content: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(file, content).expect("written");
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).expect("chmod");
}

fn new_key() -> PKey<Private> {
    let curve = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("a curve");
    PKey::from_ec_key(EcKey::generate(&curve).expect("a key")).expect("a key")
}

fn common_name(name: &str) -> X509Name {
    let mut builder = X509NameBuilder::new().expect("a name");
    builder.append_entry_by_text("CN", name).expect("a name");
    builder.build()
}

fn begin(name: &str, key: &PKey<Private>, from: i64, to: i64) -> X509Builder {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs() as i64;
    let at = |seconds: i64| Asn1Time::from_unix(now + seconds).expect("a time");
    let mut serial = BigNum::new().expect("a number");
    serial.rand(64, MsbOption::MAYBE_ZERO, false).expect("random");
    let mut builder = X509Builder::new().expect("a certificate");
    builder.set_version(2).expect("version 3");
    builder.set_serial_number(&serial.to_asn1_integer().expect("a number")).expect("a number");
    builder.set_subject_name(&common_name(name)).expect("a subject");
    builder.set_pubkey(key).expect("a key");
    builder.set_not_before(&at(from)).expect("a time");
    builder.set_not_after(&at(to)).expect("a time");
    builder
}
