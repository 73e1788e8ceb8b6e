-- What months of work have left behind, made by SQL: transactions :from to :to of one topic, `days` old; with :delivered delivered
-- since, otherwise open and due. The ledger's counters and the offsets' places agree with them.
insert into topic (name) values ('made by SQL') on conflict do nothing;
insert into tx (id, received_at, transaction_id, payload, partition, kafka_offset, topic_id, incarnation)
select g, now() - :days * interval '1 day', 'sql-' || g, convert_to('{"transaction_id":"sql-' || g || '","pad":"' || repeat('x', 960) || '"}', 'UTF8'),
  0, g, t.id, 0
from generate_series(:from::bigint, :to) g, topic t where t.name = 'made by SQL';
insert into life (topic, partition, incarnation, first_offset) values ('made by SQL', 0, 0, :from) on conflict do nothing;
insert into consumer_position (topic, partition, next_offset, owner, epoch) values ('made by SQL', 0, :to + 1, 0, 0)
on conflict (topic, partition) do update set next_offset = excluded.next_offset;
insert into attempt (tx_id, finished_at, lease, n, outcome, http_status, latency_ms, sent)
select g, now() - :days * interval '1 day', g, 1, 1, 200, 5, 1 from generate_series(:from::bigint, :to) g where :delivered;
insert into delivery (id, due_at) select g, now() from generate_series(:from::bigint, :to) g where not :delivered;
insert into counter as c (slot, name, n) select 0, name, :to - :from::bigint + 1 from unnest(array[1, 2, case when :delivered then 5 end]) name
where name is not null
on conflict (slot, name) do update set n = c.n + excluded.n;
-- The next batch gets ids behind these.
select setval('batch_seq', greatest((select last_value from batch_seq), ((:to + 1023) / 1024 + 1) * 1024));
-- As after months: what nobody has vacuumed yet would be vacuumed during the run.
vacuum (analyze);
checkpoint;
