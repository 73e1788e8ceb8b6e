//! What guards the request: who we say that we are, whom we believe to be the service, and how it knows that the request is
//! ours. All of it stands in files, which are read here, when the configuration is loaded, and again whenever `downstream` asks.

use std::cell::RefCell;

use openssl::base64;

use super::problems::At;
use super::raw::Written;
use super::{certificates, http, secret};
use crate::core::outcome::Overrides;

/// `[downstream.auth]`, `[downstream.tls]` and `[downstream.signing]`: names of files, as written.
#[derive(Debug, Clone, Default)]
pub struct Security {
    /// Who we are.
    pub auth: Auth,
    /// Who the service is, and who we are.
    pub tls: ServiceTls,
    /// Secrets that sign.
    pub signing: Vec<String>,
}

/// `[downstream.auth]`
#[derive(Debug, Clone, Default)]
pub enum Auth {
    /// Nobody asks.
    #[default]
    None,
    /// `Authorization: Bearer`; the token's file.
    Bearer(String),
    /// `Authorization: Basic`: the user, and the password's file.
    Basic(String, String),
    /// A header's name, and its value's file.
    Header(String, String),
}

/// `[downstream.tls]`
#[derive(Debug, Clone, Default)]
pub struct ServiceTls {
    /// `None`: the system's trust store.
    pub ca: Option<String>,
    /// Our certificate's file and its key's.
    pub client: Option<(String, String)>,
}

/// Every key of these tables, with the value that means nothing: for commands that never speak to the service.
pub const SERVICE_FILES: [(&str, &str); 9] = [
    ("downstream.auth.bearer_file", "\"\""),
    ("downstream.auth.basic_user", "\"\""),
    ("downstream.auth.basic_password_file", "\"\""),
    ("downstream.auth.header_name", "\"\""),
    ("downstream.auth.header_value_file", "\"\""),
    ("downstream.tls.ca_file", "\"\""),
    ("downstream.tls.cert_file", "\"\""),
    ("downstream.tls.key_file", "\"\""),
    ("downstream.signing.secret_files", "[]"),
];

/// What the files hold now, checked. Not `Debug`: it is never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secrets {
    /// Token, password or header value.
    pub auth: Option<Vec<u8>>,
    /// Certificates of those who may sign the service's, PEM.
    pub ca: Option<Vec<u8>>,
    /// Our certificate with its chain, and its key, PEM.
    pub client: Option<(Vec<u8>, Vec<u8>)>,
    /// Keys that sign.
    pub signing: Vec<Vec<u8>>,
}

impl Security {
    /// Whether there is anything to read.
    pub fn is_empty(&self) -> bool {
        matches!(self.auth, Auth::None) && self.tls.ca.is_none() && self.tls.client.is_none() && self.signing.is_empty()
    }

    /// Reads every file anew.
    ///
    /// # Errors
    /// One sentence that names the key and the file, without any of its content.
    pub fn read(&self) -> Result<Secrets, String> {
        let about = |key: &'static str| move |problem: String| format!("downstream.{key}: {problem}");
        let auth = match &self.auth {
            Auth::None => None,
            Auth::Bearer(file) => Some(token(file).map_err(about("auth.bearer_file"))?),
            Auth::Basic(_, file) => Some(secret::read_now(file).map_err(about("auth.basic_password_file"))?),
            Auth::Header(_, file) => Some(header_value(file).map_err(about("auth.header_value_file"))?),
        };
        let ca = self.tls.ca.as_deref().map(certificate).transpose().map_err(about("tls.ca_file"))?;
        let client = match &self.tls.client {
            None => None,
            Some((cert, key)) => {
                let pem = certificate(cert).map_err(about("tls.cert_file"))?;
                let key = certificate_key(&pem, cert, key).map_err(about("tls.key_file"))?;
                Some((pem, key))
            }
        };
        let signing = self.signing.iter().map(|file| signing_key(file)).collect::<Result<_, _>>();
        Ok(Secrets { auth, ca, client, signing: signing.map_err(about("signing.secret_files"))? })
    }
}

/// Longest header value; services refuse more.
const HEADER_MAX: usize = 8 * 1024;

/// A bearer token (RFC 6750 section 2.1): visible, without a blank.
fn token(file: &str) -> Result<Vec<u8>, String> {
    visible(file, |b| b.is_ascii_graphic())
}

