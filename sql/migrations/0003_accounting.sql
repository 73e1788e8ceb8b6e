-- compatible_from: 3
-- Every offset in a place of its own, by evidence: where accounting begins, what the client passed over, what retention took
-- away, and how far upkeep has checked all that. Older releases do not write these rows, so they are refused from here on.

create table life (
  topic text collate "C" not null,
  partition int not null,
  incarnation smallint not null,
  first_offset bigint not null,
  end_offset bigint,
  topic_id uuid,
  cluster_id text,
  began_at timestamptz not null default now(),
  ended_at timestamptz,
  primary key (topic, partition, incarnation)
);
comment on table life is 'The logs that a partition has had. Offsets from first_offset up to the position are accounted for.';
comment on column life.first_offset is 'Where reading began: what lies before it was never this pipeline''s.';
comment on column life.end_offset is 'The position when the next life began; null while this is the log that is read.';

create table purged (
  topic text collate "C" not null,
  partition int not null,
  incarnation smallint not null,
  to_offset bigint not null,
  offsets bigint not null,
  primary key (topic, partition, incarnation)
);
comment on table purged is 'How many offsets'' rows retention has deleted. Below to_offset, so many are missing; above it, none may be.';

-- What was read before this migration begins at the lowest offset that is known. Of what is missing behind it nobody wrote down
-- whether it was skipped or deleted: it counts as deleted.
with k as materialized (
  select p.topic, p.partition, p.incarnation, p.current, p.topic_id,
    least(min(k.lowest), case when p.current then p.next_offset end) as first_offset,
    case when p.current then p.next_offset else max(k.highest) end as end_offset, coalesce(sum(k.n), 0) as n
  from (
    select c.topic, c.partition, i as incarnation, i = c.incarnation as current, c.next_offset,
      case when i = c.incarnation then c.topic_id end as topic_id
    from consumer_position c, generate_series(0, c.incarnation) i
  ) p
  left join (
    select t.name as topic, x.partition, x.incarnation, min(x.kafka_offset) as lowest, max(x.kafka_offset) + 1 as highest, count(*) as n
    from tx x join topic t on t.id = x.topic_id group by 1, 2, 3
    union all
    select topic, partition, incarnation, min(kafka_offset), max(kafka_offset) + 1, count(*) from duplicate group by 1, 2, 3
    union all
    select topic, partition, incarnation, min(kafka_offset), max(kafka_offset) + 1, count(*) from rejected group by 1, 2, 3
    union all
    select topic, partition, incarnation, from_offset, to_offset, to_offset - from_offset from known_gap
    where reason in ('retention', 'unexplained')
  ) k on k.topic = p.topic and k.partition = p.partition and k.incarnation = p.incarnation
  group by p.topic, p.partition, p.incarnation, p.current, p.next_offset, p.topic_id
), l as (
  insert into life (topic, partition, incarnation, first_offset, end_offset, topic_id, ended_at)
  select topic, partition, incarnation, first_offset, case when not current then end_offset end, topic_id,
    case when not current then now() end
  from k where first_offset is not null
)
insert into purged (topic, partition, incarnation, to_offset, offsets)
select topic, partition, incarnation, end_offset, end_offset - first_offset - n from k
where first_offset is not null and end_offset - first_offset > n;

create table skipped (
  topic text collate "C" not null,
  partition int not null,
  incarnation smallint not null,
  from_offset bigint not null,
  offsets int8multirange not null,
  seen_at timestamptz not null default now(),
  primary key (topic, partition, incarnation, from_offset)
);
comment on table skipped is 'Offsets that the client passed over: markers, aborted and compacted records. A row for each batch that had some.';
comment on column skipped.from_offset is 'The first of them.';

create table audit_position (
  topic text collate "C" not null,
  partition int not null,
  incarnation smallint not null,
  next_offset bigint not null,
  primary key (topic, partition, incarnation)
);
comment on table audit_position is 'Up to here upkeep has found every offset in its place.';

create table audit_finding (
  id bigint generated always as identity primary key,
  kind text not null check (kind in ('offset_missing', 'offset_twice', 'above_position', 'purged', 'unaccounted', 'two_states', 'without_transaction')),
  topic text collate "C",
  partition int,
  incarnation smallint,
  from_offset bigint,
  to_offset bigint,
  tx_id bigint,
  detail text not null,
  noticed_at timestamptz not null default now(),
  confirmed_at timestamptz not null default now()
);
comment on table audit_finding is 'What upkeep''s audit found wrong and has not found right again since. Empty unless something is wrong.';

create index known_gap_place on known_gap (topic, partition, incarnation, from_offset);

alter table consumer_position add column cluster_id text;
comment on column consumer_position.cluster_id is 'The cluster whose log next_offset belongs to.';
alter table process add column lock_id uuid;
comment on column process.lock_id is 'Names the lock on its state file (boot and inode): whoever holds one of this name later proves that this process is dead.';
alter table pipeline
  add column audited_id bigint not null default 0,
  add column audit_at timestamptz,
  add column audit_by bigint,
  add column audit_whole_next bigint,
  add column audit_whole_began_at timestamptz,
  add column audit_whole_at timestamptz;
comment on column pipeline.audited_id is 'tx.id up to which the audit has found every transaction in one state.';
comment on column pipeline.audit_at is 'Last step of the audit; after a minute without one another process goes on with it.';
comment on column pipeline.audit_by is 'process.id of who does it.';
comment on column pipeline.audit_whole_next is 'tx.id up to which the present pass over everything has come; null: none is under way.';
comment on column pipeline.audit_whole_began_at is 'When the pass under way began, or the last one.';
comment on column pipeline.audit_whole_at is 'When a pass over everything last reached its end.';

alter table process
  add column gate_open boolean not null default true,
  add column gate_rate float8,
  add column gate_why text,
  add column gate_since timestamptz,
  add column next_probe_at timestamptz;
comment on column process.gate_open is 'False: the service fails, and only probes are sent; or it has asked for a pause.';
comment on column process.gate_rate is 'Requests per second that the gate lets through; null while it does not limit them.';
comment on column process.gate_since is 'Since when the gate is as it is; null: since the start.';

create table erased (
  id bigint primary key,
  erased_at timestamptz not null default now(),
  who text not null,
  reason text not null,
  payload_sha256 bytea not null
);
comment on table erased is 'Transactions whose content a person erased: payload, key, headers and errors are null. Goes with its transaction.';
comment on column erased.payload_sha256 is 'Of the payload that was: proves what it was, and finds its repeats.';

alter table rejected
  add column resolved_by text,
  add column resolved_reason text,
  add column became_id bigint,
  add column erased_at timestamptz,
  add column payload_sha256 bytea;
comment on column rejected.became_id is 'The transaction that it became. This row stays the offset''s place, and that transaction is none.';
comment on column rejected.payload_sha256 is 'Of the payload that was erased.';
create index rejected_became on rejected (became_id) where became_id is not null;
create index rejected_tx on rejected (tx_id) where tx_id is not null;
create index duplicate_tx on duplicate (tx_id);

-- For commands that look: rare rows, and block ranges by time. Neither is an index that a settle would feel.
create index attempt_unknown on attempt (tx_id) where sent = 2;
create index attempt_finished on attempt using brin (finished_at) with (autosummarize = on);
