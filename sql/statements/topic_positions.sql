-- How many partitions of topic $1 have a position: none means that the pipeline has never started to read it.
select count(*) from consumer_position where topic = $1
