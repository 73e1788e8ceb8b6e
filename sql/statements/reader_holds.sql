-- Whether this session still holds the reader's lock. Also the reader's sign of life: see reader_silent.
select exists (
  select from pg_locks
  where locktype = 'advisory' and pid = pg_backend_pid() and granted and objsubid = 1
    and (classid::bigint << 32 | objid::bigint) = hashtextextended('txrelay reader ' || current_schema(), 0)
)
