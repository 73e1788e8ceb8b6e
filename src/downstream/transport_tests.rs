//! Against real sockets: what the service does, and what we make of it.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::AtomicUsize;
use std::thread;
use std::time::SystemTime;

use crossbeam_channel::{Receiver, Sender};
use openssl::ssl::{Ssl, SslStream};
use rustix::net::sockopt::set_tcp_cork;

use super::*;
use crate::config::tests::Folder;
use crate::config::tests::certificates::{Authority, write_private};
use crate::downstream::request::tests::config;

/// One connection, as the service sees it.
struct Peer {
    stream: BufReader<TcpStream>,
    /// From 0.
    n_connection: usize,
    seen: Sender<(usize, String)>,
}

impl Peer {
    /// Reads one request and reports it with the connection's number. `None` when the client has closed.
    fn request(&mut self) -> Option<()> {
        let head = self.head()?;
        let length = head.to_lowercase();
        let length = length.lines().find_map(|l| l.strip_prefix("content-length: ")).expect("a length");
        let mut body = vec![0; length.parse().expect("a number")];
        self.stream.read_exact(&mut body).ok()?;
        let _ = self.seen.send((self.n_connection, head + &String::from_utf8_lossy(&body)));
        Some(())
    }

    fn head(&mut self) -> Option<String> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.stream.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        Some(head)
    }

    fn say(&mut self, answer: impl AsRef<[u8]>) {
        let _ = self.stream.get_mut().write_all(answer.as_ref());
    }

    /// Closes with RST instead of FIN: there are unread bytes, or the client's next ones meet a closed socket.
    fn close(self) {
        let _ = self.stream.get_ref().shutdown(Shutdown::Both);
    }
}

/// A service on loopback, one thread per connection. Gives its address and what it has seen.
fn service(serve: impl Fn(Peer) + Send + Sync + 'static) -> (String, Receiver<(usize, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let (seen, sees) = crossbeam_channel::unbounded();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for (n_connection, stream) in listener.incoming().enumerate() {
            let peer = Peer { stream: BufReader::new(stream.expect("accepted")), n_connection, seen: seen.clone() };
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(peer));
        }
    });
    (format!("http://{address}/transactions"), sees)
}

/// Answers every request with the same bytes.
fn always(answer: &'static str) -> (String, Receiver<(usize, String)>) {
    service(move |mut peer| {
        while peer.request().is_some() {
            peer.say(answer);
        }
    })
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn client_with(url: &str, change: impl FnOnce(&mut config::Downstream)) -> UreqTransport {
    let mut config = config(url);
    change(&mut config);
    UreqTransport::new(Service::new(&config).expect("a legal configuration").shared)
}

fn client(url: &str) -> UreqTransport {
    client_with(url, |_| {})
}

fn send_bytes(client: &mut UreqTransport, payload: &[u8]) -> Answer {
    let headers = [("X-Origin".to_owned(), Some(b"a\r\nX-Evil: 1".to_vec()))];
    client.send(&Delivery {
        transaction_id: "tx-1\r\nX-Evil: 1",
        payload,
        headers: &headers,
        source: ("payments", 0, 7),
        received_at: SystemTime::UNIX_EPOCH,
        attempt: 1,
    })
}

fn send(client: &mut UreqTransport) -> Answer {
    send_bytes(client, b"{\"amount\":1}")
}

fn status(answer: &Answer) -> u16 {
    answer.result.as_ref().expect("a response").status
}

#[track_caller]
fn check_failure(answer: Answer, kind: FailureKind, sent: Sent) {
    let failure = answer.result.expect_err("no response");
    assert_eq!((failure.kind, failure.sent), (kind, sent), "{}", failure.text);
    assert!(!failure.text.contains("://"), "{}", failure.text);
}

#[test]
fn the_stored_bytes_arrive_with_the_headers_of_the_interface_and_no_others() {
    let (url, sees) = always(OK);
    assert_eq!(status(&send(&mut client(&url))), 200);
    let (_, request) = sees.recv().expect("a request");
    let mut lines: Vec<&str> = request.lines().filter(|l| !l.starts_with("traceparent: 00-")).collect();
    assert_eq!(lines.remove(0), "POST /transactions HTTP/1.1");
    lines.sort_unstable();
    let version = concat!("user-agent: txrelay/", env!("CARGO_PKG_VERSION"));
    let host = format!("host: {}", url.trim_start_matches("http://").trim_end_matches("/transactions"));
    let expected = [
        "",
        "content-length: 12",
        "content-type: application/json",
        &host,
        "idempotency-key: tx-1%0D%0AX-Evil:%201",
        "txrelay-attempt: 1",
        "txrelay-first-received: 1970-01-01T00:00:00.000Z",
        "txrelay-source: payments/0/7",
        version,
        "x-fixed: yes",
        "{\"amount\":1}",
    ];
    assert_eq!(lines, expected);
}

/// The service wakes once for a request, and not again for its body.
#[test]
fn the_head_goes_with_its_body() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/", listener.local_addr().expect("bound"));
    let first_reads = thread::spawn(move || {
        let mut stream = listener.accept().expect("a connection").0;
        let mut first_reads = Vec::new();
        for _ in 0..20 {
            let mut first = vec![0; 65536];
            let n = stream.read(&mut first).expect("a request");
            first_reads.push(String::from_utf8_lossy(&first[..n]).into_owned());
            stream.write_all(OK.as_bytes()).expect("answered");
        }
        first_reads
    });
    let mut client = client(&url);
    (0..20).for_each(|_| assert_eq!(status(&send(&mut client)), 200));
    for first in first_reads.join().expect("the service ends") {
        assert!(first.starts_with("POST / ") && first.ends_with("\r\n\r\n{\"amount\":1}"), "{first}");
    }
}

