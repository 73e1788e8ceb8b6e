-- Until the end of this transaction nobody else does a step of retention. A statement of its own: the next one's snapshot then
-- sees what the last holder did.
select pg_try_advisory_xact_lock(hashtextextended('txrelay retention ' || current_schema(), 0))
