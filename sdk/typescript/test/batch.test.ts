import { inspect } from 'node:util';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import {
  NetworkError,
  ServerError,
  ValidationError,
  VibeFollow,
  VibeFollowError,
  type BatchOptions,
  type EventBatch,
  type TrackedEvent,
} from '@vibefollow/sdk';
import { FakeService, KEY, refusal, rejection, type Step } from './service.js';

const BAD = FakeService.BAD;
const DOWN = refusal(503, 'service_unavailable');
const MAX_BODY_BYTES = 5_242_880;

let service: FakeService;
const unhandled = vi.fn();

beforeEach(() => {
  vi.useFakeTimers();
  vi.spyOn(Math, 'random').mockReturnValue(1);
  service = new FakeService();
  process.on('unhandledRejection', unhandled);
});

afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
  process.off('unhandledRejection', unhandled);
  expect(unhandled).not.toHaveBeenCalled();
});

function batchOf(options: BatchOptions = {}, maxRetries = 0): EventBatch {
  return new VibeFollow({ apiKey: KEY, fetchImpl: service.fetch, maxRetries }).events.batch(options);
}

function track(batch: EventBatch, ...names: string[]): void {
  for (const name of names) batch.track(name, 'usr_42');
}

/** Without a timestamp, for tests that compare bytes. */
const UNTIMED = { timestamp: null };

/** Runs everything that is due now. */
async function runPending(): Promise<void> {
  await vi.advanceTimersByTimeAsync(0);
}

function sentNames(): string[][] {
  return service.received.map(({ body }) =>
    (JSON.parse(body) as { events: { name: string }[] }).events.map(({ name }) => name),
  );
}

