import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { NetworkError, ServerError, ValidationError, VibeFollow, type BatchOptions, type EventBatch } from '@vibefollow/sdk';
import { FakeService, KEY, refusal, type Step } from './service.js';

// Runtimes that freeze a process when a call has ended.
const DOWN = refusal(503, 'service_unavailable');

let service: FakeService;

beforeEach(() => {
  vi.useFakeTimers();
  vi.spyOn(Math, 'random').mockReturnValue(1);
  service = new FakeService();
});

afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
});

function batchOf(options: BatchOptions = {}, maxRetries = 0): EventBatch {
  const client = new VibeFollow({ apiKey: KEY, fetchImpl: service.fetch, maxRetries, timeoutMs: 20_000 });
  return client.events.batch(options);
}

describe('withFlush()', () => {
  const context = (left: number) => ({ getRemainingTimeInMillis: () => left });

  it('ends a call only after its events are sent, and keeps the result and the arguments', async () => {
    const batch = batchOf();
    const handler = batch.withFlush((event: { user: string }, { memory }: { memory: number }) => {
      batch.track('called', event.user);
      return Promise.resolve({ memory });
    });
    expect(await handler({ user: 'usr_1' }, { memory: 128, ...context(3_000) })).toEqual({ memory: 128 });
    expect(service.queue).toMatchObject([{ name: 'called', external_user_id: 'usr_1' }]);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('flushes if the handler fails, and fails with the same error', async () => {
    const batch = batchOf();
    const bug = new Error('a bug in the handler');
    const handler = batch.withFlush(() => {
      batch.track('a', 'u');
      throw bug;
    });
    await expect(handler()).rejects.toBe(bug);
    expect(service.names()).toEqual(['a']);
  });

  it.each([
    [2_000, 1_500],
    [60_000, 10_000],
    [100, 0],
  ])('with %i ms left, waits for at most %i ms', async (left, most) => {
    const onError = vi.fn();
    const batch = batchOf({ onError });
    service.script = ['hang'];
    const start = Date.now();
    const handler = batch.withFlush((...args: unknown[]) => {
      batch.track('a', 'u');
      return args.length === 2 ? 'done' : 'other arguments';
    });
    const done = handler({}, context(left)).then((result) => [result, Date.now() - start]);
    await vi.advanceTimersByTimeAsync(most);
    expect(await done).toEqual(['done', most]);
    expect(onError).toHaveBeenCalledExactlyOnceWith(expect.any(NetworkError));

    // When the process continues, the attempt fails, and the event is sent again.
    await vi.advanceTimersByTimeAsync(40_000);
    expect(service.names()).toEqual(['a']);
  });

  it('passes failures to onError, and the next call sends the events', async () => {
    const onError = vi.fn();
    const batch = batchOf({ onError });
    service.script = [DOWN];
    const handler = batch.withFlush((name: string) => {
      batch.track(name, 'u');
    });
    await handler('a');
    expect(onError).toHaveBeenCalledExactlyOnceWith(expect.any(ServerError));
    await handler('b');
    expect(service.names()).toEqual(['a', 'b']);
    await handler(FakeService.BAD);
    expect(onError).toHaveBeenLastCalledWith(expect.any(ValidationError));
    expect(onError).toHaveBeenCalledTimes(2);
  });
});

describe('waitUntil', () => {
  it('gets a promise for each buffer, which is fulfilled when the buffer was sent', async () => {
    const promises: Promise<void>[] = [];
    const batch = batchOf({ maxAgeMs: 100, waitUntil: (promise) => promises.push(promise) });
    batch.track('a', 'u');
    batch.track('b', 'u');
    expect(promises).toHaveLength(1);
    const sent = promises[0]?.then(() => service.names());
    await vi.advanceTimersByTimeAsync(100);
    expect(await sent).toEqual(['a', 'b']);
    batch.track('c', 'u');
    await batch.flush();
    await Promise.all(promises);
    expect(promises).toHaveLength(2);
  });

  it('does not wait for longer than one round of attempts', async () => {
    const onError = vi.fn();
    const promises: Promise<void>[] = [];
    const batch = batchOf({ maxAgeMs: 0, onError, waitUntil: (promise) => promises.push(promise) }, 2);
    service.script = Array<Step>(1_000).fill(DOWN);
    batch.track('a', 'u');
    const done = promises[0]?.then(() => service.received.length);
    await vi.advanceTimersByTimeAsync(1_500);
    expect(await done).toBe(3);
    // In the pause after a failed round, a buffer is not sent at once.
    batch.track('b', 'u');
    await vi.advanceTimersByTimeAsync(0);
    await promises[1];
    expect(service.received).toHaveLength(3);
  });
});
