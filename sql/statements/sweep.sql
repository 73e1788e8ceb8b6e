-- Frees up to 500 leases of the dead processes $1, whose longest lease is $2 ms: all in one look, for a process that keeps dying
-- leaves many of them. One that was only asleep and takes leases again has them from after its burial: those are its own, and
-- would go to and fro. What the dead sent nobody knows: outcome lost. $3: history, as in `claim`.
with c as materialized (
  select id, lease, attempt from delivery d
  where due_at > now() and due_at <= now() + $2::bigint * interval '1 millisecond' and leased_by = any($1::bigint[])
    and due_at <= (select p.ended_at + p.lease_ms * interval '1 millisecond' from process p where p.id = d.leased_by)
  order by due_at limit 500 for no key update of d skip locked
), u as (
  update delivery q set due_at = now(), lease = null, leased_by = null from c where q.id = c.id returning q.id
), h as (
  insert into attempt (tx_id, lease, n, outcome, sent) select id, lease, attempt, 7, 2 from c where $3::bool
)
select count(*) from u
