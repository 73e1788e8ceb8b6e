//! Where every offset is, by one statement over all tables: for small tests, and apart from the code under test.

/// Each life in which an offset is in no place or in two, in words; empty where every offset is in exactly one.
pub fn wrong_offsets(client: &mut postgres::Client) -> String {
    let query = "
        with place as (
          select o.name as topic, x.partition, x.incarnation, int8range(x.kafka_offset, x.kafka_offset + 1) as r
          from tx x join topic o on o.id = x.topic_id
          where not exists (select from rejected j where j.topic = o.name and j.partition = x.partition
            and j.incarnation = x.incarnation and j.kafka_offset = x.kafka_offset and j.resolved_at is not null)
          union all select topic, partition, incarnation, int8range(kafka_offset, kafka_offset + 1) from duplicate
          union all select topic, partition, incarnation, int8range(kafka_offset, kafka_offset + 1) from rejected
          union all select topic, partition, incarnation, unnest(offsets) from skipped
          union all select topic, partition, incarnation, int8range(from_offset, to_offset) from known_gap
            where reason in ('retention', 'unexplained')
        ), covered as (
          select l.topic, l.partition, l.incarnation, int8multirange(int8range(l.first_offset, coalesce(l.end_offset, c.next_offset))) as life,
            (select range_agg(p.r) from place p where p.topic = l.topic and p.partition = l.partition and p.incarnation = l.incarnation) as seen,
            (select sum(upper(p.r) - lower(p.r)) from place p
              where p.topic = l.topic and p.partition = l.partition and p.incarnation = l.incarnation) as n,
            coalesce((select g.offsets from purged g where g.topic = l.topic and g.partition = l.partition and g.incarnation = l.incarnation), 0)
              as purged
          from life l left join consumer_position c on c.topic = l.topic and c.partition = l.partition and c.incarnation = l.incarnation
        ), counted as (
          select *, life - coalesce(seen, '{}') as missing,
            (select coalesce(sum(upper(r) - lower(r)), 0) from unnest(life - coalesce(seen, '{}')) r) as n_missing,
            (select coalesce(sum(upper(r) - lower(r)), 0) from unnest(coalesce(seen, '{}')) r) as n_seen,
            coalesce(seen, '{}') - life as outside
          from covered
        )
        select coalesce(string_agg(format('%s/%s life %s: missing %s (%s deleted), %s offsets in two places, outside of it %s',
          topic, partition, incarnation, missing, purged, n - n_seen, outside), '; '), '')
        from counted where n_missing <> purged or coalesce(n, 0) <> n_seen or not isempty(outside)";
    client.query_one(query, &[]).expect("the truth").get(0)
}
