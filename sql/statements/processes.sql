-- Processes that live, or died without a word not long ago.
select id, host, pid, version, extract(epoch from now() - seen_at)::float8 as silent, in_flight, stalled, status
from process where ended_at is null and seen_at > now() - interval '1 day' order by id
