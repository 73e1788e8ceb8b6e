-- Ends the session of a reader that has not been heard of for $1: its process is frozen, or its host is gone and nobody told
-- PostgreSQL. Its lock goes with it. Sessions of other roles, and those that are at work, are left alone.
select count(*) from (
  select pg_terminate_backend(l.pid) as ended
  from pg_locks l join pg_stat_activity a on a.pid = l.pid
  where l.locktype = 'advisory' and l.granted and l.objsubid = 1 and l.pid <> pg_backend_pid()
    and l.database = (select oid from pg_database where datname = current_database())
    and (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended('txrelay reader ' || current_schema(), 0)
    and a.usename = current_user and a.state <> 'active' and a.state_change < clock_timestamp() - $1::text::interval
) s where s.ended
