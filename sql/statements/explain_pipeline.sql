-- What holds for all transactions: the clock, whether delivering is paused, how many processes live, when one was last heard of.
select now(), p.paused_at, p.paused_until, p.paused_by, p.paused_reason,
  (select count(*) from process where ended_at is null and seen_at > now() - interval '30 seconds'),
  (select max(seen_at) from process)
from (select 1) one left join pipeline p on p.one and p.paused_at is not null and coalesce(p.paused_until, 'infinity') > now()
