-- How far the newest heartbeat lies ahead of the clock, in ms: the clock was set back while nobody ran. Null: no process yet.
select (extract(epoch from max(seen_at) - now()) * 1000)::bigint from process
