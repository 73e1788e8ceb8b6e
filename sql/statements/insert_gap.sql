-- Names a gap: topic $1, partition $2, incarnation $3, from $4 up to, not including, $5, reason $6.
insert into known_gap (topic, partition, incarnation, from_offset, to_offset, reason) values ($1, $2, $3, $4, $5, $6)
