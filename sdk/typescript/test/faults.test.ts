import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import {
  AuthError,
  NetworkError,
  ValidationError,
  VibeFollow,
  VibeFollowError,
  type BatchOptions,
  type EventBatch,
  type TrackedEvent,
} from '@vibefollow/sdk';
import { FakeService, KEY, refusal, rejection, type Answer, type Step } from './service.js';

// What proxies, outages and cut strings do to a client.
const DOWN = refusal(503, 'service_unavailable');
const OTHER_KEY = 'sk_test_abcdefghijklmnopqrstuvwxyz012345';

let service: FakeService;
let client: VibeFollow;

beforeEach(() => {
  vi.useFakeTimers();
  vi.spyOn(Math, 'random').mockReturnValue(1);
  service = new FakeService();
  client = new VibeFollow({ apiKey: KEY, fetchImpl: service.fetch, maxRetries: 0 });
});

afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
  vi.unstubAllGlobals();
});

function batchOf(options: BatchOptions = {}): EventBatch {
  return client.events.batch(options);
}

function track(batch: EventBatch, ...names: string[]): void {
  for (const name of names) batch.track(name, 'usr_42');
}

function proxy(status: number): Answer {
  return { status, body: `<html>${status}</html>` };
}

function sizes(): number[] {
  return service.received.map(({ body }) => (JSON.parse(body) as { events: unknown[] }).events.length);
}

describe('a response that does not reject events', () => {
  const onRejected = vi.fn();
  beforeEach(() => {
    onRejected.mockClear();
  });

  it.each<Step>([
    proxy(408),
    proxy(409),
    proxy(421),
    proxy(425),
    proxy(429),
    proxy(500),
    proxy(511),
    proxy(599),
    { status: 200, body: '<html>Log in to the hotel’s network</html>' },
    { status: 202, body: '{"data":{"acc' },
    'drop the connection',
  ])('is retried by the same call with the same key: %o', async (step) => {
    client = new VibeFollow({ apiKey: KEY, fetchImpl: service.fetch });
    const batch = batchOf({ onRejected });
    service.script = [step];
    track(batch, 'a');
    const flushed = batch.flush();
    await vi.advanceTimersByTimeAsync(500);
    await flushed;
    expect(service.received).toHaveLength(2);
    expect(new Set(service.sentKeys()).size).toBe(1);
    expect(service.names()).toEqual(['a']);
    expect(onRejected).not.toHaveBeenCalled();
  });

  const stops: Answer[] = [
    ...[300, 302, 304, 307, 400, 402, 403, 404, 405, 406, 407, 410, 411, 415, 422, 431, 451].map(proxy),
    refusal(400, 'malformed_encoding'),
    refusal(401, 'auth_required'),
    refusal(403, 'forbidden'),
    refusal(404, 'not_found'),
    refusal(405, 'method_not_allowed'),
    refusal(415, 'unsupported_media_type'),
    refusal(422, 'a_code_of_somebody_else'),
  ];
  it.each(stops)('stops the queue and keeps everything: %o', async (step) => {
    const onError = vi.fn();
    const batch = batchOf({ maxSize: 1, onRejected, onError });
    service.script = ['accept', step, step];
    track(batch, 'a', 'b', 'c');
    await vi.advanceTimersByTimeAsync(0);
    expect(onError).toHaveBeenCalledExactlyOnceWith(expect.objectContaining({ status: step.status }));

    // Nothing is sent until somebody has corrected the cause.
    track(batch, 'd');
    await vi.advanceTimersByTimeAsync(3_600_000);
    expect(service.received).toHaveLength(2);

    const error = await rejection(batch.flush(), VibeFollowError);
    expect(error.status).toBe(step.status);
    expect(error).not.toHaveProperty('events');
    await batch.flush();
    expect(service.names()).toEqual(['a', 'b', 'c', 'd']);
    expect(new Set(service.sentKeys()).size).toBe(4);
    expect(onRejected).not.toHaveBeenCalled();
    expect(onError).toHaveBeenCalledTimes(1);
  });

  it('stops the queue after a redirect in a browser, which has status 0', async () => {
    const opaque = { status: 0, headers: new Headers(), text: () => Promise.resolve('') };
    client = new VibeFollow({ apiKey: KEY, fetchImpl: vi.fn().mockResolvedValueOnce(opaque).mockImplementation(service.fetch) });
    const batch = batchOf();
    track(batch, 'a');
    await vi.advanceTimersByTimeAsync(3_600_000);
    expect(service.received).toHaveLength(0);
    await batch.flush();
    expect(service.names()).toEqual(['a']);
  });

  it('stops the queue until the API key is changed', async () => {
    const onError = vi.fn();
    const batch = batchOf({ maxSize: 1, onError, onRejected });
    service.script = [refusal(401, 'auth_required')];
    track(batch, 'a', 'b');
    await vi.advanceTimersByTimeAsync(60_000);
    expect(onError).toHaveBeenCalledExactlyOnceWith(expect.any(AuthError));
    client.setApiKey(OTHER_KEY);
    await vi.advanceTimersByTimeAsync(0);
    expect(service.names()).toEqual(['a', 'b']);
    expect(service.received.map(({ headers }) => headers['authorization'])).toEqual([
      `Bearer ${KEY}`,
      `Bearer ${OTHER_KEY}`,
      `Bearer ${OTHER_KEY}`,
    ]);
    expect(onRejected).not.toHaveBeenCalled();
    expect(() => {
      client.setApiKey('');
    }).toThrow('apiKey');
  });
});

