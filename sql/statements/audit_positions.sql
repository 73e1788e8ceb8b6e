-- Up to where lives are audited: topics $1, partitions $2, incarnations $3, offsets $4.
insert into audit_position as a (topic, partition, incarnation, next_offset)
select * from unnest($1::text[], $2::int[], $3::smallint[], $4::bigint[])
on conflict (topic, partition, incarnation) do update set next_offset = excluded.next_offset
where a.next_offset < excluded.next_offset
