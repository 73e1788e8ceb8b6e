-- What a person did: uid $1, SUDO_USER $2, host $3, command $4, detail $5. `who` is the database's user.
insert into audit_log (uid, sudo_user, host, command, detail) values ($1, $2, $3, $4, $5)
