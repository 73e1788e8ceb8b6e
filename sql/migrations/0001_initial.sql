-- compatible_from: 1
-- Everything that a pipeline keeps. Codes: attempt.outcome 1 delivered 2 retry 3 throttled 4 down 5 misconfigured 6 refused
-- 7 lost; attempt.sent 0 no 1 yes 2 unknown; counter.name as in src/core/ledger.rs.

create table pipeline (
  one boolean primary key default true check (one),
  name text not null,
  cluster_id text,
  created_at timestamptz not null default now(),
  paused_at timestamptz,
  paused_until timestamptz,
  paused_by text,
  paused_reason text
);
comment on table pipeline is 'One row: whose schema this is, and whether delivering is paused.';

create table process (
  id bigint generated always as identity primary key,
  instance uuid,
  host text not null,
  pid int not null,
  version text not null,
  lease_ms bigint not null,
  started_at timestamptz not null default now(),
  seen_at timestamptz not null default now(),
  ended_at timestamptz,
  in_flight int not null default 0,
  stalled text[] not null default '{}',
  status text not null default ''
);
comment on table process is 'One row per start of the daemon. seen_at is its heartbeat; stalled and status say what it waits for.';
comment on column process.instance is 'UUID of the locked state file: proves that a predecessor is dead. Null without a state directory.';

create table topic (
  id smallint generated always as identity primary key,
  name text collate "C" not null unique
);
comment on table topic is 'Names of topics, so that a transaction stores two bytes.';

-- Ids come in blocks of 1024, one nextval per batch: rows go in sorted by transaction_id (unsorted deadlocks) while the id
-- follows Kafka''s order, and id & 1023 is the row''s place in its batch.
create sequence batch_seq increment by 1024 start with 1024;

create table tx (
  id bigint not null,
  received_at timestamptz not null default now(),
  kafka_offset bigint not null,
  record_at timestamptz,
  partition int not null,
  incarnation smallint not null,
  topic_id smallint not null,
  transaction_id text collate "C" not null,
  key bytea,
  headers jsonb,
  payload bytea,
  constraint tx_pk primary key (id),
  constraint tx_transaction_id_uk unique (transaction_id)
) with (autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_vacuum_insert_threshold = 100000,
  autovacuum_freeze_min_age = 0, autovacuum_analyze_scale_factor = 0.02);
comment on table tx is 'Every accepted record, written once and never updated. The payload is Kafka''s bytes, exact; null only after erase.';
comment on column tx.headers is 'Array of [name, value]: value a string, null, or {"hex": ...} where the bytes are not text.';
create index tx_received on tx using brin (received_at);
do $$ begin
  alter table tx alter payload set compression lz4;
exception when feature_not_supported then
  raise notice 'this server has no lz4: payloads above 2 kB cost more CPU';
end $$;

create table delivery (
  id bigint primary key,
  due_at timestamptz not null,
  lease bigint,
  leased_by bigint,
  attempt int not null default 0,
  spent_ms bigint not null default 0
) with (fillfactor = 90, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
  autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000, autovacuum_vacuum_cost_delay = 0,
  vacuum_index_cleanup = on);
comment on table delivery is 'Open work: a row exists exactly while its transaction is not finished.';
comment on column delivery.due_at is 'Next attempt; while leased, the lease''s expiry. Claimable from here on.';
comment on column delivery.lease is 'Random number of the claim that holds it, null while waiting: the fence of every settle.';
comment on column delivery.leased_by is 'process.id; names the holder and decides nothing.';
comment on column delivery.attempt is 'Attempts begun; counted when claimed.';
comment on column delivery.spent_ms is 'Waited for its own failures; dead at retry.give_up_after.';
create index delivery_due on delivery (due_at);

create table attempt (
  tx_id bigint not null,
  finished_at timestamptz not null default now(),
  lease bigint,
  n int not null,
  latency_ms int,
  outcome smallint not null check (outcome between 1 and 7),
  http_status smallint,
  sent smallint not null check (sent between 0 and 2),
  stale boolean not null default false,
  error text
);
comment on table attempt is 'Append-only history, and the proof of delivery; purged with its transaction, never before.';
comment on column attempt.stale is 'Its lease was no longer the row''s: the answer came too late to change anything.';
create index attempt_tx on attempt (tx_id);

create table dead (
  id bigint primary key,
  died_at timestamptz not null default now(),
  attempts int not null,
  reason text not null check (reason in ('refused', 'gave_up')),
  http_status smallint,
  error text
);
comment on table dead is 'Given up by rule, kept for a person: gave up confirming, never "was not delivered".';

create table resolved (
  id bigint primary key,
  resolved_at timestamptz not null default now(),
  who text not null,
  reason text not null
);
comment on table resolved is 'Closed by a person without being sent.';

