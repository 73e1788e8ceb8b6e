// graphile-worker that posts, tuned as its documentation says: local queue, batched completion.
//   worker.js migrate | worker.js run        Environment: DSN, URL, WORKERS.
"use strict";
const { Logger, run, runMigrations } = require("graphile-worker");
const { Pool } = require("undici");

const workers = Number(process.env.WORKERS);
const logger = new Logger(() => (level, message) => {
  if (level === "error") console.error(message);
});
const preset = {
  worker: {
    connectionString: process.env.DSN,
    concurrentJobs: workers,
    maxPoolSize: 10,
    pollInterval: 500,
    localQueue: { size: 500, refetchDelay: { durationMs: 10 } },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0,
    logger,
  },
};

async function main() {
  if (process.argv[2] === "migrate") return runMigrations({ preset });
  const url = new URL(process.env.URL);
  const http = new Pool(url.origin, { connections: workers, pipelining: 1, headersTimeout: 15000, bodyTimeout: 15000 });
  const deliver = async ({ value }) => {
    const headers = { "content-type": "application/json", "idempotency-key": JSON.parse(value).transaction_id };
    const answer = await http.request({ method: "POST", path: url.pathname, headers, body: value });
    await answer.body.dump();
    if (answer.statusCode >= 300) throw new Error(`status ${answer.statusCode}`);
  };
  const runner = await run({ preset, taskList: { deliver } });
  await runner.promise;
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
