// Tracks events in a spool until it is killed: spool-writer.mjs BASE_URL API_KEY SPOOL track|drain RUN
// Writes the user id of each event after track() has returned. With `drain`, it only sends what is left.
import { writeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { VibeFollow } from '../dist/esm/index.js';

const [baseUrl, apiKey, spool, mode, run] = process.argv.slice(2);
const batch = new VibeFollow({ apiKey, baseUrl }).events.batch({
  spool,
  maxSize: 20,
  maxAgeMs: 30,
  onRejected: (events, error) => {
    throw error;
  },
});
for (let i = 0; mode === 'track'; i++) {
  const id = `${run}-${i}`;
  batch.track('spooled', id, { text: 'é😀'.repeat(i % 50) });
  writeSync(1, `${id}\n`);
  if (i % 4 === 0) await sleep(5);
}
await batch.close();
