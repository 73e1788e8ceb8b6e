-- A batch that brings nothing but new transactions, with its positions: what `ingest` ($1 to $14) and `advance` ($15 to $20 its
-- $1 to $6; the slot is $14) do, in one statement, and in the same order: rows, then positions, so that two never wait for each other.
-- Returns the new rows, each with how many positions were moved. Unless those are all rows and all positions: ROLLBACK, and do it
-- step by step.
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
), a as (
  update consumer_position c set next_offset = u.new, skipped = c.skipped + u.skip, updated_at = now()
  from unnest($15::text[], $16::int[], $17::bigint[], $18::bigint[], $19::bigint[], $20::bigint[])
    u(topic, partition, epoch, expected, new, skip)
  where c.topic = u.topic collate "C" and c.partition = u.partition and c.epoch = u.epoch and c.next_offset = u.expected
    and (select count(*) from i) = cardinality($1)
  returning 1
), c as (
  insert into counter as c (slot, name, n) select $14::int, k.name, (select count(*) from i) from (values (2), (1)) k(name)
  on conflict (slot, name) do update set n = c.n + excluded.n
)
select id, received_at, (select count(*) from a) as moved from i
