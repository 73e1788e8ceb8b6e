-- The evidence for transactions $1, of one moment; those that retention has removed without a trace have none.
select u.id, t.id is not null, d.id is not null, x.id is not null, r.id is not null,
  exists (select from attempt a where a.tx_id = u.id and a.outcome = 1 and not a.stale)
from unnest($1::bigint[]) u(id)
left join tx t on t.id = u.id
left join delivery d on d.id = u.id
left join dead x on x.id = u.id
left join resolved r on r.id = u.id
