-- Positions of the given partitions (topics $1, partitions $2); those never read are absent.
select c.topic, c.partition, c.incarnation, c.next_offset, c.epoch, c.topic_id, c.cluster_id, c.skipped
from unnest($1::text[], $2::int[]) u(topic, partition)
join consumer_position c on c.topic = u.topic collate "C" and c.partition = u.partition
