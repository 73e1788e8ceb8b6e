-- The newest $2 records that repeat transaction $1 (tx.id) byte for byte, and how many there are.
select topic, partition, incarnation, kafka_offset, seen_at, count(*) over () as all
from duplicate where tx_id = $1::bigint order by seen_at desc, kafka_offset desc limit $2::bigint
