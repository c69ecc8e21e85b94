import fc from 'fast-check';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { VibeFollow, VibeFollowError, type TrackedEvent } from '@vibefollow/sdk';
import { FakeService, KEY, refusal, type Step } from './service.js';

beforeEach(() => vi.useFakeTimers());
afterEach(() => vi.useRealTimers());

/** The actions of a run, in order. */
type Action =
  | { do: 'track'; name: string }
  | { do: 'flush' }
  | { do: 'wait'; ms: number }
  | { do: 'fail'; step: Step };

const step = fc.constantFrom<Step>(
  'accept',
  'accept, then drop the connection',
  'accept, then cut off the response',
  'drop the connection',
  'hang',
  'hang in the response',
  refusal(500, 'internal_error'),
  refusal(503, 'service_unavailable', { headers: { 'Retry-After': '1' } }),
  refusal(429, 'rate_limited', { headers: { 'Retry-After': '4' } }),
  refusal(429, 'rate_limited', { headers: { 'Retry-After': '90' } }),
  { status: 200, body: '<html>' },
  { status: 302, body: '' },
  refusal(401, 'auth_required'),
  refusal(413, 'payload_too_large'),
);

const action: fc.Arbitrary<Action> = fc.oneof(
  { weight: 8, arbitrary: fc.record({ do: fc.constant('track'), name: fc.constant('good') }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('track'), name: fc.constant(FakeService.BAD) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('flush') }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('wait'), ms: fc.constantFrom(0, 1, 400, 5_000, 40_000) }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constant('fail'), step }) },
);

const MAX_QUEUE = 20;

const setting = fc.record({
  actions: fc.array(action, { maxLength: 60 }),
  maxSize: fc.integer({ min: 1, max: 4 }),
  maxRetries: fc.integer({ min: 0, max: 2 }),
  handler: fc.constantFrom('none', 'sync', 'async', 'failing'),
});

it('accepts every event once or reports it, in every sequence of actions', async () => {
  await fc.assert(
    fc.asyncProperty(setting, async ({ actions, maxSize, maxRetries, handler }) => {
      const service = new FakeService();
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
      const batch = new VibeFollow({ apiKey: KEY, fetchImpl: service.fetch, maxRetries }).events.batch(
        { maxSize, maxQueue: MAX_QUEUE, onRejected },
      );
      const accepted = (id: string) => service.queue.some((event) => event.external_user_id === id);

      const track = (name: string) => {
        const id = `${tracked.length}`;
        batch.track(name, id);
        tracked.push(id);
      };
      const flush = async () => {
        const before = [...tracked];
        try {
          await batch.flush();
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
            flushes.push(flush());
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

      // A key is always sent with the same bytes, and no event is sent with two keys.
      const bodies = new Map<string, string>();
      const last = new Map<string, number>();
      for (const { headers, body, seen } of service.received) {
        const key = headers['idempotency-key'] ?? '';
        expect(bodies.get(key) ?? body).toBe(body);
        bodies.set(key, body);
        last.set(key, seen);
      }
      const sent = [...bodies.entries()].flatMap(([key, body]) =>
        (JSON.parse(body) as { events: { external_user_id: string }[] }).events.map(
          (event) => [event.external_user_id, last.get(key) ?? 0] as const,
        ),
      );
      expect(sent.map(([id]) => id)).toEqual(tracked);

      // The last response for each event was definite. The event is reported only if it was a rejection.
      for (const [id, status] of sent) {
        if (status === 202) {
          expect(accepted(id)).toBe(true);
          expect(isReported(id)).toBe(false);
        } else {
          expect([401, 413, 422]).toContain(status);
          expect(isReported(id)).toBe(true);
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
