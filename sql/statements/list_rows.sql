-- What view transaction_status says of the transactions $1 (tx.id), newest first, without what they contain.
select t.id, t.transaction_id,
  case when d.lease is not null and d.due_at > now() then 'in_flight'
       when d.id is not null and d.attempt = 0 then 'pending'
       when d.id is not null then 'retrying'
       when x.id is not null then 'dead'
       when r.id is not null then 'resolved'
       when h.delivered_at is not null then 'delivered'
       else 'unaccounted' end as state,
  p.name as topic, t.partition, t.incarnation, t.kafka_offset, t.received_at,
  coalesce(d.attempt, x.attempts, h.attempts, 0) as attempts, coalesce(h.unknown_attempts, 0) as unknown_attempts,
  d.due_at as next_attempt_at, h.delivered_at,
  l.outcome as last_outcome, l.http_status as last_http_status, l.error as last_error
from unnest($1::bigint[]) u(id)
join tx t on t.id = u.id
join topic p on p.id = t.topic_id
left join delivery d on d.id = t.id
left join dead x on x.id = t.id
left join resolved r on r.id = t.id
left join lateral (
  select max(a.n) as attempts, count(*) filter (where a.sent = 2) as unknown_attempts,
    min(a.finished_at) filter (where a.outcome = 1 and not a.stale) as delivered_at
  from attempt a where a.tx_id = t.id
) h on true
left join lateral (
  select a.outcome, a.http_status, a.error from attempt a where a.tx_id = t.id order by a.finished_at desc, a.n desc limit 1
) l on true
order by t.id desc
