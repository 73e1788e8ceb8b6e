-- First positions of a topic ($1) as `start` resolved them: partitions $2, offsets $3, topic id $4, cluster id $5. Another
-- process may have been first.
with p as (
  insert into consumer_position (topic, partition, next_offset, owner, epoch, topic_id, cluster_id)
  select $1, u.partition, u.next_offset, 0, 0, $4, $5 from unnest($2::int[], $3::bigint[]) u(partition, next_offset)
  order by u.partition
  on conflict (topic, partition) do nothing
  returning topic, partition, incarnation, next_offset, topic_id, cluster_id
)
insert into life (topic, partition, incarnation, first_offset, topic_id, cluster_id)
select topic, partition, incarnation, next_offset, topic_id, cluster_id from p
on conflict do nothing
