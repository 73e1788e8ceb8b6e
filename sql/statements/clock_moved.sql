-- `clock_repair` has come to id $1; null: to the end.
update pipeline set clock_back_next = $1 where one