describe('an API key that is changed during an attempt', () => {
  it('does not stop the queue because of the answer to the old key', async () => {
    let change = () => undefined as unknown;
    client = new VibeFollow({
      apiKey: KEY,
      maxRetries: 0,
      fetchImpl: (...args) => {
        change();
        return service.fetch(...args);
      },
    });
    change = () => {
      change = () => undefined;
      client.setApiKey(OTHER_KEY);
    };
    const onError = vi.fn();
    const batch = batchOf({ maxSize: 1, onError });
    service.script = [refusal(401, 'auth_required')];
    track(batch, 'a');
    await vi.advanceTimersByTimeAsync(0);
    expect(service.names()).toEqual(['a']);
    expect(onError).not.toHaveBeenCalled();
  });
});

describe('half of a surrogate pair', () => {
  const HALF = '\ud83d';

  it('becomes U+FFFD in every string of an event', async () => {
    const batch = batchOf();
    batch.track(`n${HALF}`, `u\ude00`, {
      [`k${HALF}`]: `v${HALF}`,
      list: [{ [`${HALF}${HALF}`]: `${HALF}x` }],
      // Whole pairs, and text that only looks like an escape.
      whole: '😀',
      text: '\\ud83d \\\\ud83d "\\ud83d',
      escaped: `\\${HALF}`,
    });
    await client.events.track(`n${HALF}`, 'u');
    await batch.flush();
    expect(service.queue.map(({ external_user_id, name, properties }) => [external_user_id, name, properties])).toEqual([
      ['u', 'n\ufffd', undefined],
      [
        'u\ufffd',
        'n\ufffd',
        {
          'k\ufffd': 'v\ufffd',
          list: [{ '\ufffd\ufffd': '\ufffdx' }],
          whole: '😀',
          text: '\\ud83d \\\\ud83d "\\ud83d',
          escaped: '\\\ufffd',
        },
      ],
    ]);
  });

  it('rejects none of the events beside it', async () => {
    const batch = batchOf();
    for (let i = 0; i < 99; i++) track(batch, 'fine');
    batch.track('cut', 'u', { title: 'A long title 😀'.slice(0, -1) });
    await batch.flush();
    expect(service.queue).toHaveLength(100);
  });
});

