-- Everything that decides why the transaction with the id $1 is where it is, but its attempts.
select t.id, p.name, t.partition, t.incarnation, t.kafka_offset, t.received_at,
  d.due_at, d.lease is not null, d.attempt, d.spent_ms,
  q.id, q.host, q.pid, q.seen_at, q.ended_at,
  x.died_at, x.reason, x.http_status, x.attempts, x.error,
  r.resolved_at, r.who, r.reason,
  e.erased_at, e.who, e.reason
from tx t
join topic p on p.id = t.topic_id
left join delivery d on d.id = t.id
left join process q on q.id = d.leased_by and d.lease is not null
left join dead x on x.id = t.id
left join resolved r on r.id = t.id
left join erased e on e.id = t.id
where t.transaction_id = $1::text collate "C"
