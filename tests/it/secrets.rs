//! What guards the request: secrets reach the service and nobody else, are replaced without a restart, and sign what is sent.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::json;

use crate::rig::{Authority, Issued, Opening, Peer, Relay, Request, Rogue, Then, Topic, eventually, ids, unique, write_private};

struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(unique("txrelay-secrets"));
        std::fs::create_dir(&path).expect("a folder");
        Self(path)
    }

    fn secret(&self, name: &str, content: &str) -> PathBuf {
        // As an administrator does it: never half a file.
        let (new, file) = (self.0.join(format!("{name}.new")), self.0.join(name));
        write_private(&new, content.as_bytes());
        std::fs::rename(new, &file).expect("renamed");
        file
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const QUICK: &str = "[retry]\nbase = \"50ms\"\n[gate]\nprobe_cap = \"200ms\"";
const DELIVERED: &str = "select count(*) from transaction_status where state = 'delivered'";

/// Accepts whoever brings the token of the moment.
fn doorkeeper(token: &Arc<Mutex<String>>) -> impl Fn(&Request, &mut Peer) -> Then + Send + Sync + 'static {
    let token = Arc::clone(token);
    move |request: &Request, peer: &mut Peer| {
        let expected = format!("Bearer {}", token.lock().unwrap());
        // As some frameworks do: the whole request in the complaint.
        if request.header("authorization") == Some(&expected) { peer.answer(200, "ok") } else { peer.answer(401, &request.head) }
    }
}

#[test]
fn a_new_token_is_taken_after_a_401_or_a_reload_and_no_delivery_is_lost() {
    let folder = Folder::new();
    let token = Arc::new(Mutex::new("hunter2-one".to_owned()));
    let (topic, rogue) = (Topic::new(1), Rogue::start(doorkeeper(&token)));
    let file = folder.secret("token", "hunter2-one\n");
    let more = format!("[downstream.auth]\nbearer_file = \"{}\"\n{QUICK}", file.display());
    let mut relay = Relay::new(&topic.name, &rogue.url(), &more);
    relay.start();
    topic.transactions(ids("one", 0..50));
    eventually("the first are delivered", || relay.count(DELIVERED) == 50);

    // The service has another one before we do.
    "hunter2-two".clone_into(&mut token.lock().unwrap());
    topic.transactions(ids("two", 0..50));
    eventually("the service refuses us", || relay.metric("attempts_total{outcome=\"misconfigured\"}") > Some(0.0));
    folder.secret("token", "hunter2-two\n");
    eventually("those are delivered too", || relay.count(DELIVERED) == 100);
    eventually("it is said", || relay.log().contains("hold new ones, read after a 401"));

    // We have another one before the service does, and somebody says so.
    folder.secret("token", "hunter2-three\n");
    "hunter2-three".clone_into(&mut token.lock().unwrap());
    relay.signal("HUP");
    eventually("it is read", || {
        relay.log().contains("the files with the secrets for the service hold new ones: used from now on")
    });
    topic.transactions(ids("three", 0..50));
    eventually("all are delivered", || relay.count(DELIVERED) == 150);
    let refused = rogue.requests().iter().filter(|request| request.id.starts_with("three") && request.attempt > 1).count();
    assert_eq!(refused, 0, "nobody was refused after the reload");

    // A file that is broken changes nothing.
    folder.secret("token", "");
    relay.signal("HUP");
    eventually("it is said", || relay.log().contains("downstream.auth.bearer_file: /"));
    topic.transactions(ids("four", 0..50));
    eventually("the old one is in use", || relay.count(DELIVERED) == 200);
    assert_eq!(relay.stop().code(), Some(0));
    assert_eq!(relay.count("select count(*) from dead"), 0);
    assert!(!relay.log().contains("hunter2"), "{}", relay.log());
    relay.balanced();
}

