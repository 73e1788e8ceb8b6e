-- The highest tx.id.
select coalesce(max(id), 0) from tx
