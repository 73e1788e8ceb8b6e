//! A service that misbehaves on purpose: what each fault is taken for, what is known of the request, and that the neighbours of
//! its victims are delivered meanwhile. F51 to F64 and F70 of the fault matrix.

use std::collections::BTreeMap;
use std::time::Duration;

use openssl::ssl::{SslAcceptor, SslFiletype, SslMethod, SslVersion};

use crate::rig::{
    Authority, Blackhole, Opening, Peer, Relay, Request, Rogue, Then, Topic, eventually, free_address, ids, transaction, unique,
    within_bounds,
};

/// Outcome, status, and whether it was sent, of an attempt.
type Attempt = (String, Option<i16>, String);

/// What a first attempt was taken for.
type Taken = (&'static str, Option<i16>, &'static str);

/// The first attempts of all transactions whose ids begin so.
fn first_attempts(relay: &Relay, prefix: &str) -> BTreeMap<String, Attempt> {
    let query =
        "select transaction_id, outcome, http_status, sent from attempt_history where attempt = 1 and transaction_id like $1";
    let rows = relay.sql().query(query, &[&format!("{prefix}%")]).expect("attempts");
    rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2), row.get(3)))).collect()
}

#[track_caller]
fn taken_for(attempts: &BTreeMap<String, Attempt>, id: &str, (outcome, status, sent): Taken) {
    assert_eq!(attempts.get(id), Some(&(outcome.to_owned(), status, sent.to_owned())), "{id}");
}

/// The neighbours' names follow that of their victim: rows are stored in the order of their ids, so the faults come one by one
/// with what is accepted between them, and no outage is seen in them.
fn victim_and_neighbours(id: &str, n: usize) -> Vec<String> {
    let neighbours = ids(&format!("{id}-good"), 0..n);
    [vec![id.to_owned()], neighbours].concat()
}

/// What is done to the first attempt of a transaction.
type Fault = fn(&mut Peer) -> Then;

const HEAD: &str = "HTTP/1.1 200 OK\r\n";
const SHORT: Duration = Duration::from_millis(20);
const UNKNOWN: Taken = ("down", None, "unknown");
const NOT_HTTP: Taken = ("retry", None, "unknown");
const DELIVERED: Taken = ("delivered", Some(200), "yes");

