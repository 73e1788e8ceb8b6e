//! Addresses that no transaction is ever sent to, whatever name leads there.
//!
//! A name is somebody else's to answer: who controls its DNS would otherwise have the machine's own metadata service, which
//! hands out credentials to whoever asks from inside, answer for the ledger (OWASP, server-side request forgery).

use ::core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Metadata services outside of the link-local ranges: Amazon's and Google's over IPv6, Alibaba's and Oracle's.
const METADATA: [IpAddr; 4] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

/// Why nothing is sent to this address; `None`: it may be the service's.
pub fn forbidden(ip: IpAddr) -> Option<&'static str> {
    let ip = unwrapped(ip);
    if METADATA.contains(&ip) {
        return Some("a cloud's metadata service");
    }
    match ip {
        // RFC 1122 section 3.2.1.3: this host on this network; Linux connects to itself.
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("no address of a service"),
        IpAddr::V4(v4) if v4.is_link_local() => Some("link-local, where clouds have their metadata service"),
        IpAddr::V4(v4) if v4.is_multicast() || v4.is_broadcast() => Some("many machines at once"),
        IpAddr::V6(v6) if v6.is_unspecified() => Some("no address of a service"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("link-local"),
        IpAddr::V6(v6) if v6.is_multicast() => Some("many machines at once"),
        _ => None,
    }
}

/// The IPv4 address inside of an IPv6 one: mapped (RFC 4291), compatible (old), or translated (RFC 6052).
fn unwrapped(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip else { return ip };
    let [a, b, c, d, e, f, high, low] = v6.segments();
    let inner = Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match [a, b, c, d, e, f] {
        [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0] => inner.into(),
        // ::, ::1 and the like stay what they are.
        [0, 0, 0, 0, 0, 0] if high != 0 => inner.into(),
        _ => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_and_link_local_addresses_are_forbidden_in_every_spelling() {
        for ip in [
            "169.254.169.254",
            "169.254.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "224.0.0.1",
            "100.100.100.200",
            "192.0.0.192",
            "::",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "::ffff:169.254.169.254",
            "::ffff:0.0.0.0",
            "::169.254.169.254",
            "64:ff9b::169.254.169.254",
        ] {
            assert!(forbidden(ip.parse().expect("an address")).is_some(), "{ip}");
        }
        for ip in
            ["127.0.0.1", "10.1.2.3", "192.168.1.1", "8.8.8.8", "::1", "fd00::1", "2001:db8::1", "::ffff:10.0.0.1", "169.253.1.1"]
        {
            assert_eq!(forbidden(ip.parse().expect("an address")), None, "{ip}");
        }
    }
}
