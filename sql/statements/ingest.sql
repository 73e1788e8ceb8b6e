-- New transactions. Arrays sorted by transaction_id (unsorted, two processes deadlock): $1 ids, $2 keys, $3 headers,
-- $4 payloads, $5 partitions, $6 offsets, $7 record times, $8 places in Kafka's order (0-1023), $9 topics, $10 incarnations.
-- $11 lease (null: born due), $12 process, $13 lease time in ms, $14 counter slot.
-- Returns the new rows only; id & 1023 is the place.
with b as materialized (select nextval('batch_seq') as base),
i as (
  insert into tx (id, transaction_id, key, headers, payload, partition, kafka_offset, record_at, topic_id, incarnation)
  select b.base + u.place, u.t, u.k, u.h, u.v, u.p, u.o, u.ts, u.topic, u.inc
  from b, unnest($1::text[], $2::bytea[], $3::jsonb[], $4::bytea[], $5::int[], $6::bigint[], $7::timestamptz[], $8::int[],
    $9::smallint[], $10::smallint[]) as u(t, k, h, v, p, o, ts, place, topic, inc)
  on conflict (transaction_id) do nothing
  returning id, received_at
), d as (
  insert into delivery (id, due_at, lease, leased_by, attempt)
  select i.id, case when $11::bigint is null then now() else now() + $13::bigint * interval '1 millisecond' end,
    $11, case when $11 is null then null else $12::bigint end, ($11 is not null)::int
  from i
), c as (
  insert into counter as c (slot, name, n) select $14::int, 2, count(*) from i having count(*) > 0
  on conflict (slot, name) do update set n = c.n + excluded.n
)
select id, received_at from i
