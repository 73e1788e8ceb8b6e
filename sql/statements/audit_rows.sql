-- What there is of up to $3 transactions with ids above $1, up to $2: their numbers and places, and which ids of that range are open,
-- dead, resolved, or were accepted. One snapshot, as arrays (a row each would cost more than reading it). Returns first where the
-- range ends.
with t as materialized (
  select id, topic_id, partition, incarnation, kafka_offset from tx
  where id > $1::bigint and id <= $2::bigint order by id limit $3::bigint
), e as materialized (
  select case when count(*) = $3::bigint then max(id) else $2::bigint end as upto from t
)
select (select upto from e), coalesce(array_agg(id), '{}'), coalesce(array_agg(topic_id), '{}'), coalesce(array_agg(partition), '{}'),
  coalesce(array_agg(incarnation), '{}'), coalesce(array_agg(kafka_offset), '{}'),
  array(select id from delivery where id > $1::bigint and id <= (select upto from e)),
  array(select id from dead where id > $1::bigint and id <= (select upto from e)),
  array(select id from resolved where id > $1::bigint and id <= (select upto from e)),
  array(select tx_id from attempt where tx_id > $1::bigint and tx_id <= (select upto from e) and outcome = 1 and not stale)
from t
