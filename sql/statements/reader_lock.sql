-- With a Kafka client that knows no group one process of a pipeline reads: the one whose session holds this lock.
select pg_try_advisory_lock(hashtextextended('txrelay reader ' || current_schema(), 0))
