-- How far `clock_repair` is, locked: the next id and by how many ms the clock was set back. No row: nothing to do, or another
-- process is at it.
select clock_back_next, clock_back_ms from pipeline where one and clock_back_next is not null for update skip locked
