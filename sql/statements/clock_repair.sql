-- Moves up to 5,000 deliveries with ids above $1 to a clock that was set back by $2 ms. What waits must not wait that much
-- longer; what is leased for longer than any lease ($3 ms is ours) gets a whole one from now, which never ends before its
-- holder believes. A row that is locked is being written by the new clock. Returns the last id, and how many were moved.
with b as materialized (
  select max(id) as last from (select id from delivery where id > $1::bigint order by id limit 5000) x
), l as materialized (
  select greatest($3::bigint, max(lease_ms)) * interval '1 millisecond' as lease from process
  where ended_at is null and seen_at > now() - interval '1 day'
), g as materialized (
  select q.id, l.lease as longest from b, l, delivery q
  where q.id > $1::bigint and q.id <= b.last
    and q.due_at > case when q.lease is null then now() else now() + l.lease + interval '5 seconds' end
  order by q.id for no key update of q skip locked
), u as (
  update delivery q set due_at = case when q.lease is null then greatest(now(), q.due_at - $2::bigint * interval '1 millisecond')
    else now() + g.longest end
  from g where q.id = g.id returning 1
)
select b.last, (select count(*) from u) from b
