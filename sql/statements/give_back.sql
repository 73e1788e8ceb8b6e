-- Leased and not sent: ids $1, leases $2. Due again after $3 ms, and the attempt does not count.
update delivery q set due_at = now() + $3::bigint * interval '1 millisecond', lease = null, leased_by = null, attempt = q.attempt - 1
from unnest($1::bigint[], $2::bigint[]) u(id, lease)
where q.id = u.id and q.lease = u.lease returning q.id
