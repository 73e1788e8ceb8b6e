//! What goes into requests, what never comes out again, and what becomes of new files.

use super::*;
use crate::config::tests::Folder;
use crate::config::tests::certificates::write_private;

fn file(folder: &Folder, name: &str, content: &str) -> String {
    let file = folder.path().join(name);
    write_private(&file, content.as_bytes());
    file.display().to_string()
}

fn keyring(auth: Auth, signing: Vec<String>) -> Keyring {
    Keyring::new(&Security { auth, signing, ..Security::default() }, false).unwrap_or_else(|problem| panic!("{problem}"))
}

#[track_caller]
fn check_header(auth: Auth, name: &str, value: &str) {
    let credentials = keyring(auth, Vec::new()).get();
    let (header, sent) = credentials.header.as_ref().expect("a header");
    assert_eq!((header.as_str(), sent.to_str().expect("visible")), (name, value));
    assert_eq!(format!("{sent:?}"), "Sensitive");
}

#[test]
fn a_secret_becomes_one_header_that_nothing_prints() {
    let folder = Folder::new();
    let secret = file(&folder, "secret", "hunter2\n");
    check_header(Auth::Bearer(secret.clone()), "authorization", "Bearer hunter2");
    check_header(Auth::Basic("user".into(), secret.clone()), "authorization", "Basic dXNlcjpodW50ZXIy");
    check_header(Auth::Header("X-Api-Key".into(), secret), "x-api-key", "hunter2");
    assert!(keyring(Auth::None, Vec::new()).get().header.is_none());
}

#[test]
fn each_secret_signs_as_standard_webhooks_has_it() {
    let folder = Folder::new();
    // The example of the specification (spec/standard-webhooks.md), and the same secret once more.
    let example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let credentials = keyring(Auth::None, vec![file(&folder, "a", example), file(&folder, "b", &format!("{example}\n"))]).get();
    let signature = credentials.signature("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", br#"{"test": 2432232314}"#);
    let one = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    assert_eq!(signature.to_str().expect("visible"), format!("{one} {one}"));
    assert!(credentials.signs() && !keyring(Auth::None, Vec::new()).get().signs());
}

#[test]
fn an_answer_that_repeats_a_secret_is_kept_without_it() {
    let folder = Folder::new();
    let secret = file(&folder, "secret", "hunter2");
    let credentials = keyring(Auth::Basic("user".into(), secret), Vec::new()).get();
    let mut text = b"you said Basic dXNlcjpodW50ZXIy, hunter2, hunter2hunter2".to_vec();
    credentials.redact(&mut text);
    assert_eq!(text, b"you said Basic ***, ***, ******");
    assert!(credentials.longest_hidden() >= 16);
}

#[test]
fn new_files_are_taken_whole_and_bad_ones_change_nothing() {
    let folder = Folder::new();
    let secret = file(&folder, "secret", "hunter2");
    let keyring = keyring(Auth::Bearer(secret), Vec::new());
    assert_eq!((keyring.read_again(), keyring.generation()), (Ok(false), 0));
    file(&folder, "secret", "hunter3");
    assert_eq!((keyring.read_again(), keyring.generation()), (Ok(true), 1));
    let value = |keyring: &Keyring| keyring.get().header.as_ref().map(|(_, value)| value.as_bytes().to_vec());
    assert_eq!(value(&keyring), Some(b"Bearer hunter3".to_vec()));
    file(&folder, "secret", "");
    let problem = keyring.read_again().expect_err("empty");
    assert!(problem.starts_with("downstream.auth.bearer_file: /") && problem.ends_with("write the secret into it"), "{problem}");
    assert_eq!((value(&keyring), keyring.generation()), (Some(b"Bearer hunter3".to_vec()), 1));
}

#[test]
fn a_service_that_refuses_everything_makes_no_flood_of_readings() {
    let folder = Folder::new();
    let secret = file(&folder, "secret", "hunter2");
    let ring = keyring(Auth::Bearer(secret), Vec::new());
    file(&folder, "secret", "hunter3");
    assert_eq!(ring.read_after_refusal(), None, "it was read a moment ago");
    *lock(&ring.read_at) = Instant::now().checked_sub(QUIET_AFTER_READING).expect("the machine has run for longer");
    assert_eq!(ring.read_after_refusal(), Some(Ok(true)));
    assert_eq!(ring.read_after_refusal(), None);
    assert_eq!(keyring(Auth::None, Vec::new()).read_after_refusal(), None, "there is nothing to read");
}
