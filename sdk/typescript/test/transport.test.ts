import { inspect } from 'node:util';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import {
  AuthError,
  NetworkError,
  RateLimitError,
  ServerError,
  ValidationError,
  VibeFollow,
  VibeFollowError,
  type VibeFollowOptions,
} from '@vibefollow/sdk';
import { FakeService, KEY, refusal, rejection, type Step } from './service.js';

let service: FakeService;

beforeEach(() => {
  vi.useFakeTimers();
  service = new FakeService();
});

afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
});

function client(options: Partial<VibeFollowOptions> = {}): VibeFollow {
  return new VibeFollow({ apiKey: KEY, fetchImpl: service.fetch, ...options });
}

/** Sends one event to a service with this script, and advances the clock until the call has ended. */
async function send(script: Step[], options: Partial<VibeFollowOptions> = {}): Promise<unknown> {
  service.script = script;
  const outcome = client(options)
    .events.track('signed_up', 'usr_42', { plan: 'trial' })
    .catch((error: unknown) => error);
  await vi.runAllTimersAsync();
  return outcome;
}

/** The times between consecutive attempts. */
function waits(): number[] {
  const times = service.received.map(({ at }) => at);
  return times.slice(1).map((at, i) => at - (times[i] ?? NaN));
}

const BUSY = refusal(503, 'service_unavailable');

describe('track()', () => {
  it('sends the event as docs/contract.md requires', async () => {
    expect(await send([])).toBeUndefined();
    const [request] = service.received;
    expect(request?.path).toBe('/api/v1/events');
    expect(request?.headers).toMatchObject({
      authorization: `Bearer ${KEY}`,
      'content-type': 'application/json',
    });
    expect(request?.headers).not.toHaveProperty('content-encoding');
    expect(JSON.parse(request?.body ?? '')).toEqual({
      external_user_id: 'usr_42',
      name: 'signed_up',
      properties: { plan: 'trial' },
    });
  });

  it('omits properties if there are none', async () => {
    await client().events.track('signed_up', 'usr_42');
    expect(service.queue).toEqual([{ external_user_id: 'usr_42', name: 'signed_up' }]);
  });

  it('creates a key for each call, and keeps it for the retries', async () => {
    await send([BUSY, BUSY]);
    await send([BUSY]);
    const [a, b, c, d, e] = service.sentKeys();
    expect([b, c]).toEqual([a, a]);
    expect(e).toBe(d);
    expect(d).not.toBe(a);
    expect(service.queue).toHaveLength(2);
  });

  it('keeps the path of baseUrl', async () => {
    await send([], { baseUrl: 'http://localhost:4566/stage/' });
    expect(service.received[0]?.path).toBe('/stage/api/v1/events');
  });

  it('throws if properties are not JSON, and sends nothing', async () => {
    const error = await rejection(client().events.track('a', 'u', { n: 1n }), TypeError);
    expect(error.message).toContain('properties');
    expect(service.received).toHaveLength(0);
  });
});

