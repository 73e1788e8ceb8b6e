-- This server's clock was set back by $1 ms, within the last $2 ms of the new clock: notes it, so that `clock_repair` moves
-- every delivery to the new clock once, and moves what has few rows itself. 0 rows: another process was first.
with p as (
  update pipeline set clock_back_at = now(), clock_back_ms = $1::bigint, clock_back_next = 0,
    paused_until = case when paused_until > now() then greatest(now(), paused_until - $1::bigint * interval '1 millisecond')
      else paused_until end
  where one and (clock_back_at is null
    or clock_back_at not between now() - $2::bigint * interval '1 millisecond' and now() + interval '5 seconds')
  returning 1
), q as (
  update process set seen_at = now() where seen_at > now() and exists (select from p)
)
select count(*) from p
