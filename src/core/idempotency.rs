//! The idempotency key: a transaction's id as an HTTP header value, the same on every attempt for ever.
//!
//! The encoding is injective: two ids never share a key, so the service never takes one transaction for another. It is
//! part of the interface (README.md, the request).

const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// Every byte outside 0x21-0x7E, and `%`, `"`, `\`, as `%XX` in upper case; everything else as it is.
pub fn encode(id: &str) -> String {
    let mut key = String::with_capacity(id.len() + 8);
    for &b in id.as_bytes() {
        if is_plain(b) {
            key.push(char::from(b));
        } else {
            key.push('%');
            key.push(char::from(HEX[usize::from(b >> 4)]));
            key.push(char::from(HEX[usize::from(b & 15)]));
        }
    }
    key
}

/// The id of a signed message (Standard Webhooks, `webhook-id`): the key, with dots encoded too. What is signed is id, time
/// and body with dots between them; an id with a dot of its own would let somebody move the borders.
pub fn webhook_id(id: &str) -> String {
    encode(id).replace('.', "%2E")
}

/// The key as a structured-field string (RFC 9651 section 3.3.3), as the IETF draft of the header asks for: the same
/// characters in double quotes. Nothing is left in the key that would need a backslash.
pub fn quoted(id: &str) -> String {
    format!("\"{}\"", encode(id))
}

/// The id of an unquoted key; `None` for anything that [`encode`] does not write.
pub fn decode(key: &str) -> Option<String> {
    let mut id = Vec::with_capacity(key.len());
    let mut bytes = key.bytes();
    while let Some(b) = bytes.next() {
        if is_plain(b) {
            id.push(b);
            continue;
        }
        let decoded = (b == b'%')
            .then_some(())
            .and_then(|()| Some(hex(bytes.next()?)? << 4 | hex(bytes.next()?)?))
            .filter(|d| !is_plain(*d))?;
        id.push(decoded);
    }
    String::from_utf8(id).ok()
}

fn is_plain(b: u8) -> bool {
    matches!(b, 0x21..=0x7e) && !matches!(b, b'%' | b'"' | b'\\')
}

fn hex(digit: u8) -> Option<u8> {
    HEX.iter().position(|h| *h == digit).and_then(|p| u8::try_from(p).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_written_as_the_interface_says() {
        for (id, key) in [
            ("tx-1", "tx-1"),
            ("a b", "a%20b"),
            ("100%", "100%25"),
            (r#"say "hi" \o/"#, r"say%20%22hi%22%20%5Co/"),
            ("ä€", "%C3%A4%E2%82%AC"),
            ("\r\nX: y\u{7f}", "%0D%0AX:%20y%7F"),
        ] {
            assert_eq!(encode(id), key);
            assert_eq!(quoted(id), format!("\"{key}\""));
        }
    }

    #[test]
    fn a_signed_messages_id_holds_no_dot_and_is_still_the_only_one_of_its_kind() {
        assert_eq!(webhook_id("a.b"), "a%2Eb");
        assert_eq!(webhook_id("a%2Eb"), "a%252Eb");
        assert_eq!(webhook_id("tx-1"), "tx-1");
    }

    #[test]
    fn what_was_not_encoded_is_not_decoded() {
        for bad in ["%", "%4", "%zz", "%c3%a4", "%41", "a b", "ä", "%FF", "\"x\""] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }

    proptest! {
        /// What decodes to its origin is injective.
        #[test]
        fn no_two_ids_share_a_key(id in any::<String>()) {
            let key = encode(&id);
            prop_assert!(key.bytes().all(|b| (0x21..=0x7e).contains(&b)));
            prop_assert_eq!(decode(&key), Some(id));
        }
    }
}
