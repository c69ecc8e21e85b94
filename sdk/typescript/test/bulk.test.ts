import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import {
  chunk,
  NetworkError,
  ValidationError,
  VibeFollow,
  VibeFollowError,
  type BatchOptions,
  type EventBatch,
  type EventInput,
} from '@vibefollow/sdk';
import { FakeService, KEY, refusal, rejection } from './service.js';

const { BAD } = FakeService;

let service: FakeService;
let client: VibeFollow;

beforeEach(() => {
  vi.useFakeTimers();
  service = new FakeService();
  client = new VibeFollow({ apiKey: KEY, fetchImpl: service.fetch, maxRetries: 0 });
});

afterEach(() => {
  vi.useRealTimers();
});

function named(...names: string[]): EventInput[] {
  return names.map((name) => ({ name, userId: 'usr_42' }));
}

function sizes(): number[] {
  return service.received.map(({ body }) => (JSON.parse(body) as { events: unknown[] }).events.length);
}

describe('bulk()', () => {
  it('sends the events as docs/contract.md requires, and returns the result', async () => {
    const events = [
      ...named('a', BAD, 'b', BAD),
      { name: 'c', userId: 'u', properties: { n: 1 }, timestamp: new Date(0) },
    ];
    expect(await client.events.bulk(events)).toEqual({
      accepted: 3,
      rejected: 2,
      errors: [
        { index: 1, code: 'validation', message: 'no: validation', field: 'name' },
        { index: 3, code: 'validation', message: 'no: validation', field: 'name' },
      ],
      received: 5,
    });
    expect(service.received[0]?.path).toBe('/api/v1/events/bulk');
    expect(service.queue.at(-1)).toEqual({
      external_user_id: 'u',
      name: 'c',
      properties: { n: 1 },
      timestamp: '1970-01-01T00:00:00.000Z',
    });
    expect(service.queue[0]).toEqual({ external_user_id: 'usr_42', name: 'a' });
  });

  it('sends nothing for no events', async () => {
    expect(await client.events.bulk([])).toEqual({ accepted: 0, rejected: 0, errors: [], received: 0 });
    expect(service.received).toHaveLength(0);
  });

  it('duplicates nothing if it is repeated with the same idempotencyKey', async () => {
    service.script = ['accept, then drop the connection'];
    const send = () => client.events.bulk(named('a', BAD), { idempotencyKey: 'import-7' });
    await rejection(send(), NetworkError);
    expect(await send()).toMatchObject({ accepted: 1, rejected: 1 });
    expect(service.names()).toEqual(['a']);
    await client.events.bulk(named('a'));
    expect(service.names()).toEqual(['a', 'a']);
  });

  it.each([
    ['{"data":{"accepted":true}}'],
    ['{"data":{"accepted":1,"rejected":0}}'],
    ['{"data":{"accepted":1,"rejected":0,"errors":[]}}'],
    ['{"data":{"accepted":1,"rejected":1,"errors":[]}}'],
    ['{"data":{"accepted":1,"rejected":1,"errors":[{"index":2,"code":"c","message":"m"}]}}'],
    ['{"data":{"accepted":1,"rejected":1,"errors":[{"index":0.5,"code":"c","message":"m"}]}}'],
    ['<html>'],
  ])('does not believe a 200 that does not account for every event: %s', async (body) => {
    service.script = [{ status: 200, body }];
    const error = await rejection(client.events.bulk(named('a', 'b')), VibeFollowError);
    expect(error).toMatchObject({ status: 200, code: 'unexpected_response' });
  });

  it('sends at most 1,000 events', async () => {
    const most = named(...Array<string>(1_000).fill('a'));
    await client.events.bulk(most);
    expect(service.queue).toHaveLength(1_000);
    await expect(client.events.bulk([...most, ...named('b')])).rejects.toThrow('chunk()');
  });

  it('sends a body that is too large in parts, whose results it combines', async () => {
    service.maxBodyBytes = 250;
    const events = [
      ...named('a', BAD, 'b', 'c'),
      { name: 'big', userId: 'u', properties: { t: 'x'.repeat(250) } },
      ...named(BAD),
    ];
    const send = () => client.events.bulk(events, { idempotencyKey: 'k' });
    service.script = ['accept', 'accept', 'accept, then drop the connection'];
    await rejection(send(), NetworkError);
    const result = await send();
    expect(result).toMatchObject({ accepted: 3, rejected: 3, received: 6 });
    expect(result.errors.map(({ index, code }) => [index, code])).toEqual([
      [1, 'validation'],
      [4, 'payload_too_large'],
      [5, 'validation'],
    ]);
    expect(service.names()).toEqual(['a', 'b', 'c']);
  });

  it('divides a body of more than 5 MB without sending it', async () => {
    const events = named(...Array<string>(6).fill('a')).map((event) => ({
      ...event,
      properties: { t: 'x'.repeat(999_000) },
    }));
    expect(await client.events.bulk(events)).toMatchObject({ accepted: 6 });
    expect(sizes()).toEqual([3, 3]);
  });
});

