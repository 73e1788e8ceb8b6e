//! What guards the request: each slip is one clear line, in the one list of problems.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::certificates::{Authority, write_private};
use super::{BASE, Folder, accepts, check_set, read, refuses};
use crate::config::{Auth, SERVICE_FILES, keys};
use crate::core::outcome::Outcome;

fn secret(folder: &Folder, name: &str, content: &str) -> PathBuf {
    let file = folder.path().join(name);
    write_private(&file, content.as_bytes());
    file
}

fn set(key: &str, file: &Path) -> String {
    format!("downstream.{key}={}", file.display())
}

#[test]
fn one_of_three_ways_to_authenticate_is_read_from_a_file() {
    let folder = Folder::new();
    let file = secret(&folder, "secret", "hunter2\n");
    let auth = |sets: &[&str]| {
        let security = accepts(sets).downstream.security;
        (security.read().expect("readable").auth, security.auth)
    };
    assert!(matches!(auth(&[]), (None, Auth::None)));
    let hunter2 = Some(b"hunter2".to_vec());
    assert!(matches!(auth(&[&set("auth.bearer_file", &file)]), (s, Auth::Bearer(_)) if s == hunter2));
    let basic = ["downstream.auth.basic_user=u", &set("auth.basic_password_file", &file)];
    assert!(matches!(auth(&basic), (s, Auth::Basic(user, _)) if s == hunter2 && user == "u"));
    let header = ["downstream.auth.header_name=X-Api-Key", &set("auth.header_value_file", &file)];
    assert!(matches!(auth(&header), (s, Auth::Header(name, _)) if s == hunter2 && name == "X-Api-Key"));

    let bearer = set("auth.bearer_file", &file);
    check_set(
        BASE,
        &[&bearer, basic[0], basic[1]],
        &["--set: downstream.auth.basic_user: stands beside downstream.auth.bearer_file: there is one way..."],
    );
    check_set(
        BASE,
        &["downstream.auth.basic_user=u"],
        &["--set: downstream.auth.basic_user: needs downstream.auth.basic_password_file beside it"],
    );
    check_set(
        BASE,
        &[&set("auth.header_value_file", &file)],
        &["--set: downstream.auth.header_value_file: needs downstream.auth.header_name beside it"],
    );
    refuses("downstream.auth.basic_user", "a:b", "must not hold a colon");
    // Those of the record that are passed on, by a client that reads them.
    let passed_on: &[&str] = if cfg!(feature = "librdkafka") { &["tracestate", "traceparent"] } else { &[] };
    for name in ["Content-Length", "Txrelay-Source", "webhook-id", "Idempotency-Key", "a b"].iter().chain(passed_on) {
        check_set(
            BASE,
            &[&format!("downstream.auth.header_name={name}"), &set("auth.header_value_file", &file)],
            &["--set: downstream.auth.header_name: ..."],
        );
    }
}

#[test]
fn a_secret_file_that_cannot_be_used_is_one_clear_line() {
    let folder = Folder::new();
    let check = |key: &str, content: &str, mode: u32, part: &str| {
        let file = secret(&folder, "secret", content);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("chmod");
        let problems = read(BASE, &[&set(key, &file)]).expect_err(part);
        assert!(problems.len() == 1 && problems[0].starts_with(&format!("--set: downstream.{key}: /")), "{problems:?}");
        assert!(problems[0].contains(part) && !problems[0].contains("hunter2"), "{problems:?}");
        std::fs::remove_file(file).expect("removed");
    };
    check("auth.bearer_file", "", 0o600, "is empty");
    check("auth.bearer_file", "\n", 0o600, "is empty");
    check("auth.bearer_file", "hunter2", 0o644, "open to every user");
    check("auth.bearer_file", "hunter2", 0o660, "written by its group");
    check("auth.bearer_file", "hunter2\r\n", 0o600, "a character that cannot stand there");
    check("auth.bearer_file", "hunter2\nX-Evil: 1", 0o600, "a character that cannot stand there");
    check("auth.bearer_file", "hunter2 hunter2", 0o600, "a character that cannot stand there");
    check("auth.bearer_file", &"hunter2".repeat(2000), 0o600, "longer than 8 KiB");
    check("signing.secret_files", "hunter2", 0o600, "no secret of Standard Webhooks");
    check("signing.secret_files", "whsec_hunter2!", 0o600, "no secret of Standard Webhooks");
    check("signing.secret_files", "whsec_aHVudGVyMg==", 0o600, "not 24 to 64 bytes long");
    refuses("downstream.auth.bearer_file", "/nonexistent/token", "cannot be read: No such file");
    refuses("downstream.auth.bearer_file", "token", "must be an absolute path");
    refuses("downstream.auth.bearer_file", "${CREDENTIALS_DIRECTORY}/token", "LoadCredential=");
}

