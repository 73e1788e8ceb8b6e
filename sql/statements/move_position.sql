-- Moves a lost position: topic $1, partition $2, epoch $3, expected $4, to incarnation $5, offset $6, topic id $7, cluster
-- id $8. One row, or somebody else owns the partition. Another incarnation is another life: the one before ends where its
-- position stood, and nothing of the new one has been passed over yet.
with p as (
  update consumer_position set incarnation = $5, next_offset = $6, topic_id = coalesce($7, topic_id),
    skipped = case when incarnation = $5 then skipped else 0 end,
    cluster_id = coalesce($8, cluster_id), updated_at = now()
  where topic = $1 and partition = $2 and epoch = $3 and next_offset = $4
  returning topic, partition, incarnation, next_offset, topic_id, cluster_id
), e as (
  update life l set end_offset = $4, ended_at = now() from p
  where l.topic = p.topic and l.partition = p.partition and l.incarnation <> p.incarnation and l.end_offset is null
), n as (
  insert into life (topic, partition, incarnation, first_offset, topic_id, cluster_id)
  select topic, partition, incarnation, next_offset, topic_id, cluster_id from p
  on conflict do nothing
)
select count(*) from p
