-- Of the transactions $1 (tx.id): which were erased, and which have an unresolved rejected record that claims their id.
select t.id, e.id is not null,
  (select max(j.id) from rejected j where j.tx_id = t.id and j.resolved_at is null)
from unnest($1::bigint[]) t(id) left join erased e on e.id = t.id
