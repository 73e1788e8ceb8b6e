-- Where the transactions with these ids ($1) stand, in that order; unknown ones are absent.
select t.transaction_id, t.id,
  case when d.lease is not null and d.due_at > now() then 'in_flight' when d.id is not null then 'waiting'
    when x.id is not null then 'dead' when r.id is not null then 'resolved'
    when exists (select from erased e where e.id = t.id) then 'erased'
    when exists (select from attempt a where a.tx_id = t.id and a.outcome = 1 and not a.stale) then 'delivered'
    else 'unaccounted' end as state, t.received_at
from unnest($1::text[]) with ordinality u(transaction_id, place)
join tx t on t.transaction_id = u.transaction_id collate "C"
left join delivery d on d.id = t.id
left join dead x on x.id = t.id
left join resolved r on r.id = t.id
order by u.place
