-- Keeps a finding: kind $1, topic $2, partition $3, incarnation $4, from $5 to $6, transaction $7, detail $8. Found again, it is only
-- confirmed. What is found beyond ten thousand says nothing new. Returns how many are new.
with u as (
  update audit_finding set confirmed_at = clock_timestamp(), to_offset = $6::bigint, detail = $8::text
  where kind = $1::text and topic is not distinct from $2::text collate "C" and partition is not distinct from $3::int
    and incarnation is not distinct from $4::smallint and from_offset is not distinct from $5::bigint and tx_id is not distinct from $7::bigint
  returning 1
), i as (
  insert into audit_finding (kind, topic, partition, incarnation, from_offset, to_offset, tx_id, detail, noticed_at, confirmed_at)
  select $1::text, $2::text, $3::int, $4::smallint, $5::bigint, $6::bigint, $7::bigint, $8::text, clock_timestamp(), clock_timestamp()
  where not exists (select from u) and (select count(*) from audit_finding) < 10000
  returning 1
)
select count(*) from i
