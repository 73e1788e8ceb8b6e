-- Until the end of this transaction no step of retention runs: for whoever opens a finished transaction again.
select pg_advisory_xact_lock_shared(hashtextextended('txrelay retention ' || current_schema(), 0))
