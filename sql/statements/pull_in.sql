-- Deliveries that lie further ahead than any rule allows ($1 ms) are due then: the server's clock was set back.
with c as materialized (
  select id from delivery where due_at > now() + $1::bigint * interval '1 millisecond'
  order by due_at limit 500 for no key update skip locked
)
update delivery q set due_at = now() + $1::bigint * interval '1 millisecond' from c where q.id = c.id