describe('chunk()', () => {
  it('divides events by number', () => {
    const events = named(...Array<string>(2_500).fill('a'));
    expect([...chunk(events)].map(({ length }) => length)).toEqual([1_000, 1_000, 500]);
    expect([...chunk(events, { maxSize: 999 })].flat()).toEqual(events);
    expect([...chunk([])]).toEqual([]);
    expect(() => [...chunk(events, { maxSize: 1_001 })]).toThrow('maxSize');
  });

  it('divides events by bytes, to the byte, and takes any iterable', () => {
    const shell = '{"events":[{"external_user_id":"u","name":"a","properties":{"t":""}}]}'.length;
    const each = (extra: number) => ({
      name: 'a',
      userId: 'u',
      properties: { t: 'x'.repeat((5_242_880 - shell - 71 + 11 + 2) / 2 - 36 + extra) },
    });
    const bytes = (events: EventInput[]) =>
      Buffer.byteLength(
        JSON.stringify({
          events: events.map(({ name, userId, properties }) => ({ external_user_id: userId, name, properties })),
        }),
      );
    let extra = 0;
    while (bytes([each(0), each(extra)]) < 5_242_880) extra += 1;
    expect([...chunk(new Set([each(0), each(extra)]))]).toHaveLength(1);
    expect([...chunk(new Set([each(0), each(extra + 1)]))]).toHaveLength(2);
  });
});

describe('a batch with partial', () => {
  const given: [string[], VibeFollowError][] = [];

  function batchOf(options: BatchOptions = {}): EventBatch {
    return client.events.batch({ partial: true, ...options });
  }

  beforeEach(() => {
    given.length = 0;
  });

  it('rejects only the invalid events', async () => {
    const batch = batchOf({
      maxSize: 4,
      onRejected: (events, error) => given.push([events.map(({ userId }) => userId), error]),
    });
    for (const [i, name] of ['a', BAD, 'b', BAD, 'c'].entries()) batch.track(name, `usr_${i}`);
    await batch.flush();
    expect(service.names()).toEqual(['a', 'b', 'c']);
    expect(given).toEqual([[['usr_1', 'usr_3'], expect.any(ValidationError)]]);
    const [, error] = given[0] ?? [];
    expect(error).toMatchObject({ status: 200, code: 'validation', field: 'events[0].name' });
    expect(error?.errors.map(({ field }) => field)).toEqual(['events[0].name', 'events[1].name']);
    expect(service.received.map(({ path }) => path)).toEqual(Array(2).fill('/api/v1/events/bulk'));
  });

  it('makes flush() throw with the invalid events if there is no onRejected, and frees the queue', async () => {
    const batch = batchOf({ maxQueue: 3 });
    for (const name of ['a', BAD, 'b']) batch.track(name, 'u');
    const error = await rejection(batch.flush(), ValidationError);
    expect(error.events).toMatchObject([{ name: BAD }]);
    for (const name of ['c', 'd', 'e']) batch.track(name, 'u');
    expect(() => {
      batch.track('f', 'u');
    }).toThrow('maxQueue');
    await batch.flush();
    expect(service.names()).toEqual(['a', 'b', 'c', 'd', 'e']);
  });

  it('takes 1,000 events, and only with partial', async () => {
    const batch = batchOf({ maxSize: 1_000 });
    for (let i = 0; i < 1_000; i++) batch.track('a', 'u');
    await batch.flush();
    expect(sizes()).toEqual([1_000]);
    expect(() => client.events.batch({ maxSize: 1_000 })).toThrow('maxSize');
  });

  it('keeps the events if the service has no bulk endpoint', async () => {
    const batch = batchOf();
    service.script = [refusal(404, 'not_found')];
    batch.track('a', 'u');
    await rejection(batch.flush(), VibeFollowError);
    await batch.flush();
    expect(service.names()).toEqual(['a']);
  });
});

describe('beforeSend', () => {
  const redacting = () =>
    new VibeFollow({
      apiKey: KEY,
      fetchImpl: service.fetch,
      beforeSend: (event) => {
        if (event.name === 'dropped') return null;
        return { ...event, properties: { ...event.properties, email: undefined } };
      },
    });

  it('changes or drops every event, however it is sent', async () => {
    const { events } = redacting();
    const batch = events.batch();
    batch.track('batched', 'u', { email: 'a@b.c', plan: 'trial' });
    batch.track('dropped', 'u');
    await batch.flush();
    await events.track('single', 'u', { email: 'a@b.c' });
    await events.track('dropped', 'u');
    const result = await events.bulk([
      ...named('dropped'),
      { name: 'bulk', userId: 'u', properties: { email: 'a@b.c' } },
      ...named('dropped', BAD),
    ]);
    expect(result).toMatchObject({ accepted: 1, rejected: 1, received: 2, errors: [{ index: 3 }] });
    expect(service.queue).toMatchObject([
      { name: 'batched', properties: { plan: 'trial' }, timestamp: expect.any(String) as string },
      { name: 'single', properties: {} },
      { name: 'bulk', properties: {} },
    ]);
    expect(service.received.map(({ body }) => body).join('')).not.toContain('a@b.c');
  });

  it('cannot change the objects of the caller', async () => {
    const properties = { list: ['a'] };
    const { events } = new VibeFollow({
      apiKey: KEY,
      fetchImpl: service.fetch,
      beforeSend: (event) => {
        (event.properties?.['list'] as string[]).push('b');
        return event;
      },
    });
    await events.track('a', 'u', properties);
    expect(properties).toEqual({ list: ['a'] });
    expect(service.queue[0]?.properties).toEqual({ list: ['a', 'b'] });
  });

  it.each([
    ['throws', () => { throw new RangeError('a bug'); }, 'a bug'],
    ['returns nothing', () => undefined, 'beforeSend'],
    ['is asynchronous', (event: unknown) => Promise.resolve(event), 'beforeSend'],
  ])('that %s sends nothing unredacted: the call throws', async (_, beforeSend, message) => {
    const { events } = new VibeFollow({
      apiKey: KEY,
      fetchImpl: service.fetch,
      beforeSend: beforeSend as unknown as () => null,
    });
    const batch = events.batch();
    expect(() => {
      batch.track('a', 'u');
    }).toThrow(message);
    await expect(events.track('a', 'u')).rejects.toThrow(message);
    await batch.flush();
    expect(service.received).toHaveLength(0);
  });
});
