-- After a commit whose answer was lost: which of these ids ($1) carry this batch's lease ($2).
select t.id, t.received_at from tx t join delivery d on d.id = t.id
where t.transaction_id = any($1::text[]) and d.lease = $2
