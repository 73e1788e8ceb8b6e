-- Moves a lost position: topic $1, partition $2, epoch $3, expected $4, to incarnation $5, offset $6, topic id $7. One row,
-- or somebody else owns the partition.
update consumer_position set incarnation = $5, next_offset = $6, topic_id = coalesce($7, topic_id), updated_at = now()
where topic = $1 and partition = $2 and epoch = $3 and next_offset = $4
