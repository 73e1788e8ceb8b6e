-- The server's clock, and whether it is a standby and how far behind, in seconds.
select now(), pg_is_in_recovery(), extract(epoch from now() - pg_last_xact_replay_timestamp())::float8
