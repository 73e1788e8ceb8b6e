//! `explain`: one sentence, why a transaction is where it is.

use std::path::Path;

use serde_json::json;

use super::{Exit, look, non_empty, say};
use crate::config::visible;
use crate::core::explain::explain as decide;
use crate::store::Coordinates;

#[derive(Debug, clap::Args)]
pub(super) struct ExplainArgs {
    /// The transaction's id
    #[arg(required_unless_present = "at", value_parser = non_empty())]
    id: Option<String>,
    /// Where its producer says that it stands in Kafka
    #[arg(long, value_name = "TOPIC/PARTITION/OFFSET", value_parser = coordinates)]
    at: Option<Coordinates>,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn explain(file: &Path, sets: &[String], args: &ExplainArgs) -> Exit {
    look(file, sets, "explain", |config, session, _| {
        let place = args.at.as_ref().map(|at| format!("{}/{}/{}", at.topic, at.partition, at.offset));
        let asked = match (&args.id, &place) {
            (Some(id), Some(place)) => format!("{} ({})", visible(id), visible(place)),
            (Some(id), None) => visible(id),
            (None, place) => visible(place.as_deref().unwrap_or_default()),
        };
        let limits = (config.retry.give_up_after, config.retention.delivered);
        let facts = session.facts(args.id.as_deref(), args.at.as_ref(), asked, limits)?;
        let (reason, sentence) = decide(&facts);
        say(&if args.json {
            json!({ "transaction_id": args.id, "at": place, "reason": reason.label(), "explanation": sentence }).to_string()
        } else {
            visible(&sentence)
        });
        Ok(if reason.is_wrong() { Exit::Failed } else { Exit::Done })
    })
}

/// As the header `Txrelay-Source` names a place.
fn coordinates(text: &str) -> Result<Coordinates, String> {
    let parse = || {
        let (rest, offset) = text.rsplit_once('/')?;
        let (topic, partition) = rest.rsplit_once('/')?;
        let (partition, offset) = (partition.parse().ok()?, offset.parse().ok()?);
        (!topic.is_empty() && partition >= 0 && offset >= 0).then(|| Coordinates { topic: topic.to_owned(), partition, offset })
    };
    parse().ok_or_else(|| "a place is TOPIC/PARTITION/OFFSET, as payments/0/4711".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_written_as_in_the_request() {
        let at = coordinates("pay.ments/3/4711").expect("a place");
        assert_eq!((at.topic.as_str(), at.partition, at.offset), ("pay.ments", 3, 4711));
        for wrong in ["", "payments", "payments/3", "payments/x/1", "payments/1/-1", "/1/1"] {
            assert!(coordinates(wrong).is_err(), "{wrong}");
        }
    }
}
