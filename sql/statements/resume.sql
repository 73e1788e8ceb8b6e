-- Delivering goes on. Returns whether it was paused.
update pipeline p set paused_at = null, paused_until = null, paused_by = null, paused_reason = null
from (select coalesce(bool_or(paused_at is not null and coalesce(paused_until, 'infinity') > now()), false) as was from pipeline) q
where p.one returning q.was
