-- The number of topic $1.
select id from topic where name = $1
