-- Of the newest 1,000 rejected records the newest three that hold the bytes $1 as key, or in a value of up to 64 KiB (all that
-- are larger would be read whole): topic, place, and why.
select id, topic, partition, kafka_offset, reason, detail, received_at, resolved_at
from rejected
where id > (select coalesce(max(id), 0) - 1000 from rejected) and (key = $1::bytea
  or (octet_length(payload) <= 65536 and position($1::bytea in payload) > 0))
order by id desc limit 3