/// Also where head and body do not fit into one write.
#[test]
fn bodies_of_every_size_arrive_whole() {
    let (url, sees) = always(OK);
    let mut client = client(&url);
    for size in [1, 8 << 10, (32 << 10) - 400, (32 << 10) - 100, 32 << 10, (32 << 10) + 1, (64 << 10) + 5000, 1 << 20] {
        let body: Vec<u8> = (0..size).map(|i| b'a' + (i % 23) as u8).collect();
        assert_eq!(status(&send_bytes(&mut client, &body)), 200);
        let (connection, request) = sees.recv().expect("a request");
        let arrived = request.split_once("\r\n\r\n").expect("a head").1;
        assert!(arrived.as_bytes() == body, "{size} bytes: {} arrived", arrived.len());
        assert_eq!(connection, 0);
    }
}

#[test]
fn an_empty_body_has_a_length() {
    let (url, sees) = always(OK);
    assert_eq!(status(&send_bytes(&mut client(&url), b"")), 200);
    assert!(sees.recv().expect("a request").1.contains("content-length: 0\r\n"));
}

/// In a process of its own: threads are counted for the whole process.
#[test]
fn requests_share_a_connection_start_no_thread_and_ignore_the_environments_proxy() {
    let exe = std::env::current_exe().expect("this test's own binary");
    let output = Command::new(exe)
        .args(["--exact", "downstream::transport::tests::alone_two_hundred_requests", "--ignored", "--test-threads=1"])
        .envs(["http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"].map(|n| (n, "http://127.0.0.1:1")))
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "run by the test above"]
fn alone_two_hundred_requests() {
    let n_threads = || std::fs::read_dir("/proc/self/task").expect("procfs").count();
    let most = Arc::new(AtomicUsize::new(0));
    let noted = Arc::clone(&most);
    let (url, sees) = service(move |mut peer| {
        while peer.request().is_some() {
            noted.fetch_max(n_threads(), Relaxed);
            peer.say(OK);
        }
    });
    // A name, so that the resolver is asked.
    let mut client = client(&url.replace("127.0.0.1", "localhost"));
    assert_eq!(status(&send(&mut client)), 200);
    let before = n_threads();
    most.store(0, Relaxed);
    for _ in 0..200 {
        assert_eq!(status(&send(&mut client)), 200);
    }
    assert_eq!((most.load(Relaxed), n_threads()), (before, before));
    assert!(sees.try_iter().all(|(n_connection, _)| n_connection == 0));
}

#[test]
fn a_redirect_is_an_answer_and_not_followed() {
    let (elsewhere, never) = always(OK);
    for code in [301, 302, 303, 307, 308] {
        let target = elsewhere.clone();
        let (url, _sees) = service(move |mut peer| {
            while peer.request().is_some() {
                peer.say(format!("HTTP/1.1 {code} Gone\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n"));
            }
        });
        assert_eq!(status(&send(&mut client(&url))), code);
    }
    assert!(never.try_recv().is_err());
}

