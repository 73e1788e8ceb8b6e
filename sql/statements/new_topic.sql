-- Numbers topic $1, unless it has a number: an insert that conflicts would still use one up, and there are 32,767.
insert into topic (name) select $1::text where not exists (select from topic where name = $1::text collate "C") on conflict do nothing
