-- The id of the transaction that is $2 rows before $1; null: there are not so many.
select id from tx where id <= $1::bigint order by id desc offset $2::bigint limit 1