describe('retries', () => {
  it.each([200, 408, 409, 425, 500, 502, 503, 504])('happen after a %i', async (status) => {
    expect(await send([refusal(status, 'x')])).toBeUndefined();
    expect(service.received).toHaveLength(2);
  });

  it('happen after a lost connection, a lost response and a timeout', async () => {
    expect(await send(['drop the connection', 'accept, then cut off the response'])).toBeUndefined();
    expect(await send(['hang', 'hang in the response'])).toBeUndefined();
    expect(service.received).toHaveLength(6);
    expect(service.queue).toHaveLength(2);
  });

  it.each([400, 401, 403, 404, 405, 413, 415, 422, 301, 302, 304, 307])(
    'do not happen after a %i',
    async (status) => {
      expect(await send([refusal(status, 'x')])).toMatchObject({ status });
      expect(service.received).toHaveLength(1);
    },
  );

  it('are two by default, and maxRetries if it is set', async () => {
    expect(await send([BUSY, BUSY, BUSY])).toBeInstanceOf(ServerError);
    expect(service.received).toHaveLength(3);
    expect(await send([BUSY], { maxRetries: 0 })).toBeInstanceOf(ServerError);
    expect(service.received).toHaveLength(4);
    expect(await send(Array<Step>(10).fill(BUSY), { maxRetries: 10 })).toBeUndefined();
    expect(service.received).toHaveLength(15);
  });

  it('back off exponentially from 500 ms to 8 s, with full jitter', async () => {
    const random = vi.spyOn(Math, 'random').mockReturnValue(1);
    await send(Array<Step>(6).fill(BUSY), { maxRetries: 6 });
    expect(waits()).toEqual([500, 1_000, 2_000, 4_000, 8_000, 8_000]);

    service.received.length = 0;
    random.mockReturnValueOnce(0).mockReturnValueOnce(0.25);
    await send([BUSY, BUSY]);
    expect(waits()).toEqual([0, 250]);
  });

  it('wait for Retry-After plus jitter', async () => {
    vi.spyOn(Math, 'random').mockReturnValue(0);
    const date = new Date(Date.now() + 27_000).toUTCString();
    await send([
      refusal(429, 'rate_limited', { headers: { 'Retry-After': '7' } }),
      refusal(503, 'request_in_progress', { headers: { 'Retry-After': '3' } }),
    ]);
    expect(waits()).toEqual([7_000, 3_000]);

    service.received.length = 0;
    vi.setSystemTime(new Date(date).getTime() - 17_000);
    vi.spyOn(Math, 'random').mockReturnValue(1);
    await send([refusal(429, 'rate_limited', { headers: { 'Retry-After': date } })]);
    expect(waits()).toEqual([17_500]);
  });

  it('back off after a 429 without Retry-After, as API Gateway sends it', async () => {
    vi.spyOn(Math, 'random').mockReturnValue(1);
    await send([{ status: 429, body: '{"message":"Too Many Requests"}' }]);
    expect(waits()).toEqual([500]);
  });

  it('do not happen after a 429 with a Retry-After of more than a minute', async () => {
    const error = await send([refusal(429, 'rate_limited', { headers: { 'Retry-After': '61' } })]);
    expect(error).toBeInstanceOf(RateLimitError);
    expect(error).toMatchObject({ retryAfterMs: 61_000 });
    expect(service.received).toHaveLength(1);
  });

  it('happen at most a minute after a 5xx, even if its Retry-After is longer', async () => {
    vi.spyOn(Math, 'random').mockReturnValue(0);
    await send([refusal(503, 'service_unavailable', { headers: { 'Retry-After': '120' } })]);
    expect(waits()).toEqual([60_000]);
  });
});

describe('timeouts', () => {
  it.each(['hang', 'hang in the response'] as const)('end an attempt if the server does this: %s', async (step) => {
    const sent = send([step], { maxRetries: 0, timeoutMs: 1_234 });
    const error = await sent;
    expect(error).toBeInstanceOf(NetworkError);
    expect(error).toMatchObject({ status: 0, code: 'timeout' });
    expect(String(error)).toContain('1234 ms');
  });

  it('end an attempt even if fetchImpl ignores the signal', async () => {
    let signal: AbortSignal | undefined;
    const error = await send([], {
      maxRetries: 0,
      fetchImpl: (_, request) => {
        signal = request.signal;
        return new Promise(() => undefined);
      },
    });
    expect(error).toMatchObject({ code: 'timeout' });
    expect(signal?.aborted).toBe(true);
  });

  it('are 10 s by default, and leave no timer behind', async () => {
    const start = Date.now();
    await send(['hang'], { maxRetries: 0 });
    expect(Date.now() - start).toBe(10_000);
    await client().events.track('a', 'u');
    expect(vi.getTimerCount()).toBe(0);
  });
});

