-- Closes dead ones ($1) without sending: by $2, because $3. Counter slot $4. Returns who was dead.
with d as (
  delete from dead where id = any($1::bigint[]) returning id
), r as (
  insert into resolved (id, who, reason) select id, $2, $3 from d
), c as (
  insert into counter as c (slot, name, n) select $4::int, 10, count(*) from d having count(*) > 0
  on conflict (slot, name) do update set n = c.n + excluded.n
)
select id from d
