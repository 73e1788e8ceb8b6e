-- What this program relies on and the schema does not have, a sentence each: columns of their types (ids, topics and reasons
-- compared byte by byte), unique indexes that count each thing once, tables that survive a crash and hide no row. Somebody
-- altered it by hand, or an index could not be built again.
select format('table %s has no column %s', w.t, w.c) || case when f.type is null then '' else ' of type ' || w.type || ': it is ' || f.type end
from (values
  ('tx', 'id', 'bigint'), ('tx', 'received_at', 'timestamp with time zone'), ('tx', 'kafka_offset', 'bigint'),
  ('tx', 'record_at', 'timestamp with time zone'), ('tx', 'partition', 'integer'), ('tx', 'incarnation', 'smallint'),
  ('tx', 'topic_id', 'smallint'), ('tx', 'transaction_id', 'text in byte order'), ('tx', 'key', 'bytea'), ('tx', 'headers', 'jsonb'),
  ('tx', 'payload', 'bytea'),
  ('delivery', 'id', 'bigint'), ('delivery', 'due_at', 'timestamp with time zone'), ('delivery', 'lease', 'bigint'),
  ('delivery', 'leased_by', 'bigint'), ('delivery', 'attempt', 'integer'), ('delivery', 'spent_ms', 'bigint'),
  ('attempt', 'tx_id', 'bigint'), ('attempt', 'finished_at', 'timestamp with time zone'), ('attempt', 'lease', 'bigint'),
  ('attempt', 'n', 'integer'), ('attempt', 'latency_ms', 'integer'), ('attempt', 'outcome', 'smallint'),
  ('attempt', 'http_status', 'smallint'), ('attempt', 'sent', 'smallint'), ('attempt', 'stale', 'boolean'), ('attempt', 'error', 'text'),
  ('dead', 'id', 'bigint'), ('dead', 'attempts', 'integer'), ('dead', 'reason', 'text'), ('dead', 'http_status', 'smallint'),
  ('dead', 'error', 'text'),
  ('resolved', 'id', 'bigint'), ('resolved', 'who', 'text'), ('resolved', 'reason', 'text'),
  ('rejected', 'topic', 'text in byte order'), ('rejected', 'partition', 'integer'), ('rejected', 'incarnation', 'smallint'),
  ('rejected', 'kafka_offset', 'bigint'), ('rejected', 'reason', 'text'), ('rejected', 'detail', 'text'), ('rejected', 'tx_id', 'bigint'),
  ('rejected', 'key', 'bytea'), ('rejected', 'headers', 'jsonb'), ('rejected', 'payload', 'bytea'),
  ('rejected', 'resolved_at', 'timestamp with time zone'),
  ('duplicate', 'topic', 'text in byte order'), ('duplicate', 'partition', 'integer'), ('duplicate', 'incarnation', 'smallint'),
  ('duplicate', 'kafka_offset', 'bigint'), ('duplicate', 'tx_id', 'bigint'),
  ('known_gap', 'topic', 'text in byte order'), ('known_gap', 'from_offset', 'bigint'), ('known_gap', 'to_offset', 'bigint'),
  ('known_gap', 'reason', 'text'),
  ('consumer_position', 'topic', 'text in byte order'), ('consumer_position', 'partition', 'integer'),
  ('consumer_position', 'incarnation', 'smallint'), ('consumer_position', 'next_offset', 'bigint'),
  ('consumer_position', 'skipped', 'bigint'), ('consumer_position', 'epoch', 'bigint'), ('consumer_position', 'topic_id', 'uuid'),
  ('counter', 'slot', 'integer'), ('counter', 'name', 'smallint'), ('counter', 'n', 'bigint'),
  ('skipped', 'topic', 'text in byte order'), ('skipped', 'from_offset', 'bigint'), ('skipped', 'offsets', 'int8multirange'),
  ('topic', 'id', 'smallint'), ('topic', 'name', 'text in byte order')
) w(t, c, type)
left join lateral (
  select format_type(a.atttypid, a.atttypmod) || case
      when w.type not like '% in byte order' then ''
      when a.attcollation = 'pg_catalog."C"'::regcollation then ' in byte order'
      else ' in order of ' || a.attcollation::regcollation end as type
  from pg_attribute a where a.attrelid = to_regclass(w.t) and a.attname = w.c and not a.attisdropped
) f on true
where f.type is distinct from w.type
union all
select format('table %s has no valid unique index on (%s)', w.t, w.columns)
from (values
  ('tx', 'id'), ('tx', 'transaction_id'), ('delivery', 'id'), ('dead', 'id'), ('resolved', 'id'), ('topic', 'name'),
  ('rejected', 'topic, partition, incarnation, kafka_offset'), ('duplicate', 'topic, partition, incarnation, kafka_offset'),
  ('consumer_position', 'topic, partition'), ('counter', 'slot, name'), ('life', 'topic, partition, incarnation'),
  ('skipped', 'topic, partition, incarnation, from_offset'), ('pipeline', 'one')
) w(t, columns)
where not exists (
  select from pg_index i
  where i.indrelid = to_regclass(w.t) and i.indisunique and i.indisvalid and i.indisready and i.indimmediate and i.indpred is null
    and i.indexprs is null
    and (select string_agg(a.attname, ', ' order by k.place) from unnest(i.indkey::int2[]) with ordinality k(number, place)
      join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number where k.place <= i.indnkeyatts) = w.columns
)
union all
select format('table %s is %s', w.t, case when c.relpersistence <> 'p' then 'unlogged: a crash would empty it'
  else 'under row security: rows may be hidden from this role' end)
from unnest(array['tx', 'delivery', 'attempt', 'dead', 'resolved', 'rejected', 'duplicate', 'known_gap', 'consumer_position',
  'counter', 'skipped', 'life']) w(t)
join pg_class c on c.oid = to_regclass(w.t)
where c.relpersistence <> 'p' or row_security_active(c.oid)
union all
select 'table rejected has no constraint rejected_place_uk'
where not exists (
  select from pg_constraint where conrelid = to_regclass('rejected') and conname = 'rejected_place_uk' and contype = 'u' and not condeferrable
)
union all
select 'sequence batch_seq does not count in steps of 1024'
where not exists (
  select from pg_sequence where seqrelid = to_regclass('batch_seq') and seqincrement = 1024 and seqstart % 1024 = 0 and not seqcycle
)
