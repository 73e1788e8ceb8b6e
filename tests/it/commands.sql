-- A schema with a transaction in every state, a rejected record of some kinds, and nothing that moves: what the golden test of
-- the commands is held against. Times in the past are fixed; what is to happen lies in 2099.
insert into topic (name) values ('payments');
insert into process (id, host, pid, version, lease_ms, started_at, seen_at) overriding system value values
  (7, 'vm-1', 4711, '0.1.0', 60000, now(), now() + interval '10 minutes');
insert into process (id, host, pid, version, lease_ms, started_at, seen_at, ended_at) overriding system value values
  (6, 'vm-2', 4712, '0.1.0', 60000, '2026-01-31T07:00Z', '2026-01-31T07:59Z', '2026-01-31T07:59Z');
insert into consumer_position (topic, partition, next_offset, owner, epoch, updated_at) values ('payments', 0, 100, 7, 1, now());
insert into counter (slot, name, n) values (3, 1, 20), (3, 2, 16), (3, 3, 1), (3, 4, 3), (3, 5, 4), (3, 6, 2), (3, 7, 1);
insert into life (topic, partition, incarnation, first_offset) values ('payments', 0, 0, 10);
insert into purged (topic, partition, incarnation, to_offset, offsets) values ('payments', 0, 0, 15, 3);
insert into known_gap (topic, partition, incarnation, from_offset, to_offset, reason) values ('payments', 0, 0, 15, 18, 'retention');
insert into skipped (topic, partition, incarnation, from_offset, offsets) values ('payments', 0, 0, 18, '{[18,19)}');

insert into tx (id, transaction_id, topic_id, partition, incarnation, kafka_offset, record_at, received_at, key, headers, payload)
select 1024 + n, id, 1, 0, 0, 20 + n, timestamptz '2026-01-31T07:59:59Z', timestamptz '2026-01-31T08:00:00Z', bytea 'k-1', jsonb '[["traceparent", "00-1"], ["x", null]]',
  convert_to('{"transaction_id":"' || id || '","amount":"12.34"}', 'UTF8')
from unnest(array['delivered', 'late', 'resolved', 'erased', 'refused', 'gave-up', 'pending', 'in-flight', 'lapsing', 'retrying',
  'spent', 'lost', 'due', 'unaccounted', 'conflict', E'odd\u001b[31m id\n']) with ordinality q(id, n);

insert into delivery (id, due_at, lease, leased_by, attempt, spent_ms)
select t.id, due::timestamptz, lease, by, attempt, spent from (values
  ('pending', '2099-01-31T08:00:00Z', null::bigint, null::bigint, 0, 0),
  ('in-flight', '2099-01-31T08:00:00Z', 99, 7, 1, 0),
  ('lapsing', '2099-01-31T08:00:00Z', 98, 6, 1, 0),
  ('retrying', '2099-01-31T08:00:00Z', null, null, 1, 0),
  ('spent', '2099-01-31T08:00:00Z', null, null, 1, 3600000),
  ('lost', '2026-01-31T08:01:00Z', 97, 6, 1, 0),
  ('due', '2026-01-31T08:00:00Z', null, null, 0, 0)) q(name, due, lease, by, attempt, spent)
join tx t on t.transaction_id = q.name;

insert into attempt (tx_id, finished_at, n, latency_ms, outcome, http_status, sent, stale, error)
select t.id, at::timestamptz, n, ms, outcome, status, sent, stale, error from (values
  ('delivered', '2026-01-31T08:00:01Z', 1, 20, 4, 503, 1, false, 'busy'),
  ('delivered', '2026-01-31T08:00:02Z', 2, 30, 1, 200, 1, false, null),
  ('late', '2026-01-31T08:00:01Z', 1, null, 7, null, 2, false, null),
  ('late', '2026-01-31T08:00:02Z', 1, 60000, 1, 200, 1, true, null),
  ('late', '2026-01-31T08:00:03Z', 2, 40, 1, 200, 1, false, null),
  ('resolved', '2026-01-31T08:00:01Z', 1, 15000, 4, null, 2, false, 'timeout'),
  ('erased', '2026-01-31T08:00:01Z', 1, 10, 1, 201, 1, false, null),
  ('conflict', '2026-01-31T08:00:01Z', 1, 10, 1, 200, 1, false, null),
  ('refused', '2026-01-31T08:00:01Z', 1, 10, 6, 400, 1, false, 'no such account'),
  ('gave-up', '2026-01-31T09:00:01Z', 9, 10, 2, 500, 1, false, 'oops'),
  ('retrying', '2026-01-31T08:00:01Z', 1, 10, 4, 503, 1, false, 'busy'),
  ('spent', '2026-01-31T08:00:01Z', 1, 10, 2, 500, 1, false, 'oops')) q(name, at, n, ms, outcome, status, sent, stale, error)
join tx t on t.transaction_id = q.name;

insert into dead (id, died_at, attempts, reason, http_status, error)
select id, timestamptz '2026-01-31T08:00:01Z', 1, 'refused', 400, 'no such account' from tx where transaction_id = 'refused'
union all select id, timestamptz '2026-01-31T09:00:01Z', 9, 'gave_up', 500, 'oops' from tx where transaction_id = 'gave-up';
insert into resolved (id, resolved_at, who, reason)
select id, timestamptz '2026-01-31T08:30:00Z', 'ann', 'booked by hand' from tx where transaction_id = 'resolved';
insert into erased (id, erased_at, who, reason, payload_sha256)
select id, timestamptz '2026-01-31T08:40:00Z', 'ann', 'request 17', sha256(payload) from tx where transaction_id = 'erased';
update tx set payload = null, key = null, headers = null where transaction_id = 'erased';

insert into duplicate (topic, partition, incarnation, kafka_offset, tx_id, seen_at)
select 'payments', 0, 0, 50, id, timestamptz '2026-01-31T08:05:00Z' from tx where transaction_id = 'delivered';
insert into rejected (topic, partition, incarnation, kafka_offset, received_at, reason, detail, tx_id, key, payload)
select 'payments', 0, 0, 51, timestamptz '2026-01-31T08:06:00Z', 'conflict', 'other bytes', id, 'k-1'::bytea,
  '{"transaction_id":"conflict","amount":"99.99"}'::bytea
from tx where transaction_id = 'conflict'
union all select 'payments', 0, 0, 52, timestamptz '2026-01-31T08:07:00Z', 'id_missing', 'nothing at /transaction_id', null, null,
  '{"id":"misnamed","amount":"1.00"}'
union all select 'payments', 0, 0, 53, timestamptz '2026-01-31T08:08:00Z', 'unreadable', 'not UTF-8 at byte 0', null, null, '\xff00';