/// Name, what is done, and what it is taken for. Those that last to the deadline begin with "slow".
fn faults() -> Vec<(&'static str, Fault, Taken)> {
    fn says(peer: &mut Peer, bytes: &str, then: Then) -> Then {
        peer.say(bytes);
        then
    }
    vec![
        // F53
        ("reset-unread", |_| Then::Reset, UNKNOWN),
        ("reset-after-processing", |peer| (peer.body(), Then::Reset).1, UNKNOWN),
        ("closed-after-processing", |peer| (peer.body(), Then::Close).1, UNKNOWN),
        ("reset-in-the-answer", |peer| says(peer, "HTTP/1.1 20", Then::Reset), UNKNOWN),
        // F54
        ("closes-when-idle", |peer| says(peer, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Then::Close), DELIVERED),
        // F55
        ("slow-silence", |peer| (peer.hang(), Then::Close).1, UNKNOWN),
        ("slow-head", |peer| (peer.say(HEAD), peer.repeat(b"a", SHORT), Then::Close).2, UNKNOWN),
        (
            "slow-body",
            |peer| (peer.say(format!("{HEAD}Content-Length: 5000\r\n\r\n")), peer.repeat(b"a", SHORT), Then::Close).2,
            DELIVERED,
        ),
        (
            "endless-chunks",
            |peer| {
                peer.say(format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n"));
                peer.repeat(format!("10000\r\n{}\r\n", "x".repeat(0x10000)).as_bytes(), Duration::ZERO);
                Then::Close
            },
            DELIVERED,
        ),
        (
            "ten-gigabytes",
            |peer| {
                peer.say(format!("{HEAD}Content-Length: 10737418240\r\n\r\n"));
                peer.repeat(&[b'x'; 1 << 16], Duration::ZERO);
                Then::Close
            },
            DELIVERED,
        ),
        (
            "ten-gigabytes-of-complaint",
            |peer| {
                peer.say("HTTP/1.1 500 No\r\nContent-Length: 10737418240\r\n\r\n");
                peer.repeat(&[b'x'; 1 << 16], Duration::ZERO);
                Then::Close
            },
            ("retry", Some(500), "yes"),
        ),
        (
            "gzip-bomb",
            |peer| {
                peer.say(format!("{HEAD}Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"));
                // The head of a gzip stream, and what follows in one of zeros.
                peer.say(b"a\r\n\x1f\x8b\x08\0\0\0\0\0\0\x03\r\n");
                peer.repeat(&[b"1000\r\n".as_slice(), &[0; 0x1000], b"\r\n"].concat(), Duration::ZERO);
                Then::Close
            },
            DELIVERED,
        ),
        (
            "a-header-of-a-megabyte",
            |peer| (peer.say(format!("{HEAD}A: {}\r\n\r\n", "b".repeat(1 << 20))), Then::Close).1,
            NOT_HTTP,
        ),
        ("ten-thousand-headers", |peer| (peer.say(format!("{HEAD}{}\r\n", "A: b\r\n".repeat(10_000))), Then::Close).1, NOT_HTTP),
        // F56
        (
            "slow-flood-of-interim-answers",
            |peer| (peer.repeat(b"HTTP/1.1 102 Processing\r\n\r\n", Duration::from_millis(1)), Then::Close).1,
            UNKNOWN,
        ),
        (
            "switches-protocols",
            |peer| says(peer, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", Then::Close),
            ("retry", Some(101), "yes"),
        ),
        // F58
        ("no-content", |peer| says(peer, "HTTP/1.1 204 No Content\r\n\r\n", Then::Keep), ("delivered", Some(204), "yes")),
        ("partial-content", |peer| peer.answer(206, "part"), ("delivered", Some(206), "yes")),
        ("success-that-says-error", |peer| peer.answer(200, "{\"error\":\"no such account\"}"), DELIVERED),
        ("shorter-than-it-says", |peer| says(peer, "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nok", Then::Close), DELIVERED),
        (
            "longer-than-it-says",
            |peer| says(peer, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more", Then::Close),
            DELIVERED,
        ),
        // F62
        ("tls-on-a-plain-port", |peer| (peer.say(b"\x15\x03\x03\0\x02\x02\x46"), Then::Close).1, NOT_HTTP),
        ("an-ssh-banner", |peer| says(peer, "SSH-2.0-OpenSSH_9.2\r\n\r\n", Then::Close), NOT_HTTP),
        ("http-0.9", |peer| says(peer, "<html>welcome</html>\r\n\r\n", Then::Close), NOT_HTTP),
        ("zeros", |peer| (peer.say([0; 64]), Then::Close).1, NOT_HTTP),
        ("a-status-line-only", |peer| says(peer, HEAD, Then::Close), UNKNOWN),
        (
            "a-folded-header",
            |peer| says(peer, "HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n", Then::Close),
            NOT_HTTP,
        ),
    ]
}

#[test]
fn every_broken_answer_has_its_class_and_delays_nobody() {
    let behave = |request: &Request, peer: &mut Peer| {
        let fault = faults().into_iter().find(|(name, ..)| request.id == format!("bad-{name}"));
        match fault.filter(|_| request.attempt == 1) {
            Some((_, fault, _)) => fault(peer),
            None => peer.answer(200, "ok"),
        }
    };
    let (topic, rogue) = (Topic::new(1), Rogue::start(behave));
    let more = "timeout = \"5s\"\nworkers = 48\n[retry]\nbase = \"50ms\"\n[gate]\nprobe_cap = \"200ms\"";
    let mut relay = Relay::new(&topic.name, &rogue.url(), more);
    relay.start();
    topic.transactions(ids("warm", 0..200));
    eventually("it runs", || rogue.requests().len() >= 200);
    let before = relay.resources();

    let mut mixed = Vec::new();
    for (name, ..) in faults() {
        mixed.extend(victim_and_neighbours(&format!("bad-{name}"), 10));
    }
    topic.transactions(mixed.clone());
    let delivered = "select count(*) from transaction_status where state = 'delivered'";
    eventually("all are delivered", || relay.count(delivered) == 200 + mixed.len() as i64);

    let attempts = first_attempts(&relay, "bad-");
    for (name, _, taken) in faults() {
        taken_for(&attempts, &format!("bad-{name}"), taken);
        // One resend at once is allowed where a reused connection broke before the answer.
        let expected = if taken.0 == "delivered" { 1..=1 } else { 2..=3 };
        let n = rogue.requests_of(&format!("bad-{name}")).len();
        assert!(expected.contains(&n), "{name}: {n} requests");
    }
    let meanwhile = "select (select max(finished_at) from attempt_history where transaction_id like '%-good-%') \
         < (select min(finished_at) from attempt_history where attempt = 1 and transaction_id like 'bad-slow-%' and transaction_id not like '%-good-%')";
    assert!(relay.sql().query_one(meanwhile, &[]).expect("a row").get::<_, bool>(0), "neighbours waited for a slow one");
    let unknown = attempts.values().filter(|(.., sent)| sent == "unknown").count();
    assert_eq!(relay.metric("attempts_unknown_total"), Some(unknown as f64));
    within_bounds(before, relay.resources());
    assert_eq!(relay.stop().code(), Some(0));
    relay.balanced();
}

/// Statuses and what they are taken for. F57, F59, F60.
const STATUSES: &[(u16, &str)] = &[
    (301, "misconfigured"),
    (302, "misconfigured"),
    (303, "misconfigured"),
    (307, "misconfigured"),
    (308, "misconfigured"),
    (400, "refused"),
    (401, "misconfigured"),
    (402, "refused"),
    (403, "misconfigured"),
    (404, "misconfigured"),
    (408, "retry"),
    (409, "retry"),
    (410, "misconfigured"),
    (413, "refused"),
    (415, "misconfigured"),
    (422, "refused"),
    (425, "retry"),
    (429, "throttled"),
    (431, "refused"),
    (451, "refused"),
    (500, "retry"),
    (501, "misconfigured"),
    (502, "down"),
    (503, "down"),
    (504, "down"),
    (599, "retry"),
    (999, "retry"),
];

#[test]
fn every_status_has_its_class_and_no_redirect_is_followed() {
    let behave = |request: &Request, peer: &mut Peer| {
        let status = request.id.strip_prefix("status-").and_then(|id| id.parse::<u16>().ok()).filter(|_| request.attempt == 1);
        match status {
            // Back to where it came from, and to a cloud's metadata.
            Some(status @ 300..=399) => {
                let to = if status % 2 == 0 { "http://169.254.169.254/latest/" } else { "/followed" };
                peer.say(format!("HTTP/1.1 {status} Go\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"));
                Then::Keep
            }
            Some(status) => peer.answer(status, "no"),
            None => peer.answer(200, "ok"),
        }
    };
    let (topic, rogue) = (Topic::new(1), Rogue::start(behave));
    let more = "[retry]\nbase = \"50ms\"\n[gate]\nprobe_cap = \"200ms\"";
    let mut relay = Relay::new(&topic.name, &rogue.url(), more);
    relay.start();
    let mut mixed = Vec::new();
    for (status, _) in STATUSES {
        mixed.extend(victim_and_neighbours(&format!("status-{status}"), 4));
    }
    mixed.push("status-000".to_owned());
    topic.transactions(mixed.clone());
    let finished = "select count(*) from transaction_status where state in ('delivered', 'dead')";
    eventually("all are finished", || relay.count(finished) == mixed.len() as i64);
    let attempts = first_attempts(&relay, "status-");
    for (status, outcome) in STATUSES {
        taken_for(&attempts, &format!("status-{status}"), (outcome, Some(*status as i16), "yes"));
    }
    // HTTP has no such status.
    taken_for(&attempts, "status-000", NOT_HTTP);
    let refused = STATUSES.iter().filter(|(_, outcome)| *outcome == "refused").count() as i64;
    assert_eq!(relay.count("select count(*) from dead"), refused, "only what is refused is given up, and it is kept");
    for request in rogue.requests() {
        assert!(request.head.starts_with("POST /transactions HTTP/1.1\r\n"), "followed: {}", request.head);
    }
    relay.balanced();
}

#[test]
fn a_status_that_its_operator_declares_delivered_is_delivered() {
    let behave = |request: &Request, peer: &mut Peer| match request.id.as_str() {
        "there" => peer.answer(409, "had it"),
        "edge" if request.attempt == 1 => peer.answer(522, "no"),
        _ => peer.answer(200, "ok"),
    };
    let (topic, rogue) = (Topic::new(1), Rogue::start(behave));
    let more = "[downstream.outcomes]\n\"409\" = \"delivered\"\n520-530 = \"retry\"\n[retry]\nbase = \"50ms\"";
    let mut relay = Relay::new(&topic.name, &rogue.url(), more);
    relay.start();
    topic.transactions(["there", "edge", "plain"].map(str::to_owned));
    let delivered = "select count(*) from transaction_status where state = 'delivered'";
    eventually("all are delivered", || relay.count(delivered) == 3);
    let attempts = first_attempts(&relay, "");
    taken_for(&attempts, "there", ("delivered", Some(409), "yes"));
    taken_for(&attempts, "edge", ("retry", Some(522), "yes"));
    assert_eq!(relay.count("select count(*) from attempt_history where outcome = 'delivered' and error is not null"), 0);
    // A reload is enough to change it.
    relay.edit(|config| config.replace("\"409\" = \"delivered\"", "\"409\" = \"refused\""));
    relay.signal("HUP");
    eventually("it is reloaded", || relay.log().contains("changed downstream.outcomes"));
    let out = relay.command(&["check-config", "--print-outcomes"]).output().expect("runs");
    let table = String::from_utf8(out.stdout).expect("text");
    assert!(
        out.status.success() && table.contains("* 409                    refused        downstream.outcomes, instead of retry"),
        "{table}"
    );
    relay.balanced();
}

/// F51, F52, F63: nobody listens; nobody answers; the name does not resolve. Nothing was sent, and all is delivered afterwards.
#[test]
fn what_cannot_be_sent_is_known_to_be_unsent_and_delivered_later() {
    let (topic, rogue) = (Topic::new(1), Rogue::start(|_, peer| peer.answer(200, "ok")));
    let more =
        "timeout = \"5s\"\nconnect_timeout = \"500ms\"\nworkers = 4\n[retry]\nbase = \"50ms\"\n[gate]\nprobe_cap = \"200ms\"";
    let mut relay = Relay::new(&topic.name, &rogue.url(), more);
    let free = free_address();
    let hole = Blackhole::new();
    let places = [
        ("refused", format!("http://{free}/")),
        ("hole", format!("http://{}/", hole.address)),
        ("name", "https://nowhere.invalid/".to_owned()),
    ];
    let mut all = Vec::new();
    for (what, url) in &places {
        relay.set(&format!("downstream.url={url}"));
        relay.start();
        let id = format!("to-{what}");
        topic.transactions([id.clone()]);
        all.push(id.clone());
        let tried = format!("select count(*) from attempt_history where transaction_id = '{id}'");
        eventually(&format!("{what} is tried"), || relay.count(&tried) > 0);
        taken_for(&first_attempts(&relay, &id), &id, ("down", None, "no"));
        assert_eq!(relay.stop().code(), Some(0));
    }
    let error = |id: &str| {
        let query = "select error from attempt_history where attempt = 1 and transaction_id = $1";
        relay.sql().query_one(query, &[&id]).expect("a row").get::<_, String>(0)
    };
    assert!(error("to-refused").contains("refused"), "{}", error("to-refused"));
    assert!(error("to-hole").contains("no connection in time"), "{}", error("to-hole"));
    assert!(error("to-name").contains("does not resolve"), "{}", error("to-name"));

    relay.set(&format!("downstream.url={}", rogue.url()));
    relay.start();
    let delivered = "select count(*) from transaction_status where state = 'delivered'";
    eventually("all are delivered", || relay.count(delivered) == all.len() as i64);
    assert_eq!(rogue.requests().len(), all.len(), "each once");
    relay.balanced();
}

struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(unique("txrelay-service"));
        std::fs::create_dir(&path).expect("a folder");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Speaks TLS 1.1 and nothing later.
fn outdated(issued: &crate::rig::Issued) -> SslAcceptor {
    let mut builder = SslAcceptor::mozilla_intermediate(SslMethod::tls_server()).expect("an acceptor");
    builder.set_security_level(0);
    builder.set_min_proto_version(None).expect("any");
    builder.set_max_proto_version(Some(SslVersion::TLS1_1)).expect("TLS 1.1");
    builder.set_cipher_list("ALL:@SECLEVEL=0").expect("ciphers");
    builder.set_certificate_chain_file(&issued.certificate).expect("a certificate");
    builder.set_private_key_file(&issued.key, SslFiletype::PEM).expect("a key");
    builder.build()
}

/// F64.
#[test]
fn every_fault_of_tls_is_told_apart_and_never_falls_back() {
    let folder = Folder::new();
    let authority = Authority::new("it CA");
    let issue = |host: &str, expired, stem: &str| authority.issue(host, expired, &folder.0, stem);
    let good = issue("localhost", false, "good");
    let strange = Authority::new("it CA").issue("localhost", false, &folder.0, "strange");
    let tls = |issued: &crate::rig::Issued| Opening::Tls(Authority::acceptor(issued, None));
    let clients_only = Opening::Tls(Authority::acceptor(&good, Some(&authority)));
    let config: Taken = ("misconfigured", None, "no");
    let down: Taken = ("down", None, "no");
    // With TLS 1.3 the refusal comes after the client has sent the request; that it was never read is not for us to know.
    let late: Taken = ("misconfigured", None, "unknown");
    let faults = [
        ("expired", tls(&issue("localhost", true, "expired")), config, "it has expired"),
        ("other-name", tls(&issue("ledger.example", false, "other")), config, "another host name"),
        ("unknown-ca", tls(&strange), config, "does downstream.tls.ca_file name the CA that signed it?"),
        ("old", Opening::Tls(outdated(&good)), config, "no TLS from 1.2 on"),
        ("plain", Opening::Says(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"), config, "does not speak TLS"),
        ("wants-a-certificate", clients_only, late, "asks for a client certificate"),
        ("stalls", Opening::Stalls, down, "no connection in time"),
        ("closes", Opening::Says(b""), down, "closed during the handshake"),
        ("no-farewell", Opening::TlsCutOff(Authority::acceptor(&good, None)), DELIVERED, ""),
    ];
    // Each request has a connection of its own, so that the next connection is that of the next transaction.
    let rogue = Rogue::tls(Authority::acceptor(&good, None), |_, peer| {
        peer.say("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        Then::Close
    });
    let ca = authority.write(&folder.0.join("ca.crt"));
    let more = format!(
        "connect_timeout = \"2s\"\n[downstream.tls]\nca_file = \"{}\"\n[retry]\nbase = \"50ms\"\n[gate]\nprobe_cap = \"200ms\"",
        ca.display()
    );
    let topic = Topic::new(1);
    let mut relay = Relay::new(&topic.name, &rogue.https_url(), &more);
    relay.start();
    topic.transactions(ids("warm", 0..3));
    let delivered = |n: usize| {
        let delivered = "select count(*) from transaction_status where state = 'delivered'";
        eventually("they are delivered", || relay.count(delivered) == n as i64);
    };
    delivered(3);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
    eventually("the certificate's end is shown", || {
        relay
            .metric("certificate_expiry_timestamp_seconds{role=\"downstream\"}")
            .is_some_and(|at| (at - now - 86_400.0).abs() < 300.0)
    });
    eventually("its end is near", || relay.log().contains("a certificate of the connection to downstream expires within a day"));

    let mut n = 3;
    for (name, opening, taken, words) in faults {
        let id = format!("bad-{name}");
        let before = rogue.connections();
        rogue.next(opening);
        topic.transactions([id.clone()]);
        eventually("it has connected", || rogue.connections() > before);
        topic.transactions(ids(&format!("good-{name}"), 0..3));
        if name == "stalls" {
            // Its neighbours are delivered while it still waits.
            eventually("neighbours are delivered", || first_attempts(&relay, "good-stalls-").len() == 3);
            assert!(!first_attempts(&relay, "bad-").contains_key(&id), "neighbours waited for it");
        }
        n += 4;
        delivered(n);
        taken_for(&first_attempts(&relay, "bad-"), &id, taken);
        let query = "select coalesce(error, '') from attempt_history where attempt = 1 and transaction_id = $1";
        let error: String = relay.sql().query_one(query, &[&id]).expect("a row").get(0);
        assert!(error.contains(words), "{name}: {error}");
    }
    relay.balanced();
}

/// F70.
#[test]
fn thousands_of_deliveries_share_a_few_connections() {
    let (topic, rogue) = (Topic::new(1), Rogue::start(|_, peer| peer.answer(200, "ok")));
    let mut relay = Relay::new(&topic.name, &rogue.url(), "workers = 8");
    relay.start();
    topic.transactions(ids("t", 0..3000));
    eventually("all are delivered", || rogue.requests().len() >= 3000);
    assert!(rogue.connections() <= 16, "{} connections", rogue.connections());
    assert_eq!(relay.stop().code(), Some(0));
}

/// F76.
#[test]
fn no_record_can_split_a_request_or_inject_a_header() {
    let (topic, rogue) = (Topic::new(1), Rogue::start(|_, peer| peer.answer(200, "ok")));
    let more = "forward_headers = [\"traceparent\", \"tracestate\", \"X-Origin\"]";
    let mut relay = Relay::new(&topic.name, &rogue.url(), more);
    relay.start();
    let split = b"a\r\nX-Evil: 1\r\n\r\nPOST /evil HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    let long = vec![b'x'; 9000];
    let hostile: &[&[u8]] = &[split, b"a\nX-Evil: 1", b"nul\0", "ä".as_bytes(), &long, b"\xff\xfe", b"a\r"];
    let mut ids = vec!["a/../../b".to_owned(), "é 漢字".to_owned(), "i".repeat(512), "percent%0d%0aX-Evil:1".to_owned()];
    ids.extend((0..hostile.len()).map(|i| format!("record-{i}")));
    for (i, id) in ids.iter().enumerate() {
        let value = hostile[i % hostile.len()];
        let names =
            ["X-Origin", "content-type", "traceparent", "tracestate", "Host", "Transfer-Encoding", "Content-Length", "X-Evil"];
        topic.produce_with_headers(&transaction(id), &names.map(|name| (name, value)));
    }
    let crlf = br#"{"transaction_id":"x\r\nX-Evil: 1"}"#;
    topic.produce([crlf.as_slice()]);
    let n = ids.len() + 1;
    let delivered = "select count(*) from transaction_status where state = 'delivered'";
    eventually("all are delivered", || relay.count(delivered) == n as i64);
    let requests = rogue.requests();
    assert_eq!(requests.len(), n, "one request each");
    for request in &requests {
        assert!(
            request.head.starts_with("POST /transactions HTTP/1.1\r\n") && request.header("x-evil").is_none(),
            "{}",
            request.head
        );
        assert!(request.head.is_ascii() && !request.head.contains('\0'), "{}", request.head);
        assert_eq!(request.header("x-origin"), None, "{}", request.head);
        assert_eq!(request.header("content-type"), Some("application/json"));
        assert_eq!(request.head.to_lowercase().matches("\r\ncontent-length:").count(), 1);
    }
    assert!(requests.iter().any(|request| request.id == "x%0D%0AX-Evil:%201"));
    relay.balanced();
}
