//! What OpenSSL's numbers mean.

use openssl::asn1::{Asn1Time, Asn1TimeRef};

/// Why the other side's certificate is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Too early.
    NotYetValid,
    /// Too late.
    Expired,
    /// Nobody whom we trust has signed it.
    Untrusted,
    /// Made for another host.
    Name,
    /// Its issuer has taken it back.
    Revoked,
    /// What signed it may not sign.
    NotACa,
    /// Too short a key, or too old a hash.
    Weak,
    /// Anything else.
    Chain,
}

impl Refusal {
    /// Of X509_V_ERR_* (x509_vfy.h).
    pub fn from_code(code: i32) -> Self {
        match code {
            9 => Self::NotYetValid,
            10 => Self::Expired,
            // 7: another CA of the same name.
            7 | 18..=21 => Self::Untrusted,
            23 => Self::Revoked,
            24 | 79 => Self::NotACa,
            62..=64 => Self::Name,
            66..=68 => Self::Weak,
            _ => Self::Chain,
        }
    }

    /// What follows "the certificate is not accepted: ".
    pub fn words(self) -> &'static str {
        match self {
            Self::NotYetValid => "it is not valid yet",
            Self::Expired => "it has expired",
            Self::Untrusted => "its issuer is not trusted",
            Self::Name => "it was made for another host name",
            Self::Revoked => "it was revoked",
            Self::NotACa => "its issuer is no CA",
            Self::Weak => "its key or its signature is too weak",
            Self::Chain => "OpenSSL refuses its chain",
        }
    }
}

/// What the other side says against us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alert {
    /// It does not take our certificate.
    Certificate,
    /// Ours has expired.
    Expired,
    /// It wants one and got none.
    Wanted,
}

impl Alert {
    /// Of OpenSSL's reason, which is 1000 + the alert's number (RFC 8446 section 6.2).
    pub fn from_reason(reason: i32) -> Option<Self> {
        match reason {
            // 1051: the signature of another CA of the same name.
            1042 | 1043 | 1044 | 1046 | 1048 | 1049 | 1051 => Some(Self::Certificate),
            1045 => Some(Self::Expired),
            1116 => Some(Self::Wanted),
            _ => None,
        }
    }
}

/// Seconds since the epoch; `None` for what no certificate holds.
pub fn unix_seconds(time: &Asn1TimeRef) -> Option<i64> {
    let since_epoch = Asn1Time::from_unix(0).ok()?.diff(time).ok()?;
    Some(i64::from(since_epoch.days) * 86_400 + i64::from(since_epoch.secs))
}