#[test]
fn certificates_are_looked_at_before_anything_runs() {
    let folder = Folder::new();
    let authority = Authority::new("CA");
    let ca = authority.write(&folder.path().join("ca.crt"));
    let one = authority.issue("relay", false, folder.path(), "one");
    let other = authority.issue("relay", false, folder.path(), "other");
    let (cert, key) = (set("tls.cert_file", &one.certificate), set("tls.key_file", &one.key));
    accepts(&[&set("tls.ca_file", &ca), &cert, &key]);

    let junk = folder.write("junk", "-----BEGIN NOTHING-----\n");
    check_set(BASE, &[&set("tls.ca_file", &junk)], &["--set: downstream.tls.ca_file: /..."]);
    check_set(BASE, &[&cert], &["--set: downstream.tls.cert_file: needs downstream.tls.key_file beside it"]);
    check_set(BASE, &[&key], &["--set: downstream.tls.key_file: needs downstream.tls.cert_file beside it"]);
    let problem = |sets: &[&str], part: &str| {
        let problems = read(BASE, sets).expect_err(part);
        assert!(problems.len() == 1 && problems[0].contains(part), "{problems:?}");
    };
    problem(&[&set("tls.ca_file", &junk)], "holds no certificate in PEM form");
    problem(&[&cert, &set("tls.key_file", &other.key)], "is not the key of the certificate in ");
    let private = folder.path().join("junk.key");
    write_private(&private, b"junk");
    problem(&[&cert, &set("tls.key_file", &private)], "holds no private key in PEM form");
    std::fs::set_permissions(&one.key, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    problem(&[&cert, &key], "open to every user");
}

#[test]
fn all_of_it_is_in_the_one_list_of_problems() {
    let text = format!(
        "{BASE}workers = 0\n[downstream.auth]\nbearer_file = \"/nonexistent/token\"\n[downstream.tls]\nca_file = \"/nonexistent/ca\"\n\
         [downstream.signing]\nsecret_files = [\"/nonexistent/one\"]\n[downstream.outcomes]\n409 = \"ok\"\n"
    );
    super::check(
        &text,
        &[
            "F:8:11: downstream.workers: must be...",
            "F:10:15: downstream.auth.bearer_file: /nonexistent/token cannot be read: No such file or directory",
            "F:12:11: downstream.tls.ca_file: /nonexistent/ca cannot be read: No such file or directory",
            "F:14:17: downstream.signing.secret_files: /nonexistent/one cannot be read: No such file or directory",
            "F:16:7: downstream.outcomes.409: is no class: delivered, retry, throttled, down, misconfigured or refused",
        ],
    );
}

#[test]
fn a_command_that_never_speaks_to_the_service_needs_none_of_its_files() {
    let keys: Vec<&str> = SERVICE_FILES.iter().map(|(key, _)| *key).collect();
    let tables = ["downstream.auth.", "downstream.tls.", "downstream.signing."];
    let guarding = keys::KEYS.iter().map(|key| key.path).filter(|path| tables.iter().any(|table| path.starts_with(table)));
    assert_eq!(keys, guarding.collect::<Vec<_>>());
    let unreadable = format!(
        "{BASE}auth.bearer_file = \"/nonexistent\"\ntls.ca_file = \"/nonexistent\"\nsigning.secret_files = [\"/nonexistent\"]\n"
    );
    read(&unreadable, &[]).expect_err("not for run");
    let sets: Vec<String> = SERVICE_FILES.iter().map(|(key, nothing)| format!("{key}={nothing}")).collect();
    read(&unreadable, &sets.iter().map(String::as_str).collect::<Vec<_>>()).unwrap_or_else(|p| panic!("{p:?}"));
}

#[test]
fn no_secret_goes_to_another_machine_in_the_clear() {
    let folder = Folder::new();
    let file = secret(&folder, "secret", "hunter2");
    let bearer = set("auth.bearer_file", &file);
    let plain = ["downstream.url=http://ledger/", "downstream.allow_plain_http=true"];
    accepts(&plain);
    check_set(
        BASE,
        &[plain[0], plain[1], &bearer],
        &["--set: downstream.auth.bearer_file: is a secret, and is never sent over http:// to another machine..."],
    );
    for here in ["http://localhost:1/", "http://127.0.0.1/", "http://[::1]/"] {
        accepts(&[&format!("downstream.url={here}"), &bearer]);
    }
    let ca = Authority::new("CA").write(&folder.path().join("ca.crt"));
    check_set(
        BASE,
        &["downstream.url=http://localhost/", &set("tls.ca_file", &ca)],
        &["--set: downstream.tls.ca_file: has no meaning with http://..."],
    );
}

#[test]
fn a_url_that_leads_to_a_metadata_service_is_refused() {
    for url in [
        "http://169.254.169.254/",
        "https://[fe80::1]/x",
        "https://[fd00:ec2::254]/",
        "http://0.0.0.0:80/",
        "https://[::ffff:169.254.169.254]/",
    ] {
        check_set(
            BASE,
            &[&format!("downstream.url={url}"), "downstream.allow_plain_http=true"],
            &["--set: downstream.url: leads to ..."],
        );
    }
    refuses("downstream.url", "https://user:hunter2@ledger/", "[downstream.auth] is their place");
}

#[test]
fn outcomes_are_overridden_by_status_and_range() {
    let outcomes = accepts(&["downstream.outcomes={ \"409\" = \"delivered\", \"520-530\" = \"retry\" }"]).downstream.outcomes;
    assert_eq!((outcomes.classify(409, false), outcomes.classify(525, false)), (Outcome::Delivered, Outcome::Retry));
    refuses("downstream.outcomes.409", "ok", "is no class");
    refuses("downstream.outcomes.4xx", "retry", "must be a status");
    refuses("downstream.outcomes", "{ \"500\" = \"down\", \"499-501\" = \"down\" }", "another line");
}
