-- A step of retention over rejected records: up to $1 that were resolved more than $2 ms ago go.
with g as materialized (
  select id from rejected where resolved_at is not null and resolved_at < now() - $2::bigint * interval '1 millisecond'
  order by resolved_at limit $1::bigint
), r as (
  delete from rejected r using g where r.id = g.id returning 1
)
select count(*) from r
