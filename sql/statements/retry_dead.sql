-- Dead ones ($1) are due now, with a fresh budget; their attempts go on counting. Counter slot $2. Returns who was dead.
with d as (
  delete from dead where id = any($1::bigint[]) returning id, attempts
), q as (
  insert into delivery (id, due_at, attempt) select id, now(), attempts from d
), c as (
  insert into counter as c (slot, name, n)
  select $2::int, v.name, v.n from (select 8 as name, count(*) as n from d union all select 9, count(*) from d) v where v.n > 0
  on conflict (slot, name) do update set n = c.n + excluded.n
)
select id from d
