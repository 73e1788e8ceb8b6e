//! Text that may be stored in PostgreSQL and shown on a terminal, whatever bytes it came from.

/// Bytes of an error text in `attempt.error`.
pub const ERROR_MAX: usize = 1024;

/// Turns bytes of any origin into text of at most `max_bytes` bytes: valid UTF-8 (anything else becomes U+FFFD), no NUL
/// and no other control character (line breaks and tabs become spaces, the rest U+FFFD), cut on a character's boundary.
/// PostgreSQL refuses NUL, and a terminal obeys escape sequences.
pub fn clean_text(bytes: &[u8], max_bytes: usize) -> String {
    let mut text = String::with_capacity(bytes.len().min(max_bytes));
    for chunk in bytes.utf8_chunks() {
        let invalid = (!chunk.invalid().is_empty()).then_some(char::REPLACEMENT_CHARACTER);
        for c in chunk.valid().chars().chain(invalid) {
            let c = match c {
                '\n' | '\r' | '\t' => ' ',
                c if c.is_control() => char::REPLACEMENT_CHARACTER,
                c => c,
            };
            if text.len() + c.len_utf8() > max_bytes {
                return text;
            }
            text.push(c);
        }
    }
    text
}

/// A text as one word of a command line that somebody may copy into a shell: an id may hold anything, a command too.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+=,".contains(c);
    let is_option = text.starts_with('-');
    match text {
        // zsh expands a word that begins with =.
        _ if !text.is_empty() && !is_option && !text.starts_with('=') && text.chars().all(plain) => text.to_owned(),
        // A word that begins with - is an option unless `--` comes before.
        _ if is_option => format!("-- '{}'", text.replace('\'', r"'\''")),
        _ => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_id_is_one_word_of_a_shell_whatever_it_holds() {
        for (text, word) in [
            ("p-4711", "p-4711"),
            ("a/b:c@d", "a/b:c@d"),
            ("", "''"),
            ("two words", "'two words'"),
            ("x;reboot", "'x;reboot'"),
            ("$(reboot)", "'$(reboot)'"),
            ("it's", r"'it'\''s'"),
            ("--state", "-- '--state'"),
        ] {
            assert_eq!(shell_word(text), word);
        }
    }

    #[test]
    fn whatever_a_service_answers_can_be_stored() {
        assert_eq!(clean_text(b"plain", 100), "plain");
        assert_eq!(clean_text(b"two\r\nlines\tand a tab", 100), "two  lines and a tab");
        assert_eq!(clean_text(b"a\0b\x1b[31mc\x7f", 100), "a\u{fffd}b\u{fffd}[31mc\u{fffd}");
        assert_eq!(clean_text(b"a\xff\xfeb", 100), "a\u{fffd}\u{fffd}b");
        assert_eq!(clean_text("äöü".as_bytes(), 3), "ä");
        assert_eq!(clean_text(b"anything", 0), "");
    }

    proptest! {
        #[test]
        fn cleaned_text_is_bounded_and_has_no_control_characters(bytes: Vec<u8>, max in 0usize..64) {
            let text = clean_text(&bytes, max);
            prop_assert!(text.len() <= max);
            prop_assert!(!text.chars().any(char::is_control));
        }
    }
}