#[test]
fn no_output_holds_a_secret() {
    let folder = Folder::new();
    let (topic, rogue) = (Topic::new(1), Rogue::start(|request, peer| peer.answer(500, &request.head)));
    let (password, key) =
        (folder.secret("password", "hunter2"), folder.secret("key", "whsec_aHVudGVyMmh1bnRlcjJodW50ZXIyaHVudGVyMg=="));
    let more = format!(
        "keep_answer = \"64 KiB\"\n[downstream.auth]\nbasic_user = \"relay\"\nbasic_password_file = \"{}\"\n\
         [downstream.signing]\nsecret_files = [\"{}\"]\n{QUICK}",
        password.display(),
        key.display()
    );
    let mut relay = Relay::new(&topic.name, &rogue.url(), &more);
    relay.set("log.level=trace");
    relay.env("FAILPOINTS", "thread-worker=20*off->panic");
    relay.start();
    topic.transactions(ids("t", 0..10));
    eventually("they have failed", || relay.count("select count(*) from attempt_history") >= 10);
    let mut said = String::new();
    for path in ["/metrics", "/readyz", "/livez", "/"] {
        said += &relay.http(path).unwrap_or_default();
    }
    relay.signal("USR1");
    for args in [&["check-config"] as &[&str], &["check-config", "--print-outcomes"], &["status"], &["status", "--json"]] {
        let out = relay.command(args).env_remove("FAILPOINTS").output().expect("runs");
        said += &String::from_utf8_lossy(&[out.stdout, out.stderr].concat());
    }
    let errors = relay.sql().query("select error from attempt_history", &[]).expect("rows");
    let errors: String = errors.iter().filter_map(|row| row.get::<_, Option<String>>(0)).collect();
    assert!(errors.contains("authorization: Basic ***"), "the answer is kept, without it: {errors}");
    topic.transactions(ids("u", 0..20));
    assert_ne!(relay.wait().code(), Some(0), "a worker has panicked");
    said += &(errors + &relay.log());
    assert!(said.contains("panicked"), "{said}");
    // base64 of relay:hunter2, and the key as it stands in its file.
    for secret in ["hunter2", "cmVsYXk6aHVudGVyMg", "whsec_", "aHVudGVyMmh1"] {
        assert!(!said.contains(secret), "{secret} is in:\n{said}");
    }
    assert_eq!(rogue.requests()[0].header("authorization"), Some("Basic cmVsYXk6aHVudGVyMg=="));
}