describe('the time of an event', () => {
  it.each([
    [new Date(Date.UTC(2020, 1, 29, 12, 0, 0, 5)), '2020-02-29T12:00:00.005Z'],
    ['2020-02-29T12:00:00Z', '2020-02-29T12:00:00Z'],
    ['2020-02-29t12:00:00.123456789+05:30', '2020-02-29t12:00:00.123456789+05:30'],
    ['2016-12-31T23:59:60Z', '2016-12-31T23:59:60Z'],
    ['0000-02-29T00:00:00Z', '0000-02-29T00:00:00Z'],
  ])('is %o if track() is given it', async (timestamp, sent) => {
    const batch = batchOf();
    batch.track('a', 'u', {}, { timestamp });
    await batch.flush();
    await client.events.track('a', 'u', {}, { timestamp });
    expect(service.queue.map(({ timestamp }) => timestamp)).toEqual([sent, sent]);
  });

  it.each([
    new Date(NaN),
    new Date(Date.UTC(10_000, 0)),
    new Date(-1e14),
    '',
    'yesterday',
    '2020-02-29',
    '2020-02-30T12:00:00Z',
    '2021-02-29T12:00:00Z',
    '2020-13-01T12:00:00Z',
    '2020-02-29T24:00:00Z',
    '2020-02-29T12:00:00',
    '2020-02-29 12:00:00Z',
    '2020-02-29T12:00:00.Z',
    '2020-02-29T12:00:00+24:00',
    1_582_977_600_000 as unknown as string,
  ])('makes track() throw if it is %o', async (timestamp) => {
    const batch = batchOf();
    expect(() => {
      batch.track('a', 'u', {}, { timestamp });
    }).toThrow(/timestamp/);
    await expect(client.events.track('a', 'u', {}, { timestamp })).rejects.toThrow(/timestamp/);
    await batch.flush();
    expect(service.received).toHaveLength(0);
  });

  it('is that of track() in a batch, however late the event is sent', async () => {
    vi.setSystemTime('2026-11-26T09:00:00.250Z');
    const batch = batchOf();
    service.script = Array<Step>(100).fill('drop the connection');
    track(batch, 'a');
    await vi.advanceTimersByTimeAsync(2 * 3_600_000);
    service.script = [];
    await batch.flush();
    expect(service.queue).toEqual([
      { external_user_id: 'usr_42', name: 'a', timestamp: '2026-11-26T09:00:00.250Z' },
    ]);
  });

  it('is left to the service if timestamp is null, and for a single event', async () => {
    const batch = batchOf();
    batch.track('a', 'u', {}, { timestamp: null });
    await batch.flush();
    await client.events.track('b', 'u');
    expect(service.queue.map(({ timestamp }) => timestamp)).toEqual([undefined, undefined]);
  });

  it('is part of a rejected event, so that it can be tracked again', async () => {
    const given: TrackedEvent[] = [];
    const batch = batchOf({ onRejected: (events) => given.push(...events) });
    batch.track(FakeService.BAD, 'u', {}, { timestamp: '2020-02-29T12:00:00Z' });
    await batch.flush();
    expect(given).toEqual([
      { name: FakeService.BAD, userId: 'u', properties: {}, timestamp: '2020-02-29T12:00:00Z' },
    ]);
  });
});