describe('errors', () => {
  it.each([
    [400, VibeFollowError],
    [401, AuthError],
    [403, AuthError],
    [404, VibeFollowError],
    [409, ValidationError],
    [413, VibeFollowError],
    [422, ValidationError],
    [429, RateLimitError],
    [500, ServerError],
    [599, ServerError],
  ])('%i is a %o', async (status, type) => {
    const error = await send([refusal(status, 'some_code')], { maxRetries: 0 });
    expect((error as Error).constructor).toBe(type);
    expect((error as Error).name).toBe(type.name);
    expect(error).toMatchObject({ status, code: 'some_code' });
    expect(String(error)).toBe(`${type.name}: no: some_code (HTTP ${status}, some_code)`);
  });

  it('have all elements of errors, the first field, and the request id', async () => {
    const errors = [
      { code: 'validation_failed', message: 'is missing', field: 'events[3].name' },
      { code: 'validation_failed', message: 'is too long', field: 'events[4].name' },
    ];
    const headers = { 'x-request-id': 'abc=' };
    const error = await send([{ status: 422, headers, body: JSON.stringify({ errors }) }]);
    expect(error).toMatchObject({ field: 'events[3].name', errors, requestId: 'abc=' });
    expect(String(error)).toBe(
      'ValidationError: is missing (HTTP 422, validation_failed, events[3].name)',
    );
  });

  it.each([
    ['from API Gateway', '{"message":"Request Entity Too Large"}', 'Request Entity Too Large (HTTP 413)'],
    ['HTML', '<h1>413</h1>', 'the response did not come from the service (HTTP 413)'],
    ['empty', '', 'the response did not come from the service (HTTP 413)'],
    ['null', 'null', 'the response did not come from the service (HTTP 413)'],
    ['of another form', '{"errors":[null,1,{"code":2}],"message":7}', 'the response did not come from the service (HTTP 413)'],
  ])('have a clear message if the body is %s', async (_, body, message) => {
    const error = await send([{ status: 413, body }]);
    expect(error).toMatchObject({ status: 413, code: 'http_413', errors: [] });
    expect(String(error)).toContain(message);
  });

  it.each([
    [200, '<html>Please log in to the hotel wifi</html>'],
    [200, '{"data":{"accepted":false}}'],
    [202, ''],
    [302, '{"data":{"accepted":true}}'],
  ])('are thrown for a %i with the body %s', async (status, body) => {
    const error = await send([{ status, body }], { maxRetries: 0 });
    expect(error).toMatchObject({ status, code: 'unexpected_response' });
  });

  it('contain the reason of a network failure', async () => {
    const cause = new AggregateError([], '');
    Object.assign(cause, { code: 'ECONNREFUSED' });
    const error = await send([], {
      maxRetries: 0,
      fetchImpl: () => Promise.reject(new TypeError('fetch failed', { cause })),
    });
    expect(error).toBeInstanceOf(NetworkError);
    expect(error).toMatchObject({ status: 0, code: 'network_error' });
    expect(String(error)).toBe('NetworkError: the request failed: fetch failed: ECONNREFUSED');
  });

  it('are created from anything that a fetchImpl throws', async () => {
    const fetchImpl = (): never => {
      // eslint-disable-next-line @typescript-eslint/only-throw-error
      throw 'a string';
    };
    expect(String(await send([], { maxRetries: 0, fetchImpl }))).toContain('a string');
  });

  it('never show the API key, and neither does the client', async () => {
    const echo = refusal(400, KEY, { field: KEY, headers: {} });
    const errors = [
      await send([echo]),
      await send([], {
        maxRetries: 0,
        fetchImpl: () => Promise.reject(new Error(`bad header Bearer ${KEY}`, { cause: KEY })),
      }),
    ];
    const batch = client().events.batch();
    for (const value of [...errors, client(), client().events, batch]) {
      expect(inspect(value, { depth: 9, showHidden: true }) + JSON.stringify(value)).not.toContain(KEY);
    }
    expect(String(errors[0])).toContain('[API key]');
  });
});

describe('options', () => {
  const bad: [string, Record<string, unknown>][] = [
    ['apiKey', { apiKey: undefined }],
    ['apiKey', { apiKey: '' }],
    ['apiKey', { apiKey: `${KEY}\n` }],
    ['apiKey', { apiKey: 42 }],
    ['baseUrl', { baseUrl: 'api.vibefollow.com' }],
    ['baseUrl', { baseUrl: 'ftp://api.vibefollow.com' }],
    ['baseUrl', { baseUrl: 'https://me:secret@api.vibefollow.com' }],
    ['baseUrl', { baseUrl: 'https://api.vibefollow.com/?a=1' }],
    ['baseUrl', { baseUrl: 'https://api.vibefollow.com/?' }],
    ['timeoutMs', { timeoutMs: 0 }],
    ['timeoutMs', { timeoutMs: 2 ** 31 }],
    ['timeoutMs', { timeoutMs: '10' }],
    ['maxRetries', { maxRetries: -1 }],
    ['maxRetries', { maxRetries: 1.5 }],
    ['maxRetries', { maxRetries: Infinity }],
    ['fetchImpl', { fetchImpl: 'fetch' }],
  ];
  it.each(bad)('reject an invalid %s: %o', (name, options) => {
    const make = () => client(options);
    expect(make).toThrow(name);
    expect(make).not.toThrow(/secret|sk_test/);
  });

  it('require fetchImpl if the runtime has no fetch', () => {
    vi.stubGlobal('fetch', undefined);
    expect(() => new VibeFollow({ apiKey: KEY })).toThrow('fetchImpl');
    vi.unstubAllGlobals();
  });

  it('require a runtime with crypto.randomUUID', () => {
    vi.stubGlobal('crypto', {});
    expect(() => client({})).toThrow('crypto.randomUUID');
    vi.unstubAllGlobals();
  });

  it('have a default baseUrl', async () => {
    const urls: string[] = [];
    await client({
      fetchImpl: (url, request) => {
        urls.push(url);
        return service.fetch(url, request);
      },
    }).events.track('a', 'u');
    expect(urls).toEqual(['https://api.vibefollow.com/api/v1/events']);
  });
});
