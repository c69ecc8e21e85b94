/// <reference lib="esnext.disposable" preserve="true" />
import { attach, isRejection, VibeFollowError } from './errors.js';
import { fromJson, toJson, type Properties, type TrackedEvent } from './event.js';
import { MAX_TIMER_MS, wholeNumber } from './options.js';
import type { Transport } from './transport.js';

const MAX_EVENTS = 500;
const MAX_BODY_BYTES = 5 * 1024 * 1024;
/** Bytes of a body without events. Each event counts with a comma, so the last comma is subtracted. */
const EMPTY_BODY_BYTES = '{"events":[]}'.length - 1;
const utf8 = new TextEncoder();

export interface BatchOptions {
  /** A buffer is sent when it has this many events, 1 to 500. Default 100. */
  readonly maxSize?: number | undefined;
  /** A buffer is sent this many milliseconds after its first event. Default 5,000. */
  readonly maxAgeMs?: number | undefined;
  /** `track()` throws if this many events are queued: neither accepted nor reported. Default 100,000. */
  readonly maxQueue?: number | undefined;
  /** The same limit in bytes of JSON text. Default 128 MiB. */
  readonly maxQueueBytes?: number | undefined;
  /**
   * Receives the events of a buffer that the service rejected, and the error. `flush()` then does
   * not throw for them. The batch waits for the promise that it returns, so it must not wait for a
   * `flush()` of the same batch. If it fails, `flush()` throws.
   */
  readonly onRejected?:
    | ((events: readonly TrackedEvent[], error: VibeFollowError) => unknown)
    | undefined;
  /** Receives every failure that no `flush()` was waiting for. */
  readonly onError?: ((error: VibeFollowError) => unknown) | undefined;
}

/** The events of one request. A sealed buffer never changes, because its key belongs to its bytes. */
interface EventBuffer {
  readonly key: string;
  readonly events: string[];
  bytes: number;
}

/** A `flush()` that waits until the first `upTo` buffers are accepted or rejected. */
interface Flush {
  readonly upTo: number;
  readonly failures: VibeFollowError[];
  readonly resolve: () => void;
  readonly reject: (error: VibeFollowError) => void;
}

/** Collects events and sends them in batches. Each event is accepted once, or reported. */
export class EventBatch implements AsyncDisposable {
  readonly #transport: Transport;
  readonly #maxSize: number;
  readonly #maxAgeMs: number;
  readonly #maxQueue: number;
  readonly #maxQueueBytes: number;
  readonly #onRejected: BatchOptions['onRejected'];
  readonly #onError: BatchOptions['onError'];

  /** The buffer that is being filled. */
  #open: EventBuffer | undefined;
  #ageTimer: ReturnType<typeof setTimeout> | undefined;
  /** Sealed buffers in order. The first one is in flight, or its last attempt failed. */
  readonly #sealed: EventBuffer[] = [];
  #sealedCount = 0;
  #sending = false;
  #flushes: readonly Flush[] = [];
  /** Rejections that no `flush()` has thrown yet. */
  #unreported: { readonly error: VibeFollowError; readonly buffer: EventBuffer }[] = [];
  #queuedEvents = 0;
  #queuedBytes = 0;

  /** @internal Use `events.batch()`. */
  constructor(transport: Transport, options: BatchOptions) {
    this.#transport = transport;
    this.#maxSize = wholeNumber('maxSize', options.maxSize ?? 100, 1, MAX_EVENTS);
    this.#maxAgeMs = wholeNumber('maxAgeMs', options.maxAgeMs ?? 5_000, 0, MAX_TIMER_MS);
    const most = Number.MAX_SAFE_INTEGER;
    this.#maxQueue = wholeNumber('maxQueue', options.maxQueue ?? 100_000, 1, most);
    const bytes = options.maxQueueBytes ?? 128 * 1024 * 1024;
    this.#maxQueueBytes = wholeNumber('maxQueueBytes', bytes, 1, most);
    this.#onRejected = options.onRejected;
    this.#onError = options.onError;
  }

  /**
   * Queues an event with a snapshot of its properties. Throws only if the properties cannot be
   * serialized to JSON, if the event does not fit into a request, or if the queue is full.
   */
  track(name: string, userId: string, properties?: Properties | null): void {
    const json = toJson(name, userId, properties);
    const bytes = utf8.encode(json).length + 1;
    this.#makeRoom(bytes);

    this.#open ??= this.#begin();
    this.#open.events.push(json);
    this.#open.bytes += bytes;
    this.#queuedEvents += 1;
    this.#queuedBytes += bytes;
    if (this.#open.events.length >= this.#maxSize) this.#send();
  }

  /**
   * Sends the queued events, and resolves once every event tracked before is accepted or was passed
   * to `onRejected`. Otherwise it throws. Rejected events are in `error.events`. Events that failed
   * for another reason stay queued, and the next `flush()` sends them again with the same key.
   */
  async flush(): Promise<void> {
    this.#seal();
    const failures = this.#unreported.splice(0).map(({ error, buffer }) => {
      this.#uncountQueued(buffer);
      return error;
    });
    await new Promise<void>((resolve, reject) => {
      const flush = { upTo: this.#sealedCount, failures, resolve, reject };
      this.#flushes = [...this.#flushes, flush];
      this.#endFlushes();
      this.#send();
    });
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.flush();
  }

