-- Rejected records ($1) whose ids ($2) are there already: the transaction, and whether its bytes are the same.
select u.id, t.id, case when e.id is null then t.payload is not distinct from j.payload else e.payload_sha256 = sha256(j.payload) end
from unnest($1::bigint[], $2::text[]) u(id, t)
join rejected j on j.id = u.id
join tx t on t.transaction_id = u.t collate "C"
left join erased e on e.id = t.id
