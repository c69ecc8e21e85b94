import { readFile } from 'node:fs/promises';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import type { FetchRequest } from '@vibefollow/sdk';
import { FakeService, KEY } from './service.js';

/** The example of the product page. `examples/page.ts` is type-checked and run. */
const PAGE = `import { VibeFollow } from '@vibefollow/sdk';
const vf = new VibeFollow({ apiKey: process.env.VIBEFOLLOW_API_KEY! });
const batch = vf.events.batch({ maxSize: 100, maxAgeMs: 5_000 });
for (const row of historicalEvents) {
  batch.track(row.name, row.userId, row.properties);
}
await batch.flush();
`;

const service = new FakeService();

beforeEach(() => {
  vi.stubEnv('VIBEFOLLOW_API_KEY', KEY);
  vi.stubGlobal('historicalEvents', [...Array(1_234).keys()].map((i) => ({
    name: `event ${i}`,
    userId: `usr_${i}`,
    properties: { i },
  })));
});

afterEach(() => {
  vi.unstubAllEnvs();
  vi.unstubAllGlobals();
});

it('is the same on the product page, in examples/ and in the README', async () => {
  expect(await readFile(new URL('../examples/page.ts', import.meta.url), 'utf8')).toBe(PAGE);
  expect(await readFile(new URL('../README.md', import.meta.url), 'utf8')).toContain(PAGE);
});

it('sends every event over a network that fails once', async () => {
  const http = await service.listen();
  service.script = ['accept', 'accept, then drop the connection'];
  const { fetch } = globalThis;
  vi.stubGlobal('fetch', (url: string, request: FetchRequest) =>
    fetch(url.replace('https://api.vibefollow.com', http.url), request),
  );
  await import('../examples/page.js');
  await http.kill();
  expect(service.queue).toEqual(
    historicalEvents.map(({ name, userId, properties }) => ({
      external_user_id: userId,
      name,
      properties,
      timestamp: expect.stringMatching(/^\d{4}-\d\d-\d\dT[\d:.]+Z$/) as string,
    })),
  );
  expect(service.received).toHaveLength(13 + 1);
  expect(service.received[0]?.headers['authorization']).toBe(`Bearer ${KEY}`);
});
