//! The direction of `src`: cli, daemon -> ingest, deliver, upkeep -> source, store, downstream, ops -> config -> core.

use std::path::Path;

use crate::rig::sources;

const RANKS: [(&str, u32); 12] = [
    ("failpoint", 0),
    ("core", 0),
    ("config", 1),
    ("source", 2),
    ("store", 2),
    ("downstream", 2),
    ("ops", 2),
    ("ingest", 3),
    ("deliver", 3),
    ("upkeep", 3),
    ("daemon", 4),
    ("cli", 5),
];

fn rank(room: &str) -> u32 {
    RANKS.iter().find(|(name, _)| *name == room).unwrap_or_else(|| panic!("a room that the map does not know: {room}")).1
}

#[test]
fn rooms_use_only_rooms_of_a_lower_rank() {
    let mut uses = 0;
    for (file, text) in sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))) {
        let room = file.split('/').next().unwrap_or_default().trim_end_matches(".rs");
        if matches!(room, "main" | "lib") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            for used in line.split("crate::").skip(1) {
                // `use crate::{a, b}` would hide names from this test.
                let name: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                assert!(!name.is_empty(), "{file}:{}: one `use crate::room` a line, so that this test can read it", number + 1);
                uses += 1;
                assert!(name == room || rank(&name) < rank(room), "{file}:{}: {room} must not use {name}", number + 1);
            }
        }
    }
    assert!(uses > 50, "only {uses} uses found: is this test still reading them?");
}

#[test]
fn the_core_does_no_io_and_reads_no_clock() {
    for (file, text) in sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/core"))) {
        // Compiled into tests only: it draws the world around the gate.
        if file == "gate/simulation.rs" {
            continue;
        }
        for word in ["std::fs", "std::net", "std::thread", "Instant::now", "SystemTime::now", "rand::", "log::"] {
            assert!(!text.contains(word), "core/{file} uses {word}");
        }
    }
}

#[test]
fn the_page_of_faults_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("tests/FAULTS.md")).expect("tests/FAULTS.md");
    let named: Vec<&str> =
        page.split('`').filter(|word| word.contains("::") && !word.contains(' ') && !word.ends_with('\'')).collect();
    assert!(named.len() > 50, "only {} tests found", named.len());
    for name in named {
        let (module, test) = name.split_once("::").expect("module::test");
        let source = std::fs::read_to_string(root.join(format!("tests/it/{module}.rs"))).unwrap_or_default();
        assert!(source.contains(&format!("fn {test}()")), "{name} is not in tests/it/{module}.rs");
    }
}
