-- The topics' numbers in tx, and their names.
select id, name from topic
