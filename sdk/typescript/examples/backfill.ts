// The page's example, against the address in the environment:
//
//   VIBEFOLLOW_API_KEY=sk_… npm run example [-- COUNT]
//
// VIBEFOLLOW_BASE_URL  where the API is, if not at its public address
// VIBEFOLLOW_HOST      a Host header to send, for an API behind a local AWS
import { VibeFollow, VibeFollowError } from '@vibefollow/sdk';
import { fetchWithHost } from './fetch-with-host.js';

const { VIBEFOLLOW_API_KEY = '', VIBEFOLLOW_BASE_URL, VIBEFOLLOW_HOST } = process.env;
const count = Number(process.argv[2] ?? 1_000);
const historicalEvents = Array.from({ length: count }, (_, i) => ({
  name: 'order_placed',
  userId: `usr_${i % 100}`,
  properties: { order: i, total: 9.99 },
}));

const vf = new VibeFollow({
  apiKey: VIBEFOLLOW_API_KEY,
  baseUrl: VIBEFOLLOW_BASE_URL,
  fetchImpl: VIBEFOLLOW_HOST ? fetchWithHost(VIBEFOLLOW_HOST) : undefined,
});
const batch = vf.events.batch({ maxSize: 100, maxAgeMs: 5_000 });
const start = performance.now();
try {
  for (const [i, row] of historicalEvents.entries()) {
    batch.track(row.name, row.userId, row.properties);
    // Lets the network keep up, so that memory does not grow with the history.
    if (i % 10_000 === 9_999) await batch.flush();
  }
  await batch.flush();
  const seconds = ((performance.now() - start) / 1_000).toFixed(1);
  console.log(`${count} events accepted in ${seconds} s`);
} catch (error) {
  if (!(error instanceof VibeFollowError)) throw error;
  console.error(String(error));
  process.exitCode = 1;
}
