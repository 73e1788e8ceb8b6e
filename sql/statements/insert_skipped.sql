-- Offsets that the client passed over: topics $1, partitions $2, incarnations $3, first offsets $4, multiranges as text $5.
insert into skipped (topic, partition, incarnation, from_offset, offsets)
select u.topic, u.partition, u.incarnation, u.first, u.offsets::int8multirange
from unnest($1::text[], $2::int[], $3::smallint[], $4::bigint[], $5::text[]) u(topic, partition, incarnation, first, offsets)
on conflict do nothing
