import { VibeFollow } from '@vibefollow/sdk';
const vf = new VibeFollow({ apiKey: process.env.VIBEFOLLOW_API_KEY! });
const batch = vf.events.batch({ maxSize: 100, maxAgeMs: 5_000 });
for (const row of historicalEvents) {
  batch.track(row.name, row.userId, row.properties);
}
await batch.flush();
