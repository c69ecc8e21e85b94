// The example of the product page, with the address taken from the environment:
//
//   VIBEFOLLOW_API_KEY=sk_… npm run example [-- COUNT]
//
// VIBEFOLLOW_BASE_URL  optional: base URL of the API, if it is not the public one
import { VibeFollow, VibeFollowError } from '@vibefollow/sdk';

const { VIBEFOLLOW_API_KEY = '', VIBEFOLLOW_BASE_URL } = process.env;
const count = Number(process.argv[2] ?? 1_000);
const historicalEvents = Array.from({ length: count }, (_, i) => ({
  name: 'order_placed',
  userId: `usr_${i % 100}`,
  properties: { order: i, total: 9.99 },
}));

const vf = new VibeFollow({
  apiKey: VIBEFOLLOW_API_KEY,
  baseUrl: VIBEFOLLOW_BASE_URL,
});
const batch = vf.events.batch({ maxSize: 100, maxAgeMs: 5_000 });
const start = performance.now();
try {
  for (const [i, row] of historicalEvents.entries()) {
    batch.track(row.name, row.userId, row.properties);
    // Wait for the network, so that memory does not grow with the number of events.
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
