-- What people may read in {schema}, as members of {role}: the views, and the tables that the commands that only look need. A
-- payload can be read through the views as well.
grant usage on schema {schema} to {role};
grant select on all tables in schema {schema} to {role};
