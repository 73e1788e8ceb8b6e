-- Takes the content out of finished transactions ($1, tx.id): by $2, because $3. Their ids, places and times stay, and the payload's
-- SHA-256. What is open, dead or has been erased is left alone; so is one whose id an unresolved rejected record claims. The caller
-- holds the lock of erase_lock.sql. Returns whose content went.
with g as materialized (
  select t.id from tx t
  where t.id = any($1::bigint[]) and t.payload is not null
    and not exists (select from delivery d where d.id = t.id)
    and not exists (select from dead x where x.id = t.id)
    and not exists (select from rejected j where j.tx_id = t.id and j.resolved_at is null)
), e as (
  insert into erased (id, who, reason, payload_sha256)
  select t.id, $2::text, $3::text, sha256(t.payload) from tx t join g on g.id = t.id
), u as (
  update tx t set payload = null, key = null, headers = null from g where t.id = g.id returning t.id
), a as (
  update attempt a set error = null from g where a.tx_id = g.id and a.error is not null
), r as (
  update rejected j set payload_sha256 = sha256(j.payload), payload = null, key = null, headers = null, erased_at = now()
  from g where (j.tx_id = g.id or j.became_id = g.id) and j.payload is not null
)
select id from u