#[test]
fn a_failed_attempts_answer_is_kept_and_cut() {
    let (url, sees) = always("HTTP/1.1 503 No\r\nRetry-After:  120 \r\nContent-Length: 14\r\n\r\nout of \0order\n");
    let mut client = client_with(&url, |c| c.keep_answer = 10);
    for _ in 0..2 {
        let response = send(&mut client).result.expect("a response");
        let expected = Response { status: 503, retry_after: Some("120".into()), text: Some("out of \u{fffd}".into()) };
        assert_eq!(response, expected);
    }
    // Its connection is used again.
    assert_eq!(sees.try_iter().map(|(n, _)| n).collect::<Vec<_>>(), [0, 0]);
    let response = send(&mut client_with(&url, |c| c.keep_answer = 0)).result.expect("a response");
    assert_eq!(response.text, None);
}

#[test]
fn an_accepted_delivery_is_delivered_whatever_its_body_does() {
    for (head, then) in [
        ("Content-Length: 100", "short"),
        ("Transfer-Encoding: chunked", "zz\r\nnot a chunk"),
        ("Transfer-Encoding: chunked", "5\r\nab"),
        ("Content-Encoding: gzip\r\nContent-Length: 3", "abc"),
    ] {
        let (url, _sees) = service(move |mut peer| {
            peer.request();
            peer.say(format!("HTTP/1.1 202 Accepted\r\n{head}\r\n\r\n{then}"));
            peer.close();
        });
        assert_eq!(status(&send(&mut client(&url))), 202, "{head}, {then}");
    }
}

