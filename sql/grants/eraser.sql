-- What `txrelay erase` needs in {schema}: members of {role} may take the content out of finished transactions, and nothing else.
-- They are not the daemon: with its rights nobody can change what was received.
grant usage on schema {schema} to {role};
grant select on all tables in schema {schema} to {role};
grant update (payload, key, headers) on {schema}.tx to {role};
grant update (error) on {schema}.attempt to {role};
grant update (payload, key, headers, payload_sha256, erased_at) on {schema}.rejected to {role};
grant insert on {schema}.erased, {schema}.audit_log to {role};
