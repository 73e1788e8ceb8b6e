-- From now on the kernel writes what this session evicts from shared buffers soon and bit by bit, not all at once at the next
-- checkpoint's end, while commits wait. In blocks (256 kB); nothing where the operator has set it or the system cannot do it.
select set_config(name, least(max_val::int, 32)::text, false) from pg_settings
where name = 'backend_flush_after' and setting = '0' and context = 'user'
