-- Processes that live, or died without a word not long ago.
select id, host, pid, version, extract(epoch from now() - seen_at)::float8 as silent, in_flight, stalled, status, gate_open,
  gate_rate, gate_why, extract(epoch from now() - gate_since)::float8 as gate_age,
  extract(epoch from next_probe_at - now())::float8 as next_probe
from process where ended_at is null and seen_at > now() - interval '1 day' order by id
