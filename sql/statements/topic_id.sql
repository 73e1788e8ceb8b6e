-- The number of topic $1, made on first use. The no-op update returns the row that is already there.
insert into topic (name) values ($1) on conflict (name) do update set name = excluded.name returning id
