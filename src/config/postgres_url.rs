//! `postgres.url`: words that the `postgres` crate does not know, or that txrelay sets itself, are found first, because
//! the crate's own messages name neither the remedy nor always only the word.

use postgres::config::{Config, Host, TargetSessionAttrs};

use super::postgres_tls::{PostgresTls, TlsMode, TlsWords};

/// A connection string in URL or keyword form, checked, and what its words about TLS mean. Always asks for a writable server.
///
/// # Errors
/// One sentence, which never repeats any of it but the names of libpq's own words, and the names of files.
pub(super) fn parse(text: &str) -> Result<(Config, PostgresTls), String> {
    let words = words(text).ok_or(FORM)?;
    let mut tls = TlsWords::default();
    for (word, value) in &words {
        match tls.place(word) {
            Some(place) => *place = Some(value.clone()),
            None => check_word(word)?,
        }
    }
    let mut config: Config = without_tls(text, &words).parse().map_err(|_| FORM)?;
    let n_hosts = config.get_hosts().len().max(config.get_hostaddrs().len());
    if config.get_password().is_some() {
        return Err(PASSWORD.into());
    }
    if n_hosts == 0 {
        return Err("names no host: postgresql://user@host/database, or host=/run/postgresql for this machine's socket".into());
    }
    if !matches!(config.get_ports().len(), n if n <= 1 || n == n_hosts) {
        return Err("must name one port, or one for each host".into());
    }
    if !config.get_hosts().is_empty()
        && !config.get_hostaddrs().is_empty()
        && config.get_hosts().len() != config.get_hostaddrs().len()
    {
        return Err("must name as many addresses (hostaddr) as hosts".into());
    }
    if config.get_hosts().is_empty() {
        // An address is a name, too: certificates may hold it.
        for address in config.get_hostaddrs().to_vec() {
            config.host(&address.to_string());
        }
    }
    let tls = tls.mean()?;
    let n_sockets = config.get_hosts().iter().filter(|host| matches!(host, Host::Unix(_))).count();
    if n_sockets > 0 && n_sockets < n_hosts {
        return Err("names sockets and hosts together: name sockets only, or hosts only".into());
    }
    if n_sockets > 0 && !config.get_hostaddrs().is_empty() {
        return Err("names a socket and an address (hostaddr): name one of them".into());
    }
    if n_sockets > 0 && !matches!(tls.mode, TlsMode::Disable | TlsMode::Prefer) {
        return Err("asks for TLS over a socket of this machine, where there is none: take sslmode out".into());
    }
    config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    Ok((config, tls))
}

/// The connection string without the words about TLS: the crate rejects some of them.
fn without_tls(text: &str, words: &[(String, String)]) -> String {
    let about_tls = |word: &str| TlsWords::default().place(word).is_some();
    if text.contains("://") {
        let after_user = text.find('@').map_or(0, |at| at + 1);
        let Some((base, query)) = text[after_user..].split_once('?') else { return text.to_owned() };
        let rest = query.split('&').filter(|pair| !about_tls(&decode(pair.split('=').next().unwrap_or_default())));
        return format!("{}{base}?{}", &text[..after_user], rest.collect::<Vec<_>>().join("&"));
    }
    let quote = |value: &str| format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"));
    let rest = words.iter().filter(|(word, _)| !about_tls(word));
    rest.map(|(word, value)| format!("{word}={}", quote(value))).collect::<Vec<_>>().join(" ")
}

const FORM: &str =
    "must be a connection URL such as \"postgresql://user@host:5432/database\", or \"host=... user=... dbname=...\"";
const PASSWORD: &str = "holds a password, which goes into a file that postgres.password_file names: take it out";

fn check_word(word: &str) -> Result<(), String> {
    match word {
        "password" | "sslpassword" => Err(PASSWORD.into()),
        "sslcrl" | "sslcrldir" | "sslnegotiation" | "requiressl" | "gssencmode" => {
            Err(format!("holds {word}, which is not supported: take it out (sslmode, sslrootcert, sslcert, sslkey are)"))
        }
        "target_session_attrs" | "application_name" | "options" => Err(format!("holds {word}, which txrelay sets itself: take it out")),
        "user" | "dbname" | "host" | "hostaddr" | "port" | "connect_timeout" | "tcp_user_timeout" | "keepalives" | "keepalives_idle"
        | "keepalives_interval" | "keepalives_retries" | "load_balance_hosts" | "channel_binding" => Ok(()),
        // What stands there may be anything, a piece of a password too: it is not repeated.
        _ => Err("holds a word that is not supported; user, dbname, host, hostaddr, port, connect_timeout, tcp_user_timeout, keepalives, \
                  keepalives_idle, keepalives_interval, keepalives_retries, load_balance_hosts, channel_binding, sslmode, sslrootcert, \
                  sslcert and sslkey are"
            .into()),
    }
}

/// Every word and value of the string; user info of a URL as `user` and `password`. `None`: neither form.
fn words(text: &str) -> Option<Vec<(String, String)>> {
    match text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://")) {
        Some(url) => url_words(url),
        None if text.contains("://") => None,
        None => keyword_words(text),
    }
}

fn url_words(url: &str) -> Option<Vec<(String, String)>> {
    let mut words = Vec::new();
    // As the crate and libpq do: everything before the first @ is user info.
    let mut rest = url;
    if let Some((info, after)) = url.split_once('@') {
        rest = after;
        words.push(if info.contains(':') { ("password".into(), String::new()) } else { ("user".into(), String::new()) });
    }
    let Some((_, query)) = rest.split_once('?') else { return Some(words) };
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (word, value) = pair.split_once('=')?;
        words.push((decode(word), decode(value)));
    }
    Some(words)
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex =
            tail.get(..2).filter(|_| *first == b'%').and_then(|h| u8::from_str_radix(std::str::from_utf8(h).ok()?, 16).ok());
        bytes.push(hex.unwrap_or(*first));
        rest = if hex.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `word = value` with single quotes and backslashes, as libpq reads it.
fn keyword_words(text: &str) -> Option<Vec<(String, String)>> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (word, after) = rest.split_once('=')?;
        let word = word.trim_end();
        if word.is_empty() || word.contains(char::is_whitespace) {
            return None;
        }
        let after = after.trim_start();
        let quoted = after.starts_with('\'');
        let mut value = String::new();
        let mut chars = after.char_indices().skip(usize::from(quoted));
        let mut end = (!quoted).then_some(after.len());
        while let Some((i, c)) = chars.next() {
            match c {
                '\\' => value.extend(chars.next().map(|(_, c)| c)),
                '\'' if quoted => {
                    end = Some(i + 1);
                    break;
                }
                c if !quoted && c.is_whitespace() => {
                    end = Some(i);
                    break;
                }
                c => value.push(c),
            }
        }
        words.push((word.to_string(), value));
        rest = after[end?..].trim_start();
    }
    if words.is_empty() { None } else { Some(words) }
}
