-- What holds for all transactions: the clock, whether delivering is paused, how many processes live, when one was last heard of, and
-- the gate, where every process that lives has shut its own: whether, since when, why, and when the next probe is sent.
select now(), p.paused_at, p.paused_until, p.paused_by, p.paused_reason,
  (select count(*) from process where ended_at is null and seen_at > now() - interval '30 seconds'),
  (select max(seen_at) from process),
  g.shut, g.gate_since, g.gate_why, g.next_probe_at
from (select 1) one left join pipeline p on p.one and p.paused_at is not null and coalesce(p.paused_until, 'infinity') > now()
left join lateral (
  select true as shut, q.gate_since, q.gate_why, q.next_probe_at from process q
  where q.ended_at is null and q.seen_at > now() - interval '30 seconds' and not q.gate_open
    and not exists (select from process o where o.ended_at is null and o.seen_at > now() - interval '30 seconds' and o.gate_open)
  order by q.next_probe_at limit 1
) g on true