#[test]
fn an_endless_body_is_cut_and_its_connection_dropped() {
    let (url, sees) = service(|mut peer| {
        while peer.request().is_some() {
            peer.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            let chunk = format!("1000\r\n{}\r\n", "x".repeat(4096));
            while peer.stream.get_mut().write_all(chunk.as_bytes()).is_ok() {}
        }
    });
    let mut client = client(&url);
    for _ in 0..2 {
        let answer = send(&mut client);
        assert_eq!(status(&answer), 200);
        assert!(answer.latency < Duration::from_secs(10));
    }
    assert_eq!(sees.try_iter().map(|(n, _)| n).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn a_body_that_never_ends_holds_a_worker_no_longer_than_the_timeout() {
    let (url, _sees) = service(|mut peer| {
        peer.request();
        peer.say("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx");
        peer.request();
    });
    let answer = send(&mut client_with(&url, |c| c.timeout = Duration::from_millis(200)));
    assert_eq!(status(&answer), 200);
    assert!(answer.latency >= Duration::from_millis(200) && answer.latency < Duration::from_secs(2));
}

#[test]
fn a_service_that_hangs_is_a_timeout_and_unknown() {
    for head in ["", "HTTP/1.1 200 OK\r\nContent-"] {
        let (url, _sees) = service(move |mut peer| {
            peer.request();
            peer.say(head);
            peer.request();
        });
        let answer = send(&mut client_with(&url, |c| c.timeout = Duration::from_millis(200)));
        assert!(answer.latency >= Duration::from_millis(200) && answer.latency < Duration::from_secs(2));
        check_failure(answer, FailureKind::Timeout, Sent::Unknown);
    }
}

#[test]
fn a_service_that_reads_nothing_is_a_timeout_and_unknown() {
    let (url, _sees) = service(|mut peer| {
        let _ = peer.head();
        thread::sleep(Duration::from_secs(20));
    });
    let answer = send_bytes(&mut client_with(&url, |c| c.timeout = Duration::from_millis(300)), &vec![b'x'; 32 << 20]);
    assert!(answer.latency < Duration::from_secs(3), "{:?}", answer.latency);
    check_failure(answer, FailureKind::Timeout, Sent::Unknown);
}

#[test]
fn a_refused_connection_was_not_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/", listener.local_addr().expect("bound"));
    drop(listener);
    check_failure(send(&mut client(&url)), FailureKind::Connect, Sent::No);
}

#[test]
fn a_name_that_does_not_resolve_was_not_sent() {
    let config = config("http://nowhere.invalid/");
    let template = Template::new(&config).expect("legal");
    let lookup = Box::new(|_: &str, _| Err(std::io::Error::other("no such host")));
    let addresses = Addresses::with_lookup(&template.uri, lookup).expect("the thread starts");
    let mut client = UreqTransport::new(Service::with(&config, template, addresses).expect("legal").shared);
    let answer = send(&mut client);
    assert_eq!(answer.result.as_ref().expect_err("no name").text, "the host name does not resolve: no such host");
    check_failure(answer, FailureKind::Dns, Sent::No);
}

#[test]
fn a_fresh_connection_that_breaks_is_not_tried_twice() {
    let (url, sees) = service(|mut peer| {
        peer.request();
        peer.close();
    });
    check_failure(send(&mut client(&url)), FailureKind::Reset, Sent::Unknown);
    assert_eq!(sees.try_iter().count(), 1);
}

#[test]
fn a_reused_connection_that_breaks_before_the_answer_is_made_good_once() {
    // The service serves one request per connection and says nothing of it: the keep-alive race.
    let (url, sees) = service(|mut peer| {
        peer.request();
        peer.say(OK);
        peer.request();
        peer.close();
    });
    let mut client = client(&url);
    let bodies = [b"first".as_slice(), b"second"];
    for body in bodies {
        assert_eq!(status(&send_bytes(&mut client, body)), 200);
    }
    let seen: Vec<_> = sees.try_iter().collect();
    assert_eq!(seen.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [0, 0, 1]);
    assert_eq!(seen[1].1, seen[2].1, "the same bytes again");
}

#[test]
fn the_resend_is_the_last_one() {
    let (url, sees) = service(|mut peer| {
        peer.request();
        if peer.n_connection == 0 {
            peer.say(OK);
            peer.request();
        }
        peer.close();
    });
    let mut client = client(&url);
    assert_eq!(status(&send(&mut client)), 200);
    check_failure(send(&mut client), FailureKind::Reset, Sent::Unknown);
    assert_eq!(sees.try_iter().map(|(n, _)| n).collect::<Vec<_>>(), [0, 0, 1]);
}

#[test]
fn an_answer_that_has_begun_is_not_asked_for_again() {
    let (url, sees) = service(|mut peer| {
        peer.request();
        peer.say(OK);
        peer.request();
        peer.say("HTTP/1.1 20");
        peer.close();
    });
    let mut client = client(&url);
    assert_eq!(status(&send(&mut client)), 200);
    check_failure(send(&mut client), FailureKind::Reset, Sent::Unknown);
    assert_eq!(sees.try_iter().count(), 2);
}

#[test]
fn a_resend_keeps_the_first_deadline() {
    let (url, _sees) = service(|mut peer| {
        peer.request();
        if peer.n_connection == 0 {
            peer.say(OK);
            peer.request();
            thread::sleep(Duration::from_millis(400));
        } else {
            peer.request();
        }
        peer.close();
    });
    let mut client = client_with(&url, |c| c.timeout = Duration::from_millis(600));
    assert_eq!(status(&send(&mut client)), 200);
    let answer = send(&mut client);
    assert!(answer.latency < Duration::from_millis(900), "{:?}", answer.latency);
    check_failure(answer, FailureKind::Timeout, Sent::Unknown);
}

#[test]
fn an_answer_given_before_the_whole_request_was_read_is_heard() {
    for (answer, expected) in [("413 Too Large", Some(413)), ("200 OK", None)] {
        let (url, _sees) = service(move |mut peer| {
            let _ = peer.head();
            peer.say(format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n"));
            peer.close();
        });
        let result = send_bytes(&mut client(&url), &vec![b'x'; 32 << 20]);
        match expected {
            Some(code) => assert_eq!(status(&result), code),
            // What has not been read cannot have been accepted.
            None => check_failure(result, FailureKind::Reset, Sent::Unknown),
        }
    }
}

#[test]
fn interim_answers_are_passed_over() {
    let (url, sees) = always(concat!(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n",
        "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
    ));
    let mut client = client(&url);
    for _ in 0..3 {
        assert_eq!(status(&send(&mut client)), 201);
    }
    assert!(sees.try_iter().all(|(n, _)| n == 0));
}

#[test]
fn a_switch_of_protocols_is_no_acceptance_and_ends_the_connection() {
    let (url, sees) = always("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n");
    let mut client = client(&url);
    for _ in 0..2 {
        assert_eq!(status(&send(&mut client)), 101);
    }
    assert_eq!(sees.try_iter().map(|(n, _)| n).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn an_http_1_0_service_works() {
    let (url, sees) = service(|mut peer| {
        peer.request();
        peer.say("HTTP/1.0 200 OK\r\n\r\naccepted");
        peer.close();
    });
    let mut client = client(&url);
    for _ in 0..2 {
        assert_eq!(status(&send(&mut client)), 200);
    }
    assert_eq!(sees.try_iter().map(|(n, _)| n).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn what_is_not_http_is_tried_again() {
    let many_headers = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(1000));
    let long_header = format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "b".repeat(100_000));
    let endless = format!("HTTP/1.1 200 OK\r\nA: {}", "b".repeat(1_000_000));
    for answer in ["SSH-2.0-OpenSSH_9.2\r\n\r\n".into(), "HTTP/2 200\r\n\r\n".into(), many_headers, long_header, endless] {
        let start: String = answer.chars().take(20).collect();
        let (url, _sees) = service(move |mut peer| {
            peer.request();
            peer.say(&answer);
            peer.request();
        });
        let answer = send(&mut client(&url));
        assert!(answer.latency < Duration::from_secs(5), "{start}");
        check_failure(answer, FailureKind::Protocol, Sent::Unknown);
    }
}

#[test]
fn leftovers_of_one_answer_are_never_the_next_one() {
    let (url, sees) = service(|mut peer| {
        while peer.request().is_some() {
            peer.say(format!("{OK}HTTP/1.1 200 Ghost\r\nContent-Length: 0\r\n\r\n"));
        }
    });
    let mut client = client(&url);
    for _ in 0..2 {
        assert_eq!(status(&send(&mut client)), 200);
    }
    assert_eq!(sees.try_iter().map(|(n, _)| n).collect::<Vec<_>>(), [0, 1], "the connection was given up");
}

#[test]
fn a_service_without_tls_is_misconfigured_and_was_not_sent() {
    let (url, sees) = service(|mut peer| {
        let _ = peer.stream.fill_buf();
        peer.say("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    });
    check_failure(send(&mut client(&url.replace("http://", "https://"))), FailureKind::Tls, Sent::No);
    assert!(sees.try_recv().is_err());
}

#[test]
fn a_panic_in_the_client_is_a_failure_and_the_next_request_works() {
    #[derive(Debug)]
    struct Panics;
    impl Connector<()> for Panics {
        type Out = ();
        fn connect(&self, _: &ureq::unversioned::transport::ConnectionDetails, _: Option<()>) -> Result<Option<()>, ureq::Error> {
            panic!("on purpose")
        }
    }
    let (url, _sees) = always(OK);
    let mut client = client(&url);
    client.agent = Agent::with_parts(client.shared.agent.clone(), Panics, client.shared.addresses.clone());
    check_failure(send(&mut client), FailureKind::Protocol, Sent::No);
    assert_eq!(status(&send(&mut client)), 200);
}

#[test]
fn new_secrets_are_used_from_the_next_request_on_and_over_a_new_connection() {
    let folder = Folder::new();
    let file = folder.path().join("token");
    write_private(&file, b"one");
    let (url, sees) = always(OK);
    let mut client = client_with(&url, |c| c.security.auth = config::Auth::Bearer(file.display().to_string()));
    assert_eq!(status(&send(&mut client)), 200);
    assert_eq!(status(&send(&mut client)), 200);
    write_private(&file, b"two");
    assert_eq!(client.shared.keyring.read_again(), Ok(true));
    assert_eq!(status(&send(&mut client)), 200);
    let sent: Vec<(usize, bool)> =
        sees.try_iter().map(|(n, request)| (n, request.contains("authorization: Bearer two"))).collect();
    assert_eq!(sent, [(0, false), (0, false), (1, true)]);
}

/// A service with TLS that the client trusts.
fn secured(
    folder: &Folder,
    serve: impl Fn(&mut SslStream<TcpStream>) + Send + Sync + 'static,
) -> (UreqTransport, Receiver<(usize, String)>) {
    let authority = Authority::new("CA");
    let acceptor = Authority::acceptor(&authority.issue("localhost", false, folder.path(), "server"), None);
    let (url, sees) = service(move |peer| {
        let (n, seen) = (peer.n_connection, peer.seen.clone());
        let ssl = Ssl::new(acceptor.context()).expect("a connection");
        let mut stream = SslStream::new(ssl, peer.stream.into_inner()).expect("a stream");
        if stream.accept().is_ok() {
            let _ = seen.send((n, String::new()));
            serve(&mut stream);
        }
    });
    let ca = authority.write(&folder.path().join("ca.crt")).display().to_string();
    let url = url.replace("http://127.0.0.1", "https://localhost");
    let client = client_with(&url, |c| c.security.tls.ca = Some(ca));
    (client, sees)
}

fn read_request(stream: &mut SslStream<TcpStream>) -> bool {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(b"\r\n\r\n{\"amount\":1}") {
        match stream.read(&mut byte) {
            Ok(1) => seen.push(byte[0]),
            _ => return false,
        }
    }
    true
}

#[test]
fn requests_over_tls_share_a_connection() {
    let folder = Folder::new();
    let (mut client, sees) = secured(&folder, |stream| {
        while read_request(stream) {
            stream.write_all(OK.as_bytes()).expect("written");
        }
    });
    for _ in 0..20 {
        assert_eq!(status(&send(&mut client)), 200);
    }
    assert_eq!(sees.try_iter().count(), 1);
}

#[test]
fn a_reused_connection_over_tls_that_ends_before_the_answer_is_made_good_once() {
    let folder = Folder::new();
    let (mut client, sees) = secured(&folder, |stream| {
        read_request(stream);
        stream.write_all(OK.as_bytes()).expect("written");
        read_request(stream);
    });
    for _ in 0..3 {
        assert_eq!(status(&send(&mut client)), 200);
    }
    assert_eq!(sees.try_iter().count(), 3);
}

/// Two records of TLS: one is read as the answer, the other would lie in a buffer until the next request.
#[test]
fn leftovers_of_one_answer_over_tls_are_never_the_next_one() {
    let folder = Folder::new();
    let (mut client, sees) = secured(&folder, |stream| {
        let ghost = "HTTP/1.1 200 Ghost\r\nContent-Length: 0\r\n\r\n";
        while read_request(stream) {
            // In one segment, so that both are in the client's buffer when it reads.
            let cork = |stream: &SslStream<TcpStream>, on| set_tcp_cork(stream.get_ref(), on).expect("a socket");
            cork(stream, true);
            let both = stream.write_all(OK.as_bytes()).and_then(|()| stream.write_all(ghost.as_bytes()));
            cork(stream, false);
            if both.is_err() {
                return;
            }
        }
    });
    for _ in 0..10 {
        assert_eq!(status(&send(&mut client)), 200);
    }
    assert_eq!(sees.try_iter().count(), 10, "each connection was given up");
}

#[test]
fn an_unreachable_address_that_comes_first_costs_nothing_but_time() {
    let (url, _sees) = always(OK);
    let port: u16 = url.rsplit(':').next().and_then(|rest| rest.split('/').next()).and_then(|p| p.parse().ok()).expect("a port");
    let config = config("http://ledger.internal/");
    let template = Template::new(&config).expect("legal");
    let lookup =
        Box::new(move |_: &str, _| Ok(vec![(std::net::Ipv6Addr::LOCALHOST, port).into(), ([127, 0, 0, 1], port).into()]));
    let addresses = Addresses::with_lookup(&template.uri, lookup).expect("the thread starts");
    let mut client = UreqTransport::new(Service::with(&config, template, addresses).expect("legal").shared);
    assert_eq!(status(&send(&mut client)), 200);
}

#[test]
fn a_lookup_that_stalls_was_not_sent_and_ends_at_connect_timeout() {
    let mut config = config("http://ledger.internal/");
    config.connect_timeout = Duration::from_millis(100);
    let template = Template::new(&config).expect("legal");
    let (_keep, never) = crossbeam_channel::bounded::<()>(0);
    let lookup = Box::new(move |_: &str, _| {
        let _ = never.recv();
        Ok(Vec::new())
    });
    let addresses = Addresses::with_lookup(&template.uri, lookup).expect("the thread starts");
    let mut client = UreqTransport::new(Service::with(&config, template, addresses).expect("legal").shared);
    let answer = send(&mut client);
    assert!(answer.latency < Duration::from_secs(5), "{:?}", answer.latency);
    check_failure(answer, FailureKind::Dns, Sent::No);
}

#[test]
fn a_name_that_leads_to_a_metadata_service_is_misconfigured_and_was_not_sent() {
    let config = config("http://ledger.internal/");
    let template = Template::new(&config).expect("legal");
    let lookup = Box::new(|_: &str, _| Ok(vec![([169, 254, 169, 254], 80).into()]));
    let addresses = Addresses::with_lookup(&template.uri, lookup).expect("the thread starts");
    let mut client = UreqTransport::new(Service::with(&config, template, addresses).expect("legal").shared);
    let answer = send(&mut client);
    let text = &answer.result.as_ref().expect_err("refused").text;
    assert!(text.contains("169.254.169.254"), "{text}");
    check_failure(answer, FailureKind::BadRequest, Sent::No);
}
