-- Records other than its own that carry the id of transaction $1 (tx.id): how many repeat it byte for byte, how many have other
-- bytes, and the newest of those that nobody has resolved.
select (select count(*) from duplicate where tx_id = $1::bigint),
  (select count(*) from rejected where tx_id = $1::bigint),
  (select max(id) from rejected where tx_id = $1::bigint and resolved_at is null)
