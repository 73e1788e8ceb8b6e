-- Positions of a log that is in no life (true), and lives that are read and have no position (false).
select c.topic, c.partition, c.incarnation, c.next_offset, true as has_position from consumer_position c
where not exists (select from life l where l.topic = c.topic and l.partition = c.partition and l.incarnation = c.incarnation)
union all
select l.topic, l.partition, l.incarnation, l.first_offset, false from life l
where l.ended_at is null and not exists (select from consumer_position c
  where c.topic = l.topic and c.partition = l.partition and c.incarnation = l.incarnation)
