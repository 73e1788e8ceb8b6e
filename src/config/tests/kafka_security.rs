//! `[kafka.tls]`, `[kafka.sasl]`, and what the pure-Rust client cannot do.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::config::SaslMechanism;

fn secret(folder: &Folder) -> String {
    let file = folder.write("password", "hunter2\n");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    file.display().to_string()
}

#[test]
fn an_empty_table_is_tls_with_the_systems_trust_store_and_none_is_none() {
    assert!(accepts(&[]).kafka.tls.is_none() && accepts(&[]).kafka.sasl.is_none());
    let with = |more: &str| read(&format!("{BASE}{more}\n"), &[]).expect(more).kafka.tls;
    assert!(with("[kafka.tls]").is_some_and(|tls| tls.ca.is_none() && tls.client.is_none()));
    assert!(read(&format!("{FIVE_LINES}kafka.tls = {{}}\n"), &[]).expect("loads").kafka.tls.is_some());
}

#[test]
fn files_of_tls_are_looked_at_when_the_file_is_loaded() {
    let folder = Folder::new();
    let nothing = folder.write("ca.crt", "no certificate").display().to_string();
    refuses("kafka.tls.ca_file", "/nonexistent/ca.crt", "/nonexistent/ca.crt cannot be read");
    refuses("kafka.tls.ca_file", &nothing, "holds no certificate");
    refuses("kafka.tls.ca_file", "ca.crt", "must be an absolute path");
    refuses("kafka.tls.cert_file", "/x.crt", "without kafka.tls.key_file");
    refuses("kafka.tls.key_file", "/x.key", "without kafka.tls.cert_file");
}

#[test]
#[cfg_attr(not(feature = "librdkafka"), ignore = "of builds with librdkafka")]
fn a_log_in_needs_a_name_and_a_password_and_plain_needs_tls() {
    let folder = Folder::new();
    let file = secret(&folder);
    let password = format!("kafka.sasl.password_file={file}");
    let sasl = accepts(&["kafka.sasl.username=relay", &password]).kafka.sasl.expect("SASL");
    assert_eq!((sasl.mechanism, sasl.username.as_str()), (SaslMechanism::ScramSha512, "relay"));
    assert_eq!(sasl.read_password().as_deref(), Ok("hunter2"));
    assert!(!format!("{sasl:?}").contains("hunter2"));
    check(
        &format!("{BASE}[kafka.sasl]\n"),
        &["F:8:8: kafka.sasl.username: is missing...", "F:8:8: kafka.sasl.password_file: is missing..."],
    );
    let named = ["kafka.sasl.username=relay", &password, "kafka.sasl.mechanism=OAUTHBEARER"];
    check_set(BASE, &named, &["--set: kafka.sasl.mechanism: must be one of..."]);
    let plain = ["kafka.sasl.mechanism=PLAIN", "kafka.sasl.username=relay", &password];
    check_set(BASE, &plain, &["--set: kafka.sasl.mechanism: PLAIN sends the password as it is: it needs TLS..."]);
    read(&format!("{BASE}[kafka.tls]\n"), &plain).expect("with TLS it may");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    check_set(BASE, &["kafka.sasl.username=relay", &password], &["--set: kafka.sasl.password_file: ..."]);
}

#[test]
#[cfg_attr(not(feature = "librdkafka"), ignore = "of builds with librdkafka")]
fn librdkafkas_own_words_for_tls_and_sasl_are_refused_with_the_key_to_use() {
    for (name, key) in [
        ("security.protocol", "[kafka.tls] and [kafka.sasl]"),
        ("ssl.ca.location", "[kafka.tls]"),
        ("ssl.endpoint.identification.algorithm", "[kafka.tls]"),
        ("sasl.mechanism", "[kafka.sasl]"),
        ("sasl.password", "[kafka.sasl]"),
    ] {
        refuses(&format!("kafka.librdkafka.{name}"), "x", key);
    }
    refuses("kafka.librdkafka.group.protocol", "cooperative", "must be \"classic\" or \"consumer\"");
    accepts(&["kafka.librdkafka.group.protocol=consumer"]);
}

#[test]
#[cfg_attr(not(feature = "librdkafka"), ignore = "of builds with librdkafka")]
fn a_command_that_does_not_speak_to_kafka_needs_none_of_its_files() {
    let text = format!(
        "{BASE}[kafka.tls]\nca_file = \"/nonexistent/ca\"\n[kafka.sasl]\nusername = \"u\"\npassword_file = \"/nonexistent/p\"\n"
    );
    assert_eq!(read(&text, &[]).expect_err("nothing is there").len(), 2);
    let sets: Vec<String> = crate::config::KAFKA_FILES.iter().map(|(key, nothing)| format!("{key}={nothing}")).collect();
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    read(&text, &sets).expect("nothing is looked for");
    // Nor do they switch anything on.
    let config = read(BASE, &sets).expect("loads");
    assert!(config.kafka.tls.is_none() && config.kafka.sasl.is_none());
}

#[cfg(feature = "kafka")]
#[test]
fn what_the_pure_rust_client_cannot_give_is_refused_by_name() {
    let client = "kafka.client=kafka";
    let config = accepts(&[client]);
    assert_eq!((config.kafka.client, config.downstream.forward_headers), (crate::config::KafkaClient::Kafka, Vec::new()));
    let folder = Folder::new();
    let password = format!("kafka.sasl.password_file={}", secret(&folder));
    for (more, problem) in [
        (&["kafka.sasl.username=relay", &password][..], "kafka.sasl: kafka.client = \"kafka\" cannot log in with SASL: set..."),
        (&["kafka.librdkafka.fetch.wait.max.ms=1"], "kafka.librdkafka: these properties are librdkafka's..."),
        (&["transaction.id=header:id"], "transaction.id: kafka.client = \"kafka\" reads no headers: set..."),
        (&["downstream.forward_headers=baggage"], "downstream.forward_headers: kafka.client = \"kafka\" reads no headers..."),
    ] {
        let sets: Vec<&str> = [client].iter().chain(more).copied().collect();
        check_set(BASE, &sets, &[&format!("--set: {problem}")]);
    }
    accepts(&[client, "downstream.forward_headers=[]", "transaction.id=key"]);
}