describe('a buffer is sent', () => {
  it('when it has maxSize events', async () => {
    const batch = batchOf({ maxSize: 3 });
    track(batch, 'a', 'b');
    await runPending();
    expect(service.received).toHaveLength(0);
    track(batch, 'c', 'd');
    await runPending();
    expect(sentNames()).toEqual([['a', 'b', 'c']]);
  });

  it('when it has 100 events, by default', async () => {
    const batch = batchOf();
    for (let i = 0; i < 250; i++) batch.track(`${i}`, 'u');
    await runPending();
    expect(sentNames().map(({ length }) => length)).toEqual([100, 100]);
    await batch.flush();
    expect(service.names()).toEqual(Array.from({ length: 250 }, (_, i) => `${i}`));
  });

  it('when maxAgeMs has passed since its first event', async () => {
    const batch = batchOf();
    track(batch, 'a');
    await vi.advanceTimersByTimeAsync(3_000);
    track(batch, 'b');
    await vi.advanceTimersByTimeAsync(1_999);
    expect(service.received).toHaveLength(0);
    await vi.advanceTimersByTimeAsync(1);
    expect(sentNames()).toEqual([['a', 'b']]);
    // The age of the next buffer is counted from its own first event.
    await vi.advanceTimersByTimeAsync(10_000);
    track(batch, 'c');
    await vi.advanceTimersByTimeAsync(4_999);
    expect(service.received).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(1);
    expect(sentNames()).toEqual([['a', 'b'], ['c']]);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('at its own age, not at the age of an earlier buffer that became full', async () => {
    const batch = batchOf({ maxSize: 2 });
    track(batch, 'a');
    await vi.advanceTimersByTimeAsync(3_000);
    track(batch, 'b', 'c');
    await vi.advanceTimersByTimeAsync(4_999);
    expect(sentNames()).toEqual([['a', 'b']]);
    await vi.advanceTimersByTimeAsync(1);
    expect(sentNames()).toEqual([['a', 'b'], ['c']]);
  });

  it('before it would exceed 5 MB, to the byte', async () => {
    const shell = '{"events":[{"external_user_id":"u","name":"a","properties":{"t":""}},'.length;
    const last = '{"external_user_id":"u","name":"b","properties":null}'.length;
    // "é" takes two bytes.
    const room = MAX_BODY_BYTES - shell - last - ']}'.length;
    const filler = 'é'.repeat(Math.floor(room / 2)) + 'x'.repeat(room % 2);

    const exact = batchOf();
    exact.track('a', 'u', { t: filler }, UNTIMED);
    exact.track('b', 'u', null, UNTIMED);
    await exact.flush();
    expect(sentNames()).toEqual([['a', 'b']]);
    expect(Buffer.byteLength(service.received[0]?.body ?? '')).toBe(MAX_BODY_BYTES);

    service.received.length = 0;
    const over = batchOf();
    over.track('a', 'u', { t: `${filler}x` }, UNTIMED);
    over.track('b', 'u', null, UNTIMED);
    await vi.waitFor(() => {
      expect(sentNames()).toEqual([['a']]);
    }, 4_000);
    await over.flush();
    expect(sentNames()).toEqual([['a'], ['b']]);
  });

  it('one at a time and in order, even if several are waiting', async () => {
    const batch = batchOf({ maxSize: 1 });
    track(batch, 'a', 'b', 'c');
    const flushed = batch.flush();
    track(batch, 'd', 'e');
    await flushed;
    await batch.flush();
    expect(service.names()).toEqual(['a', 'b', 'c', 'd', 'e']);
    expect(service.mostAtOnce).toBe(1);
    expect(new Set(service.sentKeys()).size).toBe(5);
  });
});

describe('track()', () => {
  it('takes a snapshot of the properties', async () => {
    const batch = batchOf();
    const properties = { plan: 'trial', tags: ['a'], at: new Date(0) };
    batch.track('a', 'usr_42', properties, UNTIMED);
    properties.plan = 'paid';
    properties.tags.push('b');
    await batch.flush();
    expect(service.queue).toEqual([
      {
        name: 'a',
        external_user_id: 'usr_42',
        properties: { plan: 'trial', tags: ['a'], at: '1970-01-01T00:00:00.000Z' },
      },
    ]);
  });

  it('throws if properties are not JSON, and the batch can still be used', async () => {
    const batch = batchOf();
    const circular: Record<string, unknown> = {};
    circular['self'] = circular;
    expect(() => {
      batch.track('a', 'u', circular);
    }).toThrow(TypeError);
    track(batch, 'b');
    await batch.flush();
    expect(service.names()).toEqual(['b']);
  });

  it('throws if an event does not fit into a request', async () => {
    const batch = batchOf();
    const shell = '{"events":[{"external_user_id":"u","name":"a","properties":{"t":""}}]}'.length;
    const most = 'x'.repeat(MAX_BODY_BYTES - shell);
    expect(() => {
      batch.track('a', 'u', { t: `${most}x` }, UNTIMED);
    }).toThrow(expect.objectContaining({ code: 'event_too_large', status: 0 }));
    batch.track('a', 'u', { t: most }, UNTIMED);
    await batch.flush();
    expect(Buffer.byteLength(service.received[0]?.body ?? '')).toBe(MAX_BODY_BYTES);
  });

  it('throws while maxQueue events are queued', async () => {
    const batch = batchOf({ maxSize: 2, maxQueue: 3 });
    service.script = [DOWN];
    track(batch, 'a', 'b', 'c');
    expect(() => {
      track(batch, 'd');
    }).toThrow(
      'the queue is full: 3 events are not yet accepted or reported; ' +
        'await flush() more often, or raise maxQueue',
    );
    await runPending();
    await batch.flush();
    track(batch, 'd', 'e', 'f');
    await batch.flush();
    expect(service.names()).toEqual(['a', 'b', 'c', 'd', 'e', 'f']);
  });

  it('throws while maxQueueBytes are queued', async () => {
    const each = '{"external_user_id":"usr_42","name":"a","timestamp":"2026-11-26T09:00:00.000Z"},'.length;
    const batch = batchOf({ maxQueueBytes: 3 * each });
    track(batch, 'a', 'b', 'c');
    expect(() => {
      track(batch, 'd');
    }).toThrow(expect.objectContaining({ code: 'queue_full', status: 0 }));
    await batch.flush();
    track(batch, 'd', 'e', 'f');
  });

  it('counts rejected events as queued until they are reported', async () => {
    const batch = batchOf({ maxSize: 1, maxQueue: 1 });
    track(batch, BAD);
    await runPending();
    expect(() => {
      track(batch, 'a');
    }).toThrow(VibeFollowError);
    await rejection(batch.flush(), ValidationError);
    track(batch, 'a');
    await batch.flush();
  });
});

describe('flush()', () => {
  it('sends nothing if no events are queued', async () => {
    await batchOf().flush();
    expect(service.received).toHaveLength(0);
  });

  it('waits for a background send that is in flight', async () => {
    const batch = batchOf({ maxSize: 1 });
    service.script = ['accept', 'hang'];
    track(batch, 'a', 'b');
    await runPending();
    const done = vi.fn();
    const flushed = batch.flush().catch(done);
    await vi.advanceTimersByTimeAsync(9_999);
    expect(done).not.toHaveBeenCalled();
    await vi.advanceTimersByTimeAsync(1);
    await flushed;
  });

  it('does not wait for events that are tracked after it', async () => {
    const batch = batchOf({ maxSize: 1 });
    track(batch, 'a');
    const flushed = batch.flush();
    service.script = ['accept', 'hang'];
    track(batch, 'b');
    await flushed;
    expect(service.names()).toEqual(['a']);
  });

  it('can be called several times at once', async () => {
    const batch = batchOf({ maxSize: 2 });
    track(batch, 'a', 'b', 'c');
    const first = batch.flush();
    track(batch, 'd');
    await Promise.all([first, batch.flush(), batch.flush()]);
    expect(sentNames()).toEqual([['a', 'b'], ['c'], ['d']]);
  });

  it('is called by disposal', async () => {
    const batch = batchOf();
    track(batch, 'a');
    await batch[Symbol.asyncDispose]();
    expect(service.names()).toEqual(['a']);
  });

  it('retries as often as maxRetries says', async () => {
    const batch = batchOf({}, 2);
    service.script = [DOWN, 'drop the connection'];
    track(batch, 'a');
    const flushed = batch.flush();
    await vi.runAllTimersAsync();
    await flushed;
    expect(service.received).toHaveLength(3);
    expect(new Set(service.sentKeys()).size).toBe(1);
  });
});

describe('a buffer whose retries ran out', () => {
  const failures: Step[] = [DOWN, 'drop the connection', 'hang', refusal(429, 'rate_limited')];

  it.each([...failures, { status: 200, body: 'from a proxy' }, { status: 301, body: '' }])(
    'stays queued after %o, and is sent again with the same key and body',
    async (failure) => {
      const batch = batchOf();
      service.script = [failure];
      track(batch, 'a');
      const failed = rejection(batch.flush(), VibeFollowError);
      await vi.runAllTimersAsync();
      expect(await failed).not.toHaveProperty('events');
      track(batch, 'b');
      await batch.flush();
      expect(sentNames()).toEqual([['a'], ['a'], ['b']]);
      const [first, again, other] = service.sentKeys();
      expect(again).toBe(first);
      expect(other).not.toBe(first);
    },
  );

  it('is not duplicated if it was accepted after all', async () => {
    const batch = batchOf();
    service.script = ['accept, then drop the connection', 'accept, then cut off the response'];
    track(batch, 'a', 'b');
    await rejection(batch.flush(), NetworkError);
    await rejection(batch.flush(), NetworkError);
    await batch.flush();
    expect(service.names()).toEqual(['a', 'b']);
  });

  it('delays the buffers behind it, so that the order is kept', async () => {
    const batch = batchOf({ maxSize: 1 });
    service.script = [DOWN];
    track(batch, 'a', 'b');
    await rejection(batch.flush(), ServerError);
    expect(sentNames()).toEqual([['a']]);
    await batch.flush();
    expect(service.names()).toEqual(['a', 'b']);
  });

  it('in the background: is reported to onError and by flush(), and is sent before the next buffer', async () => {
    const onError = vi.fn();
    const batch = batchOf({ onError });
    service.script = [DOWN, DOWN];
    track(batch, 'a');
    await vi.advanceTimersByTimeAsync(5_000);
    expect(onError).toHaveBeenCalledExactlyOnceWith(expect.any(ServerError));

    await rejection(batch.flush(), ServerError);
    expect(onError).toHaveBeenCalledTimes(1);

    track(batch, 'b');
    await vi.advanceTimersByTimeAsync(5_000);
    expect(service.names()).toEqual(['a', 'b']);
    await batch.flush();
  });

  it('is attempted again for a flush() that was called during the last attempt', async () => {
    const onError = vi.fn();
    const batch = batchOf({ maxSize: 1, onError });
    service.script = ['hang'];
    track(batch, 'a');
    await vi.advanceTimersByTimeAsync(9_999);
    const flushed = batch.flush();
    await vi.runAllTimersAsync();
    await flushed;
    expect(onError).toHaveBeenCalledTimes(1);
    expect(service.names()).toEqual(['a']);
  });

  it('fails every flush() that waits for it', async () => {
    const batch = batchOf();
    service.script = [DOWN];
    track(batch, 'a');
    const both = [batch.flush(), batch.flush()].map((flush) => rejection(flush, ServerError));
    const [one, other] = await Promise.all(both);
    expect(one).toBe(other);
  });
});

describe('a rejected buffer', () => {
  const handed: [string[], VibeFollowError][] = [];
  const onRejected = (events: readonly TrackedEvent[], error: VibeFollowError) => {
    handed.push([events.map(({ name }) => name), error]);
  };

  beforeEach(() => {
    handed.length = 0;
  });

  it.each([
    [413, 'payload_too_large', VibeFollowError],
    [422, 'validation_failed', ValidationError],
    [422, 'idempotency_key_reuse', ValidationError],
  ])('is passed to onRejected after a %i %s, and later buffers are sent', async (status, code, type) => {
    const onError = vi.fn();
    const batch = batchOf({ maxSize: 1, onRejected, onError });
    service.script = ['accept', refusal(status, code)];
    track(batch, 'a', 'b', 'c');
    await batch.flush();
    expect(handed).toEqual([[['b'], expect.any(type)]]);
    expect(service.names()).toEqual(['a', 'c']);
    expect(onError).not.toHaveBeenCalled();
    await batch.flush();
    expect(service.received).toHaveLength(3);
  });

  it('is passed to onRejected as it was tracked', async () => {
    const given: TrackedEvent[] = [];
    const batch = batchOf({ onRejected: (events) => given.push(...events) });
    batch.track(BAD, 'usr_1', { plan: 'trial' }, UNTIMED);
    batch.track('a', 'usr_2', undefined, UNTIMED);
    await batch.flush();
    expect(given).toEqual([
      { name: BAD, userId: 'usr_1', properties: { plan: 'trial' } },
      { name: 'a', userId: 'usr_2' },
    ]);
    // The valid events can be tracked again.
    for (const { name, userId, properties } of given.slice(1)) batch.track(name, userId, properties);
    await batch.flush();
    expect(service.names()).toEqual(['a']);
  });

  it('without onRejected, makes flush() throw an error with the events', async () => {
    const batch = batchOf({ maxSize: 2 });
    track(batch, 'a', 'b', 'c', BAD, 'e');
    const error = await rejection(batch.flush(), ValidationError);
    expect(error.field).toBe('events[1].name');
    expect(error.events?.map(({ name }) => name)).toEqual(['c', BAD]);
    expect(service.names()).toEqual(['a', 'b', 'e']);
    await batch.flush();
  });

  it('keeps properties out of the printed error', async () => {
    const batch = batchOf();
    batch.track(BAD, 'usr_1', { iban: 'DE0012345678' });
    const error = await rejection(batch.flush(), ValidationError);
    expect(inspect(error) + JSON.stringify(error)).not.toContain('DE0012345678');
  });

  it('is thrown together with the other failures of the same flush()', async () => {
    const batch = batchOf({ maxSize: 1 });
    service.script = [refusal(422, 'validation_failed'), 'accept', refusal(413, 'payload_too_large'), DOWN];
    track(batch, 'a', 'b', 'c', 'd');
    const error = await rejection(batch.flush(), ValidationError);
    expect(error.code).toBe('validation_failed');
    expect(error.events).toMatchObject([{ name: 'a', userId: 'usr_42' }]);
    expect(error.suppressed).toEqual([expect.any(VibeFollowError), expect.any(ServerError)]);
    expect(error.suppressed?.[0]?.events).toMatchObject([{ name: 'c', userId: 'usr_42' }]);
    await batch.flush();
    expect(service.names()).toEqual(['b', 'd']);
  });

  it('in the background: is passed to onError at once, and is thrown by the next flush()', async () => {
    const onError = vi.fn();
    const batch = batchOf({ maxSize: 1, onError });
    track(batch, BAD, 'a', BAD);
    await runPending();
    expect(onError).toHaveBeenCalledTimes(2);
    const error = await rejection(batch.flush(), ValidationError);
    expect(error.events).toHaveLength(1);
    expect(error.suppressed?.[0]?.events).toHaveLength(1);
    await batch.flush();
  });

  it('in the background: is passed only to onRejected, if there is one', async () => {
    const onError = vi.fn();
    const batch = batchOf({ maxSize: 1, onError, onRejected });
    track(batch, BAD);
    await runPending();
    expect(handed).toHaveLength(1);
    expect(onError).not.toHaveBeenCalled();
    await batch.flush();
  });

  it('is reported to every flush() that was waiting for it', async () => {
    const batch = batchOf();
    track(batch, BAD);
    const both = [batch.flush(), batch.flush()].map((flush) => rejection(flush, ValidationError));
    const [one, other] = await Promise.all(both);
    expect(one).toBe(other);
    await batch.flush();
  });
});

describe('a callback', () => {
  const bug = new Error('a bug in onRejected');

  it.each([
    ['throws', () => { throw bug; }],
    ['rejects', () => Promise.reject(bug)],
  ])('onRejected that %s makes flush() throw', async (_, onRejected) => {
    const onError = vi.fn();
    const batch = batchOf({ maxSize: 1, onRejected, onError });
    track(batch, BAD, 'a');
    await runPending();
    expect(onError).toHaveBeenCalledTimes(1);
    const error = await rejection(batch.flush(), ValidationError);
    expect(error.cause).toBe(bug);
    expect(error.events).toHaveLength(1);
    expect(service.names()).toEqual(['a']);
  });

  it('onRejected can return a promise, which flush() waits for', async () => {
    let stored = false;
    const batch = batchOf({
      onRejected: async () => {
        await new Promise((resolve) => setTimeout(resolve, 1_000));
        stored = true;
      },
    });
    track(batch, BAD);
    const flushed = batch.flush().then(() => stored);
    await vi.runAllTimersAsync();
    expect(await flushed).toBe(true);
  });

  it('onRejected can track the valid events again although the queue was full', async () => {
    const batch = batchOf({
      maxSize: 3,
      maxQueue: 3,
      onRejected: (events) => {
        for (const { name } of events) if (name !== BAD) track(batch, name);
      },
    });
    track(batch, BAD, 'a', 'b');
    await batch.flush();
    await batch.flush();
    expect(service.names()).toEqual(['a', 'b']);
  });

  it('onRejected can call track()', async () => {
    const batch = batchOf({
      onRejected: () => {
        track(batch, 'instead');
      },
    });
    track(batch, BAD);
    await batch.flush();
    await batch.flush();
    expect(service.names()).toEqual(['instead']);
  });

  it.each([
    ['throws', () => { throw bug; }],
    ['rejects', () => Promise.reject(bug)],
  ])('onError that %s changes nothing', async (_, onError) => {
    const batch = batchOf({ maxSize: 1, onError });
    service.script = [DOWN];
    track(batch, 'a', BAD);
    await runPending();
    await rejection(batch.flush(), ValidationError);
    expect(service.names()).toEqual(['a']);
  });

  it('onError can call flush()', async () => {
    const again: Promise<void>[] = [];
    const batch = batchOf({ maxSize: 1, onError: () => void again.push(batch.flush()) });
    service.script = [DOWN];
    track(batch, 'a');
    await runPending();
    expect(again).toHaveLength(1);
    await Promise.all(again);
    expect(service.names()).toEqual(['a']);
  });

  it('is optional: a failure in the background never becomes an unhandled rejection', async () => {
    const batch = batchOf({ maxSize: 1 });
    service.script = [DOWN];
    track(batch, 'a', BAD);
    await vi.runAllTimersAsync();
    vi.useRealTimers();
    await new Promise((resolve) => setTimeout(resolve, 10));
    expect(unhandled).not.toHaveBeenCalled();
  });
});

describe('options', () => {
  it.each([
    { maxSize: 0 },
    { maxSize: 501 },
    { maxSize: 1.5 },
    { maxAgeMs: -1 },
    { maxAgeMs: 2 ** 31 },
    { maxQueue: 0 },
    { maxQueueBytes: NaN },
  ])('rejects %o and names the option', (options) => {
    expect(() => batchOf(options)).toThrow(Object.keys(options)[0]);
  });

  it('accepts the highest and lowest values', () => {
    batchOf({ maxSize: 500, maxAgeMs: 0, maxQueue: 1, maxQueueBytes: 1 });
  });
});
