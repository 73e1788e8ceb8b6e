-- Until the end of this transaction nobody opens a finished transaction again, and no step of retention runs.
select pg_advisory_xact_lock(hashtextextended('txrelay retention ' || current_schema(), 0))
