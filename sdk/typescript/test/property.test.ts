import fc from 'fast-check';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { VibeFollow, VibeFollowError, type TrackedEvent } from '@vibefollow/sdk';
import { FakeService, KEY, refusal, type Step, type WireEvent } from './service.js';

beforeEach(() => vi.useFakeTimers());
afterEach(() => vi.useRealTimers());

/** The actions of a run, in order. */
type Action =
  | { do: 'track'; name: string }
  | { do: 'flush'; timeoutMs: number | undefined }
  | { do: 'change the key' }
  | { do: 'wait'; ms: number }
  | { do: 'fail'; step: Step };

const step = fc.constantFrom<Step>(
  // More often, so that a flush() can reach its deadline between two buffers.
  'accept',
  'accept',
  'accept',
  'hang',
  'hang',
  'hang',
  'accept, then drop the connection',
  'accept, then cut off the response',
  'drop the connection',
  'hang in the response',
  refusal(500, 'internal_error'),
  refusal(503, 'service_unavailable', { headers: { 'Retry-After': '1' } }),
  refusal(429, 'rate_limited', { headers: { 'Retry-After': '4' } }),
  refusal(429, 'rate_limited', { headers: { 'Retry-After': '90' } }),
  { status: 200, body: '<html>' },
  { status: 302, body: '' },
  { status: 408, body: '' },
  { status: 404, body: '<html>' },
  refusal(401, 'auth_required'),
);

const action: fc.Arbitrary<Action> = fc.oneof(
  { weight: 8, arbitrary: fc.record({ do: fc.constant('track'), name: fc.constant('good') }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('track'), name: fc.constant(FakeService.BAD) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('track'), name: fc.constant('long'.repeat(60)) }) },
  {
    weight: 2,
    arbitrary: fc.record({ do: fc.constant('flush'), timeoutMs: fc.constantFrom(undefined, 0, 700) }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('change the key') }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('wait'), ms: fc.constantFrom(0, 1, 400, 5_000, 40_000) }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constant('fail'), step }) },
);

const MAX_QUEUE = 20;

const setting = fc.record({
  actions: fc.array(action, { maxLength: 60 }),
  maxSize: fc.integer({ min: 1, max: 3 }),
  maxRetries: fc.integer({ min: 0, max: 2 }),
  maxBodyBytes: fc.constantFrom(5_242_880, 230),
  partial: fc.boolean(),
  handler: fc.constantFrom('none', 'none', 'sync', 'async', 'failing'),
});

it('accepts every event once or reports it, in every sequence of actions', async () => {
  await fc.assert(
    fc.asyncProperty(setting, async ({ actions, maxSize, maxRetries, maxBodyBytes, partial, handler }) => {
      const service = new FakeService();
      service.maxBodyBytes = maxBodyBytes;
      const tracked: string[] = [];
      // Keyed by error, because several flushes that wait for a buffer share its error.
      const reported = new Map<VibeFollowError, string[]>();
      const report = (events: readonly TrackedEvent[], error: VibeFollowError) => {
        reported.set(error, events.map(({ userId }) => userId));
      };
      const isReported = (id: string) => [...reported.values()].flat().includes(id);
      const onRejected = {
        none: undefined,
        sync: report,
        async: async (events: readonly TrackedEvent[], error: VibeFollowError) => {
          await new Promise((resolve) => setTimeout(resolve, 100));
          report(events, error);
        },
        failing: () => {
          throw new Error('a bug');
        },
      }[handler];
      const client = new VibeFollow({ apiKey: KEY, fetchImpl: service.fetch, maxRetries });
      const batch = client.events.batch({ maxSize, maxQueue: MAX_QUEUE, partial, onRejected });
      const accepted = (id: string) => service.queue.some((event) => event.external_user_id === id);

      const track = (name: string) => {
        const id = `${tracked.length}`;
        batch.track(name, id);
        tracked.push(id);
      };
      const flush = async (timeoutMs?: number) => {
        const before = [...tracked];
        try {
          await batch.flush({ timeoutMs });
          for (const id of before) expect(accepted(id) || isReported(id)).toBe(true);
          return true;
        } catch (error) {
          if (!(error instanceof VibeFollowError)) throw error;
          for (const each of [error, ...(error.suppressed ?? [])]) {
            if (each.events) report(each.events, each);
          }
          return false;
        }
      };

      const flushes: Promise<boolean>[] = [];
      for (const action of actions) {
        switch (action.do) {
          case 'track':
            try {
              track(action.name);
            } catch (error) {
              expect(error).toMatchObject({ code: 'queue_full' });
            }
            break;
          case 'flush':
            flushes.push(flush(action.timeoutMs));
            break;
          case 'change the key':
            client.setApiKey(KEY);
            break;
          case 'wait':
            await vi.advanceTimersByTimeAsync(action.ms);
            break;
          case 'fail':
            service.script.push(action.step);
            break;
        }
      }

      // The service recovers. The first flush() reports all remaining failures, so the second one
      // succeeds.
      await vi.runAllTimersAsync();
      service.script = [];
      for (let i = 0; i < 2; i++) {
        flushes.push(flush());
        await vi.runAllTimersAsync();
      }
      expect((await Promise.all(flushes)).at(-1)).toBe(true);

      // No event is in the queue twice, and the events are in the order in which they were tracked.
      const queued = service.queue.map((event) => Number(event.external_user_id));
      expect(queued).toEqual([...new Set(queued)].sort((a, b) => a - b));

      // A key is always sent with the same bytes.
      const bodies = new Map<string, string>();
      const last = new Map<string, number>();
      for (const { headers, body, seen } of service.received) {
        const key = headers['idempotency-key'] ?? '';
        expect(bodies.get(key) ?? body).toBe(body);
        bodies.set(key, body);
        last.set(key, seen);
      }
      // No event is sent with another key unless the service said that the body was too large.
      const idsOf = (body: string) =>
        (JSON.parse(body) as { events: WireEvent[] }).events.map((event) => event.external_user_id);
      const isSplit = (key: string) => last.has(`${key}.0`);
      const sent = [...bodies].filter(([key]) => !isSplit(key)).flatMap(([, body]) => idsOf(body));
      expect(sent).toEqual(tracked);
      for (const [key, status] of last) if (isSplit(key)) expect(status).toBe(413);

      // The last response for each event was definite. The event is reported only if it was a rejection.
      for (const [key, body] of bodies) {
        if (isSplit(key)) continue;
        const status = last.get(key) ?? 0;
        expect([partial ? 200 : 202, 413, 422]).toContain(status);
        for (const id of idsOf(body)) {
          if (status === 202) expect(accepted(id)).toBe(true);
          if (status > 202) expect(accepted(id)).toBe(false);
          expect(isReported(id)).toBe(!accepted(id));
        }
      }
      expect([...reported.values()].flat()).toHaveLength(new Set([...reported.values()].flat()).size);
      expect(service.mostAtOnce).toBeLessThanOrEqual(1);

      // The queue is empty again.
      for (let i = 0; i < MAX_QUEUE; i++) track('good');
      expect(() => {
        track('good');
      }).toThrow('maxQueue');
      const end = batch.flush();
      await vi.runAllTimersAsync();
      await end;
      expect(vi.getTimerCount()).toBe(0);
    }),
    { numRuns: 2_000 },
  );
}, 60_000);
