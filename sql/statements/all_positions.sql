-- Every partition's position, for people.
select topic, partition, incarnation, next_offset, skipped, extract(epoch from now() - updated_at)::float8 as age
from consumer_position order by topic, partition
