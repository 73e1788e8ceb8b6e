-- What people may read in {schema}, as members of {role}: the views and the tables that are made for them.
grant usage on schema {schema} to {role};
grant select on {schema}.transaction_status, {schema}.attempt_history, {schema}.rejected, {schema}.duplicate, {schema}.known_gap,
  {schema}.consumer_position, {schema}.process, {schema}.audit_log, {schema}.life, {schema}.skipped, {schema}.purged,
  {schema}.audit_finding to {role};