create table rejected (
  id bigint generated always as identity primary key,
  topic text collate "C" not null,
  partition int not null,
  incarnation smallint not null,
  kafka_offset bigint not null,
  received_at timestamptz not null default now(),
  reason text not null check (reason in
    ('unreadable', 'id_missing', 'id_invalid', 'conflict', 'too_large', 'tombstone', 'not_storable')),
  detail text,
  tx_id bigint,
  key bytea,
  headers jsonb,
  payload bytea,
  resolved_at timestamptz,
  constraint rejected_place_uk unique (topic, partition, incarnation, kafka_offset)
);
comment on table rejected is 'Records that could not become a transaction, with their raw bytes.';
comment on column rejected.tx_id is 'For a conflict: the transaction that already has this id.';

create table duplicate (
  topic text collate "C" not null,
  partition int not null,
  incarnation smallint not null,
  kafka_offset bigint not null,
  tx_id bigint not null,
  seen_at timestamptz not null default now(),
  primary key (topic, partition, incarnation, kafka_offset)
);
comment on table duplicate is 'Records that repeat a stored transaction byte for byte.';

create table known_gap (
  topic text collate "C" not null,
  partition int not null,
  incarnation smallint not null,
  from_offset bigint not null,
  to_offset bigint not null,
  reason text not null check (reason in ('retention', 'recreated', 'truncated', 'unexplained')),
  noticed_at timestamptz not null default now()
);
comment on table known_gap is 'Offsets that Kafka lost before they were read: from_offset up to, not including, to_offset.';

create table consumer_position (
  topic text collate "C" not null,
  partition int not null,
  incarnation smallint not null default 0,
  next_offset bigint not null,
  skipped bigint not null default 0,
  owner bigint not null,
  epoch bigint not null,
  topic_id uuid,
  updated_at timestamptz not null default now(),
  primary key (topic, partition)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
comment on table consumer_position is 'The next offset to read, moved in the transaction of the rows before it.';
comment on column consumer_position.epoch is 'Raised when a process takes the partition: the fence of every advance.';
comment on column consumer_position.incarnation is 'Lives of the topic: +1 when it was deleted and created again.';
comment on column consumer_position.skipped is 'Offsets that the client passed over: markers, aborted and compacted records.';

create table counter (
  slot int not null,
  name smallint not null,
  n bigint not null default 0,
  primary key (slot, name)
) with (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
comment on table counter is 'Both sides of the ledger, each changed in the transaction of the rows that it counts; sum over slots.';

create table audit_log (
  at timestamptz not null default now(),
  who text not null default session_user,
  uid int,
  sudo_user text,
  host text,
  command text not null,
  detail text
);
comment on table audit_log is 'What people did with the command line.';

create function payload_as_json(payload bytea) returns jsonb language plpgsql immutable parallel safe as $$
begin
  return convert_from(payload, 'UTF8')::jsonb;
exception when others then
  return null;
end $$;

create view transaction_status as
select t.transaction_id,
  case when d.lease is not null and d.due_at > now() then 'in_flight'
       when d.id is not null and d.attempt = 0 then 'pending'
       when d.id is not null then 'retrying'
       when x.id is not null then 'dead'
       when r.id is not null then 'resolved'
       when h.delivered_at is not null then 'delivered'
       else 'unaccounted' end as state,
  p.name as topic, t.partition, t.kafka_offset, t.key, payload_as_json(t.payload) as payload_json, t.received_at,
  coalesce(d.attempt, x.attempts, h.attempts, 0) as attempts,
  coalesce(h.unknown_attempts, 0) as unknown_attempts,
  d.due_at as next_attempt_at,
  h.delivered_at,
  l.outcome as last_outcome, l.http_status as last_http_status, l.error as last_error
from tx t
join topic p on p.id = t.topic_id
left join delivery d on d.id = t.id
left join dead x on x.id = t.id
left join resolved r on r.id = t.id
left join lateral (
  select max(a.n) as attempts, count(*) filter (where a.sent = 2) as unknown_attempts,
    min(a.finished_at) filter (where a.outcome = 1 and not a.stale) as delivered_at
  from attempt a where a.tx_id = t.id
) h on true
left join lateral (
  select case a.outcome when 1 then 'delivered' when 2 then 'retry' when 3 then 'throttled' when 4 then 'down'
    when 5 then 'misconfigured' when 6 then 'refused' else 'lost' end as outcome, a.http_status, a.error
  from attempt a where a.tx_id = t.id order by a.finished_at desc, a.n desc limit 1
) l on true;
comment on view transaction_status is 'Every transaction and where it stands. State is evidence: delivered means that an attempt says so.';

create view attempt_history as
select t.transaction_id, a.n as attempt, a.finished_at,
  case a.outcome when 1 then 'delivered' when 2 then 'retry' when 3 then 'throttled' when 4 then 'down'
    when 5 then 'misconfigured' when 6 then 'refused' else 'lost' end as outcome,
  a.http_status, a.latency_ms, case a.sent when 0 then 'no' when 1 then 'yes' else 'unknown' end as sent, a.stale, a.error
from attempt a join tx t on t.id = a.tx_id;
comment on view attempt_history is 'Every attempt of every transaction.';
