-- Rejected records by reason; of topic $1, or of all.
select topic, partition, incarnation, reason, count(*) from rejected where $1::text is null or topic = $1::text collate "C"
group by topic, partition, incarnation, reason order by topic, partition, incarnation, reason
