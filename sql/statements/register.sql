-- A start of the daemon: instance $1, host $2, pid $3, version $4, lease in ms $5.
insert into process (instance, host, pid, version, lease_ms) values ($1, $2, $3, $4, $5) returning id
