-- A start of the daemon: instance $1, host $2, pid $3, version $4, lease in ms $5, name of its lock $6. started_at proves later
-- that a row is this one: a replica that was behind and took over may give the id to another process.
insert into process (instance, host, pid, version, lease_ms, lock_id) values ($1, $2, $3, $4, $5, $6) returning id, started_at
