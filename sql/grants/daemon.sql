-- What the daemon's role {role} may do in {schema}: no DDL, and in the audit log it can only add. Commands that change something
-- run with these rights, too. Repeating it is harmless.
grant usage on schema {schema} to {role};
grant usage on sequence {schema}.batch_seq to {role};
grant select on {schema}.migration to {role};
grant select, insert, update on {schema}.pipeline, {schema}.consumer_position, {schema}.counter, {schema}.life, {schema}.purged,
  {schema}.audit_position to {role};
grant select, insert, update, delete on {schema}.process, {schema}.delivery, {schema}.rejected,
  {schema}.audit_finding to {role};
grant select, insert, delete on {schema}.tx, {schema}.attempt, {schema}.dead, {schema}.resolved, {schema}.duplicate,
  {schema}.skipped to {role};
grant select, insert on {schema}.topic, {schema}.known_gap to {role};
grant select on {schema}.transaction_status, {schema}.attempt_history to {role};
grant insert on {schema}.audit_log to {role};
grant select, delete on {schema}.erased to {role};
