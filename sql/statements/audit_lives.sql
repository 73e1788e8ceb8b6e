-- One moment: up to which id there are transactions, which server transactions had ended (xmin) or begun (xmax), and each life:
-- up to where it is read, audited, and what retention has deleted. $1: one topic, or null for all.
select m.last_id, m.xmin, m.xmax, l.topic, t.id, l.partition, l.incarnation, l.first_offset,
  coalesce(l.end_offset, c.next_offset, l.first_offset), coalesce(a.next_offset, l.first_offset), coalesce(p.to_offset, l.first_offset),
  coalesce(p.offsets, 0), l.topic_id, l.ended_at is null as is_read,
  (select audited_id from pipeline where one)
from (
  select coalesce((select max(id) from tx), 0) as last_id, pg_snapshot_xmin(pg_current_snapshot())::text::bigint as xmin,
    pg_snapshot_xmax(pg_current_snapshot())::text::bigint as xmax
) m
left join life l on $1::text is null or l.topic = $1::text collate "C"
left join consumer_position c on c.topic = l.topic and c.partition = l.partition and c.incarnation = l.incarnation
left join topic t on t.name = l.topic
left join purged p on p.topic = l.topic and p.partition = l.partition and p.incarnation = l.incarnation
left join audit_position a on a.topic = l.topic and a.partition = l.partition and a.incarnation = l.incarnation
