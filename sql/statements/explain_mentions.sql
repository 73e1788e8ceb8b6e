-- Of the newest 1,000 rejected records the newest three that hold the bytes $1 as key or in their value: topic, place, and why.
select id, topic, partition, kafka_offset, reason, detail, received_at, resolved_at
from rejected
where id > (select coalesce(max(id), 0) - 1000 from rejected) and (key = $1::bytea or position($1::bytea in payload) > 0)
order by id desc limit 3
