-- tx.id of the transaction with the id $1.
select id from tx where transaction_id = $1::text collate "C"
