-- Gives back what carries lease $1, whose commit is in doubt and of which nothing was sent; $2: length of leases in ms.
update delivery set due_at = now(), lease = null, leased_by = null, attempt = attempt - 1
where due_at > now() and due_at <= now() + $2::bigint * interval '1 millisecond' and lease = $1