describe('a 413', () => {
  it.each([
    ['the service', refusal(413, 'payload_too_large')],
    ['API Gateway', { status: 413, body: '{"message":"Request Too Long"}' }],
    ['a proxy', proxy(413)],
  ])('of %s splits the buffer until its parts fit', async (_, tooLarge) => {
    Object.assign(service, { maxBodyBytes: 300, tooLarge });
    const onRejected = vi.fn();
    const batch = batchOf({ onRejected });
    const names = Array.from({ length: 11 }, (_, i) => `event ${i}`);
    for (const name of names) batch.track(name, 'usr_42', {}, { timestamp: null });
    await batch.flush();
    expect(service.names()).toEqual(names);
    expect(sizes()).toEqual([11, 6, 3, 3, 5, 3, 2]);
    expect(new Set(service.sentKeys()).size).toBe(7);
    expect(onRejected).not.toHaveBeenCalled();
  });

  it('rejects a single event that does not fit, and no other', async () => {
    Object.assign(service, { maxBodyBytes: 300 });
    const given: string[] = [];
    const batch = batchOf({
      onRejected: (events, error) => given.push(...events.map(({ name }) => name), error.code),
    });
    track(batch, 'a', 'b');
    batch.track('big', 'u', { text: 'x'.repeat(300) });
    track(batch, 'c');
    await batch.flush();
    expect(given).toEqual(['big', 'payload_too_large']);
    expect(service.names()).toEqual(['a', 'b', 'c']);
  });

  it('splits a buffer in the background, and every flush() that waits for it waits for all parts', async () => {
    Object.assign(service, { maxBodyBytes: 200 });
    const batch = batchOf({ maxSize: 4 });
    track(batch, 'a', 'b', 'c', 'd');
    const flushed = batch.flush();
    track(batch, 'e');
    await Promise.all([flushed, batch.flush()]);
    expect(service.names()).toEqual(['a', 'b', 'c', 'd', 'e']);
  });

  it('keeps the keys of the parts if a part fails', async () => {
    Object.assign(service, { maxBodyBytes: 150 });
    const batch = batchOf();
    track(batch, 'a', 'b');
    service.script = ['accept', 'accept', 'accept, then drop the connection'];
    await rejection(batch.flush(), NetworkError);
    await batch.flush();
    expect(service.names()).toEqual(['a', 'b']);
    const keys = service.sentKeys();
    expect(keys[3]).toBe(keys[2]);
  });
});

describe('a runtime without CompressionStream', () => {
  it('sends no body whose escaped text exceeds Lambda’s 6 MB', async () => {
    vi.stubGlobal('CompressionStream', undefined);
    const batch = batchOf({ maxSize: 500 });
    for (let i = 0; i < 90; i++) batch.track('a', 'u', { quotes: '"'.repeat(50_000) });
    await batch.flush();
    expect(service.queue).toHaveLength(90);
    for (const { body, headers } of service.received) {
      expect(headers).not.toHaveProperty('content-encoding');
      expect(Buffer.byteLength(JSON.stringify(body))).toBeLessThan(6_291_456 - 100_000);
    }
    expect(() => {
      batch.track('a', 'u', { quotes: '"'.repeat(2_000_000) });
    }).toThrow(expect.objectContaining({ code: 'event_too_large' }));
  });
});

