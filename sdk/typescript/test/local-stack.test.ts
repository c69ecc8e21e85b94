import { randomUUID } from 'node:crypto';
import { expect, it, vi } from 'vitest';
import { ValidationError, VibeFollow, type FetchRequest } from '@vibefollow/sdk';
import { rejection } from './service.js';

// These tests run against a deployed service if these environment variables are set:
//
//   VIBEFOLLOW_BASE_URL   base URL of the API, such as the URL that `make run` prints
//   VIBEFOLLOW_API_KEY    an API key of the service
//   VIBEFOLLOW_QUEUE_URL  optional: the queue on the local AWS, in which the tests look for the
//                         events. They stay in the queue, hidden from other readers for
//                         VISIBILITY_SECONDS
const { VIBEFOLLOW_BASE_URL, VIBEFOLLOW_API_KEY, VIBEFOLLOW_QUEUE_URL } = process.env;
const VISIBILITY_SECONDS = 30;

// The platform's fetch, which a test replaces.
const platformFetch = globalThis.fetch;
const send = (url: string, request: FetchRequest) => platformFetch(url, request);
const target = { apiKey: VIBEFOLLOW_API_KEY ?? '', baseUrl: VIBEFOLLOW_BASE_URL, fetchImpl: send };
const run = randomUUID();

/** The events of this run that are in the queue, ordered by user id. */
async function queued(atLeast: number): Promise<{ userId: string; name: string; properties: unknown }[]> {
  const url = new URL(VIBEFOLLOW_QUEUE_URL ?? '');
  const found = new Map<string, { userId: string; name: string; properties: unknown }>();
  const events = [];
  // Reads until the queue is empty, so that it finds duplicates too, but ends before messages that
  // it has read become visible again.
  let more = true;
  for (const end = Date.now() + 20_000; Date.now() < end && (more || events.length < atLeast); ) {
    const response = await fetch(url.origin, {
      method: 'POST',
      headers: {
        'Content-Type': 'application/x-amz-json-1.0',
        'X-Amz-Target': 'AmazonSQS.ReceiveMessage',
        // A local AWS reads the region and the service from this header and does not check the signature.
        Authorization:
          'AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/sqs/aws4_request, SignedHeaders=host, Signature=0',
      },
      body: JSON.stringify({
        QueueUrl: url.href,
        MaxNumberOfMessages: 10,
        VisibilityTimeout: VISIBILITY_SECONDS,
        WaitTimeSeconds: 1,
      }),
    });
    const { Messages = [] } = (await response.json()) as {
      Messages?: { MessageId: string; Body: string }[];
    };
    more = Messages.length > 0;
    for (const { Body } of Messages) {
      const message = JSON.parse(Body) as {
        events: { id: string; event: { external_user_id: string; name: string; properties: unknown } }[];
      };
      for (const { id, event } of message.events) {
        if (!event.external_user_id.startsWith(run)) continue;
        expect(found.has(id)).toBe(false);
        const { external_user_id: userId, name, properties } = event;
        found.set(id, { userId, name, properties });
        events.push({ userId, name, properties });
      }
    }
  }
  return events.sort((a, b) => a.userId.localeCompare(b.userId));
}

const deployed = it.skipIf(!VIBEFOLLOW_BASE_URL || !VIBEFOLLOW_API_KEY);

deployed(
  'accepts the events of the page’s example',
  async () => {
    // 350 events of about 1 KB, so that the buffers are large enough to be compressed.
    const events = Array.from({ length: 350 }, (_, i) => ({
      userId: `${run}-${String(i).padStart(5, '0')}`,
      name: 'order_placed',
      properties: { order: i, note: `é€😀"\\ ${'x'.repeat(1_000)}` },
    }));
    vi.stubGlobal('historicalEvents', events);
    vi.stubGlobal('fetch', (url: string, request: FetchRequest) => {
      return send(url.replace('https://api.vibefollow.com', VIBEFOLLOW_BASE_URL ?? ''), request);
    });
    await import('../examples/page.js');
    vi.unstubAllGlobals();

    if (VIBEFOLLOW_QUEUE_URL) expect(await queued(events.length)).toEqual(events);
  },
  60_000,
);

deployed('accepts a batch of almost 5 MB', async () => {
  const batch = new VibeFollow(target).events.batch({ maxSize: 500 });
  for (let i = 0; i < 52; i++) batch.track('big', `big-${run}`, { quotes: '"'.repeat(50_000) });
  await batch.flush();
}, 30_000);

deployed('names the invalid event of a batch', async () => {
  const batch = new VibeFollow(target).events.batch();
  batch.track('fine', `fine-${run}`);
  batch.track('', `nameless-${run}`);
  const error = await rejection(batch.flush(), ValidationError);
  expect(error.field).toBe('events[1].name');
  expect(error.events).toHaveLength(2);
});

deployed('accepts a single event, and names the violation of an invalid one', async () => {
  const vf = new VibeFollow(target);
  await vf.events.track('signed_up', `single-${run}`, { plan: 'trial' });
  const error = await rejection(vf.events.track('', `single-${run}`), ValidationError);
  expect(error.field).toBe('name');
});

deployed('accepts the valid events of a bulk request, and names the others', async () => {
  const vf = new VibeFollow(target);
  const events = ['fine', '', 'fine'].map((name) => ({ name, userId: `bulk-${run}` }));
  expect(await vf.events.bulk(events)).toEqual({
    accepted: 2,
    rejected: 1,
    errors: [{ index: 1, code: 'validation', message: expect.any(String) as string, field: 'name' }],
    received: 3,
  });
  const batch = vf.events.batch({ partial: true });
  for (const { name, userId } of events) batch.track(name, userId);
  const error = await rejection(batch.flush(), ValidationError);
  expect(error.field).toBe('events[0].name');
  expect(error.events).toHaveLength(1);
});

deployed('accepts every form of a time, and text that was cut in the middle of an emoji', async () => {
  const times = ['2020-02-29T12:00:00Z', '2020-02-29t12:00:00.123456789+05:30', '2016-12-31T23:59:60Z', '0000-02-29T00:00:00z'];
  const batch = new VibeFollow(target).events.batch();
  for (const timestamp of [...times, new Date(), null]) {
    batch.track('timed', `timed-${run}`, { text: 'cut \ud83d' }, { timestamp });
  }
  await batch.flush();
});
