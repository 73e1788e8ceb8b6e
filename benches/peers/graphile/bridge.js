// Kafka -> add_jobs, up to 500 a call, offsets committed afterwards. Environment: BROKERS, TOPIC, GROUP, DSN.
"use strict";
const { Kafka, logLevel } = require("kafkajs");
const { Pool } = require("pg");

const BATCH = 500;
const INSERT =
  "select count(*) from graphile_worker.add_jobs(array(select json_populate_recordset(null::graphile_worker.job_spec, $1::json)))";

async function eachBatch(pool, consumer, { batch, resolveOffset, heartbeat, isRunning, isStale }) {
  for (let from = 0; from < batch.messages.length; from += BATCH) {
    if (!isRunning() || isStale()) return;
    const part = batch.messages.slice(from, from + BATCH);
    const jobs = part.map((message) => ({ identifier: "deliver", payload: { value: message.value.toString("utf8") } }));
    await pool.query({ name: "insert", text: INSERT, values: [JSON.stringify(jobs)] });
    const { offset } = part[part.length - 1];
    resolveOffset(offset);
    await consumer.commitOffsets([{ topic: batch.topic, partition: batch.partition, offset: String(BigInt(offset) + 1n) }]);
    await heartbeat();
  }
}

async function main() {
  const pool = new Pool({ connectionString: process.env.DSN, max: 6 });
  const kafka = new Kafka({ brokers: [process.env.BROKERS], logLevel: logLevel.ERROR });
  const consumer = kafka.consumer({ groupId: process.env.GROUP });
  await consumer.connect();
  await consumer.subscribe({ topic: process.env.TOPIC, fromBeginning: true });
  await consumer.run({
    autoCommit: false,
    eachBatchAutoResolve: false,
    partitionsConsumedConcurrently: 6,
    eachBatch: (work) => eachBatch(pool, consumer, work),
  });
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
process.on("SIGTERM", () => process.exit(0));
