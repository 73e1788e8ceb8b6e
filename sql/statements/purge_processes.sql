-- Up to 100 processes that ended or fell silent 30 days ago, and hold nothing. A lease lasts a day at most.
with g as materialized (
  select id from process where seen_at < now() - interval '30 days' and coalesce(ended_at, seen_at) < now() - interval '30 days'
  order by id limit 100
)
delete from process q using g
where q.id = g.id and q.id <> all (array(
  select distinct leased_by from delivery
  where due_at < now() - interval '28 days' and leased_by is not null and exists (select from g)
))