  /** Ensures that an event of this size fits into the queue and the open buffer. */
  #makeRoom(bytes: number): void {
    if (EMPTY_BODY_BYTES + bytes > MAX_BODY_BYTES) {
      throw refused('event_too_large', `the event does not fit into a request of ${MAX_BODY_BYTES} bytes`);
    }
    if (this.#queuedEvents >= this.#maxQueue) {
      throw full(`${this.#queuedEvents} events`, 'maxQueue');
    }
    if (this.#queuedBytes + bytes > this.#maxQueueBytes) {
      throw full(`${this.#queuedBytes} bytes`, 'maxQueueBytes');
    }
    if (this.#open && this.#open.bytes + bytes > MAX_BODY_BYTES) this.#send();
  }

  #begin(): EventBuffer {
    this.#ageTimer = setTimeout(() => {
      this.#send();
    }, this.#maxAgeMs);
    // An idle batch must not keep the process alive. In browsers, timers are numbers without unref().
    (this.#ageTimer as { unref?: () => void }).unref?.();
    return { key: crypto.randomUUID(), events: [], bytes: EMPTY_BODY_BYTES };
  }

  #seal(): void {
    if (!this.#open) return;
    clearTimeout(this.#ageTimer);
    this.#sealed.push(this.#open);
    this.#sealedCount += 1;
    this.#open = undefined;
  }

  /** Seals the open buffer, and starts sending unless a send is running. */
  #send(): void {
    this.#seal();
    if (!this.#sending) void this.#sendAll();
  }

  /** Sends one buffer after another until none is left or one cannot be sent now. */
  async #sendAll(): Promise<void> {
    this.#sending = true;
    // Let the caller reach its flush() first, so that this round counts for that flush().
    await Promise.resolve();
    for (let buffer = this.#sealed[0]; buffer; buffer = this.#sealed[0]) {
      const waiting = this.#flushes;
      const error = await this.#post(buffer);
      if (error && !isRejection(error)) {
        if (waiting.length === 0) this.#report(error);
        for (const flush of waiting) end(flush, error);
        this.#flushes = this.#flushes.filter((flush) => !waiting.includes(flush));
        // A flush() that was called meanwhile gets its own round of attempts.
        if (this.#flushes.length === 0) break;
        continue;
      }
      if (error) await this.#reject(buffer, error, waiting.length === 0);
      else this.#uncountQueued(buffer);
      this.#sealed.shift();
      this.#endFlushes();
    }
    this.#sending = false;
  }

  async #post(buffer: EventBuffer): Promise<VibeFollowError | undefined> {
    try {
      const body = `{"events":[${buffer.events.join(',')}]}`;
      await this.#transport.post('/api/v1/events/batch', body, buffer.key);
      return undefined;
    } catch (error) {
      return error as VibeFollowError;
    }
  }

  /** Reports a rejected buffer to `onRejected` or, without it, to a `flush()`. */
  async #reject(buffer: EventBuffer, error: VibeFollowError, unseen: boolean): Promise<void> {
    const events = buffer.events.map(fromJson);
    attach(error, 'events', events);
    if (this.#onRejected) {
      // Make room first, so that the callback can track the valid events again.
      this.#uncountQueued(buffer);
      try {
        await this.#onRejected(events, error);
        return;
      } catch (thrown) {
        this.#countQueued(buffer);
        attach(error, 'cause', thrown);
      }
    }
    if (unseen) this.#report(error);
    if (this.#flushes.length === 0) {
      this.#unreported.push({ error, buffer });
    } else {
      this.#uncountQueued(buffer);
      for (const flush of this.#flushes) flush.failures.push(error);
    }
  }

  /** Ends every `flush()` whose buffers are all accepted or rejected. */
  #endFlushes(): void {
    const finished = this.#sealedCount - this.#sealed.length;
    const done = this.#flushes.filter(({ upTo }) => upTo <= finished);
    this.#flushes = this.#flushes.filter(({ upTo }) => upTo > finished);
    for (const flush of done) end(flush);
  }

  #countQueued(buffer: EventBuffer): void {
    this.#queuedEvents += buffer.events.length;
    this.#queuedBytes += buffer.bytes - EMPTY_BODY_BYTES;
  }

  #uncountQueued(buffer: EventBuffer): void {
    this.#queuedEvents -= buffer.events.length;
    this.#queuedBytes -= buffer.bytes - EMPTY_BODY_BYTES;
  }

  /** Calls `onError` and ignores its failures, because `flush()` reports the error as well. */
  #report(error: VibeFollowError): void {
    new Promise((resolve) => {
      resolve(this.#onError?.(error));
    }).catch(() => undefined);
  }
}

/** Resolves a `flush()`, or rejects it with the first error, which has the others in `suppressed`. */
function end(flush: Flush, last?: VibeFollowError): void {
  const [first, ...rest] = last ? [...flush.failures, last] : flush.failures;
  if (!first) {
    flush.resolve();
    return;
  }
  if (rest.length > 0) attach(first, 'suppressed', rest);
  flush.reject(first);
}

function full(queued: string, option: string): VibeFollowError {
  const what = `the queue is full: ${queued} are not yet accepted or reported`;
  return refused('queue_full', `${what}; await flush() more often, or raise ${option}`);
}

function refused(code: string, message: string): VibeFollowError {
  return new VibeFollowError(message, { status: 0, code });
}