/// The reference library of Standard Webhooks for Python, on what real requests carried.
#[test]
fn the_reference_library_of_standard_webhooks_verifies_each_signature() {
    const SCRIPT: &str = r#"
import json, sys
from standardwebhooks import Webhook, WebhookVerificationError
told = json.load(sys.stdin)
for secret in told["secrets"]:
    for body, headers in told["requests"]:
        Webhook(secret).verify(body, headers)
        for other in (body + " ", body.replace("12.34", "99.99")):
            try:
                Webhook(secret).verify(other, headers)
            except WebhookVerificationError:
                continue
            sys.exit("another body was verified")
print("verified", len(told["requests"]))
"#;
    let folder = Folder::new();
    let secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="];
    let files = [folder.secret("new", secrets[0]), folder.secret("old", secrets[1])];
    let (topic, rogue) = (
        Topic::new(1),
        Rogue::start(|request, peer| {
            if request.attempt == 1 && request.id.starts_with("again") { peer.answer(503, "no") } else { peer.answer(200, "ok") }
        }),
    );
    let more = format!("[downstream.signing]\nsecret_files = [\"{}\", \"{}\"]\n{QUICK}", files[0].display(), files[1].display());
    let mut relay = Relay::new(&topic.name, &rogue.url(), &more);
    relay.start();
    let mut sent = ids("t", 0..20);
    sent.extend(["a.b", "again-1", "ä ö", "100%"].map(str::to_owned));
    topic.transactions(sent.clone());
    eventually("all are delivered", || relay.count(DELIVERED) == sent.len() as i64);

    let requests = rogue.requests();
    let carried = |request: &Request| {
        let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
        let headers: serde_json::Map<_, _> =
            names.map(|name| (name.to_owned(), json!(request.header(name).expect(name)))).into_iter().collect();
        json!([String::from_utf8(request.body.clone()).expect("text"), headers])
    };
    let told = json!({ "secrets": secrets, "requests": requests.iter().map(carried).collect::<Vec<_>>() });
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bed/venv.sh");
    let out = Command::new(script).arg("standardwebhooks==1.1.0").output().expect("venv.sh runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let python = Path::new(String::from_utf8(out.stdout).expect("text").trim()).join("bin/python");
    let mut child =
        Command::new(python).args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.as_mut().expect("python runs");
    child.stdin.take().expect("piped").write_all(told.to_string().as_bytes()).expect("told");
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stdout.take().expect("piped"), &mut said).expect("text");
    let mut complaint = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().expect("piped"), &mut complaint).expect("text");
    assert!(child.wait().expect("ends").success(), "{complaint}");
    assert_eq!(said.trim(), format!("verified {}", requests.len()));
    // The id is the same on each attempt, and holds no dot that would move the borders of what is signed.
    let of = |id: &str| {
        rogue.requests_of(id).iter().map(|r| r.header("webhook-id").unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(of("again-1"), ["again-1", "again-1"]);
    assert_eq!(of("a.b"), ["a%2Eb"]);
}

#[test]
fn a_client_certificate_is_shown_and_a_new_one_needs_no_restart() {
    let folder = Folder::new();
    let authority = Authority::new("it CA");
    let good = authority.issue("localhost", false, &folder.0, "server");
    let place = |issued: &Issued| {
        folder.secret("relay.crt", &std::fs::read_to_string(&issued.certificate).expect("read"));
        folder.secret("relay.key", &std::fs::read_to_string(&issued.key).expect("read"));
    };
    place(&Authority::new("it CA").issue("relay", false, &folder.0, "strange"));
    let clients_only = || Authority::acceptor(&good, Some(&authority));
    let rogue = Rogue::tls(clients_only(), |_, peer| peer.answer(200, "ok"));
    let ca = authority.write(&folder.0.join("ca.crt"));
    let at = |name: &str| folder.0.join(name).display().to_string();
    let more = format!(
        "[downstream.tls]\nca_file = \"{}\"\ncert_file = \"{}\"\nkey_file = \"{}\"\n{QUICK}",
        ca.display(),
        at("relay.crt"),
        at("relay.key")
    );
    let topic = Topic::new(1);
    let mut relay = Relay::new(&topic.name, &rogue.https_url(), &more);
    relay.start();
    topic.transactions(ids("t", 0..20));
    let refused =
        "select count(*) from attempt_history where outcome = 'misconfigured' and error like '%does not accept our certificate%'";
    eventually("the service does not know us", || relay.count(refused) > 0);
    assert_eq!(relay.count(DELIVERED), 0);
    place(&authority.issue("relay", false, &folder.0, "good"));
    eventually("all are delivered", || relay.count(DELIVERED) == 20);
    eventually("it is said", || relay.log().contains("hold new ones, read after a "));

    // A key that does not fit its certificate is seen, and the old pair stays in use.
    let other = authority.issue("relay", false, &folder.0, "other");
    folder.secret("relay.key", &std::fs::read_to_string(&other.key).expect("read"));
    relay.signal("HUP");
    eventually("it is said", || relay.log().contains("is not the key of the certificate in"));
    rogue.next(Opening::Tls(clients_only()));
    topic.transactions(ids("u", 0..20));
    eventually("all are delivered", || relay.count(DELIVERED) == 40);
    // Our own certificate ends as early as the service's.
    eventually("its end is shown", || relay.metric("certificate_expiry_timestamp_seconds{role=\"downstream\"}") > Some(0.0));
    relay.balanced();
}

#[test]
fn what_is_wrong_with_secrets_is_one_line_each_and_exit_78() {
    let folder = Folder::new();
    let open = folder.0.join("open");
    std::fs::write(&open, "hunter2").expect("written");
    let empty = folder.secret("empty", "");
    let more = format!(
        "[downstream.auth]\nbearer_file = \"{}\"\n[downstream.tls]\nca_file = \"{}\"\n[downstream.signing]\nsecret_files = [\"/nonexistent\"]\n\
         [downstream.outcomes]\n409 = \"fine\"\n",
        open.display(),
        empty.display()
    );
    let relay = Relay::new("t", "https://user:hunter2@ledger.example/", &more);
    for command in ["check-config", "run"] {
        let out = relay.command(&[command]).output().expect("runs");
        let said = String::from_utf8(out.stderr).expect("text");
        assert_eq!(out.status.code(), Some(78), "{said}");
        for part in [
            "downstream.url: holds a user or password",
            "downstream.auth.bearer_file: ",
            "is open to every user",
            "downstream.tls.ca_file: ",
            "holds no certificate in PEM form",
            "downstream.signing.secret_files: /nonexistent cannot be read",
            "downstream.outcomes.409: is no class",
        ] {
            assert!(said.contains(part), "{part} is not in:\n{said}");
        }
        let problems = said.lines().filter(|line| line.contains("downstream.")).count();
        assert!(problems == 5 && !said.contains("hunter2"), "{said}");
    }
}