fn header_value(file: &str) -> Result<Vec<u8>, String> {
    let value = visible(file, |b| b.is_ascii_graphic() || b == b' ')?;
    if value.trim_ascii() == value { Ok(value) } else { Err(format!("{file} begins or ends with a blank")) }
}

fn visible(file: &str, fits: impl Fn(u8) -> bool) -> Result<Vec<u8>, String> {
    let content = secret::read_now(file)?;
    if content.len() > HEADER_MAX {
        return Err(format!("{file} is longer than 8 KiB, which no service takes in a header"));
    }
    if content.iter().all(|b| fits(*b)) {
        return Ok(content);
    }
    Err(format!("{file} holds a character that cannot stand there: a second line, a blank, or one outside of ASCII"))
}

fn certificate(file: &str) -> Result<Vec<u8>, String> {
    if certificates::is_hidden(file) { Ok(Vec::new()) } else { certificates::read(&certificates::path(file)?) }
}

/// The key of a certificate that has been read.
fn certificate_key(certificate: &[u8], certificate_file: &str, file: &str) -> Result<Vec<u8>, String> {
    if certificates::is_hidden(file) {
        return Ok(Vec::new());
    }
    let key = certificates::read_key(file)?;
    if !certificates::is_hidden(certificate_file) {
        certificates::match_each_other(certificate, &certificates::path(certificate_file)?, &key, file)?;
    }
    Ok(key)
}

/// Standard Webhooks: base64 behind `whsec_`, 24 to 64 bytes.
fn signing_key(file: &str) -> Result<Vec<u8>, String> {
    if certificates::is_hidden(file) {
        return Ok(Vec::new());
    }
    let content = secret::read_now(file)?;
    let text = std::str::from_utf8(&content).unwrap_or_default();
    let key = text.strip_prefix("whsec_").and_then(|encoded| base64::decode_block(encoded).ok());
    match key {
        Some(key) if (24..=64).contains(&key.len()) => Ok(key),
        Some(_) => Err(format!("{file} holds a secret that is not 24 to 64 bytes long, as Standard Webhooks has it")),
        None => Err(format!("{file} holds no secret of Standard Webhooks: \"whsec_\" and base64 in one line")),
    }
}

/// `url` has been checked; `others` are the headers that are named elsewhere.
pub(super) fn read(w: &mut Written, url: Option<&str>, others: &[String]) -> Option<Security> {
    let auth = auth(w, others);
    let tls = tls(w);
    let signing = w.list("downstream.signing.secret_files", |file, before: &[String]| {
        if before.iter().any(|b| b == file) { Err("stands in the list twice".to_string()) } else { signing_key(file).map(drop) }
    });
    if let (Some(url), Some((_, Some((key, at))))) = (url, &auth)
        && http::is_open_to_others(url)
    {
        w.refuse(key, *at, "is a secret, and is never sent over http:// to another machine: use https:// in downstream.url");
    }
    if let (Some(url), Some((_, Some((key, at))))) = (url, &tls)
        && url.starts_with("http://")
    {
        w.refuse(key, *at, "has no meaning with http://: use https:// in downstream.url, or take it out");
    }
    Some(Security { auth: auth?.0, tls: tls?.0, signing: signing? })
}