describe('a quiet process', () => {
  it('sends by itself once an outage is over', async () => {
    const onError = vi.fn();
    const batch = batchOf({ onError });
    service.script = Array<Step>(4).fill(DOWN);
    track(batch, 'a');
    await vi.advanceTimersByTimeAsync(3_600_000);
    expect(service.names()).toEqual(['a']);
    expect(new Set(service.sentKeys()).size).toBe(1);
    expect(onError).toHaveBeenCalledTimes(4);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('waits for 1 s, 2 s, 4 s … 60 s between rounds, and begins again after a success', async () => {
    const batch = batchOf({ maxSize: 1 });
    service.script = [...Array<Step>(9).fill(DOWN), 'accept', DOWN, DOWN];
    track(batch, 'a');
    await vi.advanceTimersByTimeAsync(3_600_000);
    track(batch, 'b');
    await vi.advanceTimersByTimeAsync(3_600_000);
    const times = service.received.map(({ at }) => at);
    const waits = times.slice(1).map((at, i) => (at - (times[i] ?? NaN)) / 1_000);
    expect(waits.slice(0, 9)).toEqual([1, 2, 4, 8, 16, 32, 60, 60, 60]);
    expect(waits.slice(10)).toEqual([1, 2]);
  });

  it('spreads the rounds of clients that failed together', async () => {
    vi.spyOn(Math, 'random').mockReturnValue(0);
    const batch = batchOf({ maxSize: 1 });
    service.script = [DOWN, DOWN];
    track(batch, 'a');
    await vi.advanceTimersByTimeAsync(3_600_000);
    const [one, two, three] = service.received.map(({ at }) => at);
    expect([(two ?? 0) - (one ?? 0), (three ?? 0) - (two ?? 0)]).toEqual([500, 1_000]);
  });

  it('backs off although every response has a short Retry-After', async () => {
    const batch = batchOf({ maxSize: 1 });
    const busy = refusal(503, 'service_unavailable', { headers: { 'Retry-After': '1' } });
    service.script = Array<Step>(9).fill(busy);
    track(batch, 'a');
    await vi.advanceTimersByTimeAsync(3_600_000);
    const times = service.received.map(({ at }) => at);
    const waits = times.slice(1).map((at, i) => (at - (times[i] ?? NaN)) / 1_000);
    expect(waits).toEqual([2, 2, 4, 8, 16, 32, 60, 60, 60]);
  });

  it('waits for a Retry-After of more than a minute', async () => {
    const batch = batchOf({ maxSize: 1 });
    service.script = [refusal(429, 'rate_limited', { headers: { 'Retry-After': '90' } })];
    track(batch, 'a');
    await vi.advanceTimersByTimeAsync(89_999);
    expect(service.received).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(1_001);
    expect(service.names()).toEqual(['a']);
  });

  it('does not send more often because more events are tracked, but does for a flush()', async () => {
    const batch = batchOf({ maxSize: 1, maxAgeMs: 10 });
    service.script = Array<Step>(7).fill(DOWN);
    track(batch, 'a');
    await vi.advanceTimersByTimeAsync(40_000);
    const before = service.received.length;
    track(batch, 'b', 'c', 'd');
    await vi.advanceTimersByTimeAsync(1_000);
    expect(service.received).toHaveLength(before);
    service.script = [];
    await batch.flush();
    expect(service.names()).toEqual(['a', 'b', 'c', 'd']);
  });
});

describe('flush() with a deadline', () => {
  it('ends after timeoutMs, and leaves the events queued', async () => {
    const batch = batchOf({ maxSize: 1 });
    service.script = ['hang'];
    track(batch, 'a', 'b');
    const start = Date.now();
    const failed = rejection(batch.flush({ timeoutMs: 300 }), NetworkError);
    await vi.advanceTimersByTimeAsync(300);
    expect(await failed).toMatchObject({ code: 'timeout', status: 0 });
    expect(Date.now() - start).toBe(300);
    const flushed = batch.flush();
    await vi.runAllTimersAsync();
    await flushed;
    expect(service.names()).toEqual(['a', 'b']);
  });

  it('ends when its signal is aborted, with the reason', async () => {
    const batch = batchOf();
    service.script = ['hang'];
    track(batch, 'a');
    const controller = new AbortController();
    const failed = batch.flush({ signal: controller.signal }).catch((error: unknown) => error);
    await vi.advanceTimersByTimeAsync(10);
    const reason = new Error('shutting down');
    controller.abort(reason);
    expect(await failed).toBe(reason);
    expect(await batch.flush({ signal: controller.signal }).catch((error: unknown) => error)).toBe(reason);
    await vi.runAllTimersAsync();
    expect(service.names()).toEqual(['a']);
  });

  it('leaves no timer behind, and rejects an invalid timeoutMs', async () => {
    const batch = batchOf();
    track(batch, 'a');
    await batch.flush({ timeoutMs: 60_000, signal: new AbortController().signal });
    expect(vi.getTimerCount()).toBe(0);
    await expect(batch.flush({ timeoutMs: -1 })).rejects.toThrow('timeoutMs');
  });

  it('no longer counts as waiting once it has ended', async () => {
    const onError = vi.fn();
    const batch = batchOf({ maxSize: 1, onError });
    service.script = ['accept', 'hang'];
    track(batch, FakeService.BAD, 'b');
    const ended = rejection(batch.flush({ timeoutMs: 300 }), NetworkError);
    await vi.advanceTimersByTimeAsync(300);
    await ended;
    // The attempt fails later, and is then sent again.
    await vi.advanceTimersByTimeAsync(20_000);
    expect(service.names()).toEqual(['b']);
    expect(onError).toHaveBeenCalledExactlyOnceWith(expect.objectContaining({ code: 'timeout' }));
    expect((await rejection(batch.flush(), ValidationError)).events).toMatchObject([{ name: FakeService.BAD }]);
  });

  it('hides no failure of another flush() that ends with the same first failure', async () => {
    client = new VibeFollow({
      apiKey: KEY,
      maxRetries: 0,
      fetchImpl: async (...args) => {
        await new Promise((resolve) => setTimeout(resolve, 100));
        return service.fetch(...args);
      },
    });
    const batch = batchOf({ maxSize: 1 });
    for (const id of ['1', '2', '3']) batch.track(FakeService.BAD, id);
    const first = rejection(batch.flush(), ValidationError);
    const ended = rejection(batch.flush({ timeoutMs: 150 }), NetworkError);
    await vi.advanceTimersByTimeAsync(210);
    await ended;
    const second = rejection(batch.flush(), ValidationError);
    await vi.advanceTimersByTimeAsync(100);
    const ids = (error: VibeFollowError) =>
      [error, ...(error.suppressed ?? [])].map(({ events }) => events?.[0]?.userId).sort();
    expect(ids(await first)).toEqual(['1', '2', '3']);
    await second;
  });

  it('keeps a rejection that it can no longer report for the next flush()', async () => {
    const batch = batchOf({ maxSize: 1, maxQueue: 2 });
    service.script = ['accept', 'hang'];
    track(batch, FakeService.BAD, 'b');
    const failed = rejection(batch.flush({ timeoutMs: 300 }), NetworkError);
    await vi.advanceTimersByTimeAsync(300);
    await failed;
    expect(() => {
      track(batch, 'c');
    }).toThrow('maxQueue');
    const next = rejection(batch.flush(), ValidationError);
    await vi.runAllTimersAsync();
    expect((await next).events).toMatchObject([{ name: FakeService.BAD }]);
    await batch.flush();
    expect(service.names()).toEqual(['b']);
  });
});

describe('Retry-After', () => {
  it.each([
    ['1.5', 1_500],
    [' 2 ', 2_000],
    ['0.001', 1],
    [new Date(Date.UTC(2026, 10, 26, 9, 0, 7)).toUTCString(), 7_000],
    [new Date(Date.UTC(2026, 10, 26, 8)).toUTCString(), 0],
    ['-3', undefined],
    ['1.5.1', undefined],
    ['soon', undefined],
    ['May 2001', undefined],
    ['', undefined],
  ])('%o is read as %o ms', async (value, retryAfterMs) => {
    vi.setSystemTime('2026-11-26T09:00:00Z');
    service.script = [refusal(429, 'rate_limited', { headers: { 'Retry-After': value } })];
    expect(await rejection(client.events.track('a', 'u'), VibeFollowError)).toMatchObject({ retryAfterMs });
  });
});

describe('a single event', () => {
  it('is sent with the idempotencyKey that it is given', async () => {
    service.script = ['accept, then drop the connection'];
    const send = () => client.events.track('paid', 'u', { order: 7 }, { idempotencyKey: 'order-7' });
    await rejection(send(), NetworkError);
    await send();
    expect(service.sentKeys()).toEqual(['order-7', 'order-7']);
    expect(service.names()).toEqual(['paid']);
  });

  it.each(['', 'a b', 'é', 'x'.repeat(256), 'a\n', 7 as unknown as string])(
    'is not sent with the invalid idempotencyKey %o',
    async (idempotencyKey) => {
      await expect(client.events.track('a', 'u', {}, { idempotencyKey })).rejects.toThrow('idempotencyKey');
      expect(service.received).toHaveLength(0);
    },
  );
});