/// Where something was written.
type Place = (&'static str, At);

/// What a key names; `None` when it is empty, and outermost when it is unusable.
fn named(w: &mut Written, key: &'static str) -> Option<Option<(String, At)>> {
    w.text(key).map(|(text, at)| (!text.is_empty()).then_some((text, at)))
}

/// The same for a file that `check` accepts.
fn file(w: &mut Written, key: &'static str, check: impl FnOnce(&str) -> Result<(), String>) -> Option<Option<(String, At)>> {
    let Some((file, at)) = named(w, key)? else { return Some(None) };
    match check(&file) {
        Ok(()) => Some(Some((file, at))),
        Err(problem) => {
            w.refuse(key, at, problem);
            None
        }
    }
}

fn auth(w: &mut Written, others: &[String]) -> Option<(Auth, Option<Place>)> {
    const BEARER: &str = "downstream.auth.bearer_file";
    const USER: &str = "downstream.auth.basic_user";
    const PASSWORD: &str = "downstream.auth.basic_password_file";
    const NAME: &str = "downstream.auth.header_name";
    const VALUE: &str = "downstream.auth.header_value_file";
    let bearer = file(w, BEARER, |f| token(f).map(drop));
    // RFC 7617 section 2: the first colon ends the user.
    let fits = |user: &str| user.bytes().all(|b| b != b':' && !b.is_ascii_control());
    let user = file(w, USER, |user| if fits(user) { Ok(()) } else { Err("must not hold a colon or a control character".into()) });
    let password = file(w, PASSWORD, |f| secret::read_now(f).map(drop));
    let name = file(w, NAME, |name| {
        http::check_free_name(name)?;
        if name.eq_ignore_ascii_case("Proxy-Authorization") || name.eq_ignore_ascii_case("traceparent") {
            return Err("names a header that cannot be set here: choose another".into());
        }
        if others.iter().any(|other| other.eq_ignore_ascii_case(name)) {
            return Err("names a header that another key of [downstream] names too: keep one of them".into());
        }
        Ok(())
    });
    let value = file(w, VALUE, |f| header_value(f).map(drop));
    let user_and_password = pair(w, (USER, user), (PASSWORD, password));
    let name_and_value = pair(w, (NAME, name), (VALUE, value));
    let mut found: Option<(Auth, Option<Place>)> = None;
    let ways = [
        bearer?.map(|(file, at)| (BEARER, at, Auth::Bearer(file))),
        user_and_password?.map(|((user, at), (file, _))| (USER, at, Auth::Basic(user, file))),
        name_and_value?.map(|((name, at), (file, _))| (NAME, at, Auth::Header(name, file))),
    ];
    for (key, at, auth) in ways.into_iter().flatten() {
        match &found {
            None => found = Some((auth, Some((key, at)))),
            Some((_, first)) => {
                let first = first.map_or("", |(key, _)| key);
                w.refuse(key, at, format!("stands beside {first}: there is one way to authenticate at most"));
            }
        }
    }
    Some(found.unwrap_or_default())
}

/// A key and what was found under it.
type Found = (&'static str, Option<Option<(String, At)>>);
/// Two texts, each with its place.
type Both = ((String, At), (String, At));

/// Two keys that are written together or not at all.
fn pair(w: &mut Written, (one, first): Found, (other, second): Found) -> Option<Option<Both>> {
    match (first?, second?) {
        (None, None) => Some(None),
        (Some(first), Some(second)) => Some(Some((first, second))),
        (Some((_, at)), None) => {
            w.refuse(one, at, format!("needs {other} beside it"));
            None
        }
        (None, Some((_, at))) => {
            w.refuse(other, at, format!("needs {one} beside it"));
            None
        }
    }
}

fn tls(w: &mut Written) -> Option<(ServiceTls, Option<Place>)> {
    const CA: &str = "downstream.tls.ca_file";
    const CERT: &str = "downstream.tls.cert_file";
    const KEY: &str = "downstream.tls.key_file";
    let ca = file(w, CA, |f| certificate(f).map(drop));
    let cert = file(w, CERT, |f| certificate(f).map(drop));
    let key = match &cert {
        // What is wrong with the certificate has been said; the key is looked at by itself.
        None | Some(None) => file(w, KEY, |f| certificates::read_key(f).map(drop)),
        Some(Some((cert_file, _))) => {
            let cert_file = cert_file.clone();
            file(w, KEY, |f| certificate_key(&certificate(&cert_file)?, &cert_file, f).map(drop))
        }
    };
    let both = pair(w, (CERT, cert), (KEY, key));
    let (ca, both) = (ca?, both?);
    let place = ca.as_ref().map(|(_, at)| (CA, *at)).or(both.as_ref().map(|((_, at), _)| (CERT, *at)));
    let client = both.map(|((cert, _), (key, _))| (cert, key));
    Some((ServiceTls { ca: ca.map(|(file, _)| file), client }, place))
}

/// `[downstream.outcomes]`
pub(super) fn outcomes(w: &mut Written) -> Option<Overrides> {
    let overrides = RefCell::new(Overrides::default());
    w.table("downstream.outcomes", |statuses, class, _| overrides.borrow_mut().add(statuses, class))?;
    Some(overrides.into_inner())
}
