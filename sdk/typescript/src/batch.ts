/// <reference lib="esnext.disposable" preserve="true" />
import { attach, isRejection, VibeFollowError } from './errors.js';
import { fromJson, toJson, type Properties, type TrackedEvent } from './event.js';
import { MAX_TIMER_MS, wholeNumber } from './options.js';
import type { Transport } from './transport.js';

const MAX_EVENTS = 500;
const MAX_BODY_BYTES = 5 * 1024 * 1024;
/** A body's bytes beside its events, each of which is counted with a comma that the last lacks. */
const EMPTY_BODY_BYTES = '{"events":[]}'.length - 1;
const utf8 = new TextEncoder();

export interface BatchOptions {
  /** A buffer goes out when it holds this many events, 1 to 500. Default 100. */
  readonly maxSize?: number | undefined;
  /** A buffer goes out this long after its first event. Default 5,000. */
  readonly maxAgeMs?: number | undefined;
  /** `track()` throws beyond this many events not yet accepted or reported. Default 100,000. */
  readonly maxQueue?: number | undefined;
  /** The same in bytes of their JSON text. Default 128 MiB. */
  readonly maxQueueBytes?: number | undefined;
  /**
   * Gets the events of a buffer that the service refused for good, and why; `flush()` then does
   * not throw for them. A promise it returns is waited for, so it must not wait for a `flush()` of
   * the same batch. Should it fail, `flush()` throws after all.
   */
  readonly onRejected?:
    | ((events: readonly TrackedEvent[], error: VibeFollowError) => unknown)
    | undefined;
  /** Hears of every failure that no `flush()` was waiting for. */
  readonly onError?: ((error: VibeFollowError) => unknown) | undefined;
}

/** What is sent in one POST. Once sealed it never changes, since its key stands for its bytes. */
interface EventBuffer {
  readonly key: string;
  readonly events: string[];
  bytes: number;
}

/** A `flush()` that waits until the first `upTo` buffers are settled. */
interface Flush {
  readonly upTo: number;
  readonly failures: VibeFollowError[];
  readonly resolve: () => void;
  readonly reject: (error: VibeFollowError) => void;
}

/** Collects events and sends them many at a time, each accepted once or reported. */
export class EventBatch implements AsyncDisposable {
  readonly #transport: Transport;
  readonly #maxSize: number;
  readonly #maxAgeMs: number;
  readonly #maxQueue: number;
  readonly #maxQueueBytes: number;
  readonly #onRejected: BatchOptions['onRejected'];
  readonly #onError: BatchOptions['onError'];

  /** The buffer being filled. */
  #open: EventBuffer | undefined;
  #ageTimer: ReturnType<typeof setTimeout> | undefined;
  /** Sealed buffers in order, the first of which is being sent or was sent in vain. */
  readonly #sealed: EventBuffer[] = [];
  #sealedCount = 0;
  #sending = false;
  #flushes: readonly Flush[] = [];
  /** Rejections that no `flush()` was there to throw. */
  #unreported: { readonly error: VibeFollowError; readonly buffer: EventBuffer }[] = [];
  #heldEvents = 0;
  #heldBytes = 0;

  /** @internal Made by `events.batch()`. */
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
   * Takes an event, with its properties as they are now, to be sent later. Throws only where it
   * cannot take it: properties that are not JSON, an event too big for any request, a full queue.
   */
  track(name: string, userId: string, properties?: Properties | null): void {
    const json = toJson(name, userId, properties);
    const bytes = utf8.encode(json).length + 1;
    this.#makeRoom(bytes);

    this.#open ??= this.#begin();
    this.#open.events.push(json);
    this.#open.bytes += bytes;
    this.#heldEvents += 1;
    this.#heldBytes += bytes;
    if (this.#open.events.length >= this.#maxSize) this.#send();
  }

  /**
   * Sends what is left and resolves once everything tracked before is accepted (or was handed to
   * `onRejected`). Throws what stood in the way: events refused for good are on `error.events`;
   * what failed otherwise stays queued, and the next `flush()` sends it again under its key.
   */
  async flush(): Promise<void> {
    this.#seal();
    const failures = this.#unreported.splice(0).map(({ error, buffer }) => {
      this.#release(buffer);
      return error;
    });
    await new Promise<void>((resolve, reject) => {
      const flush = { upTo: this.#sealedCount, failures, resolve, reject };
      this.#flushes = [...this.#flushes, flush];
      this.#settle();
      this.#send();
    });
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.flush();
  }

  /** Makes sure that the open buffer can take an event of this size. */
  #makeRoom(bytes: number): void {
    if (EMPTY_BODY_BYTES + bytes > MAX_BODY_BYTES) {
      throw refused('event_too_large', `an event must fit a request of ${MAX_BODY_BYTES} bytes`);
    }
    if (this.#heldEvents >= this.#maxQueue) {
      throw full(`${this.#heldEvents} events`, 'maxQueue');
    }
    if (this.#heldBytes + bytes > this.#maxQueueBytes) {
      throw full(`${this.#heldBytes} bytes`, 'maxQueueBytes');
    }
    if (this.#open && this.#open.bytes + bytes > MAX_BODY_BYTES) this.#send();
  }

  #begin(): EventBuffer {
    this.#ageTimer = setTimeout(() => {
      this.#send();
    }, this.#maxAgeMs);
    // An idle batch must not keep a process alive. Browsers' timers are numbers and never do.
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

  /** Seals the open buffer and sees to it that everything sealed is sent. */
  #send(): void {
    this.#seal();
    if (!this.#sending) void this.#sendAll();
  }

  /** Sends one buffer after the other until none is left or one cannot be sent now. */
  async #sendAll(): Promise<void> {
    this.#sending = true;
    // Let a loop of track() and its flush() finish, so that this is that flush()'s own round.
    await Promise.resolve();
    for (let buffer = this.#sealed[0]; buffer; buffer = this.#sealed[0]) {
      const waiting = this.#flushes;
      const error = await this.#post(buffer);
      if (error && !isRejection(error)) {
        if (waiting.length === 0) this.#report(error);
        for (const flush of waiting) end(flush, error);
        this.#flushes = this.#flushes.filter((flush) => !waiting.includes(flush));
        // Whoever called flush() since gets a round of attempts of their own.
        if (this.#flushes.length === 0) break;
        continue;
      }
      if (error) await this.#reject(buffer, error, waiting.length === 0);
      else this.#release(buffer);
      this.#sealed.shift();
      this.#settle();
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

  /** Hands over what the service refused for good, to `onRejected` or else to a `flush()`. */
  async #reject(buffer: EventBuffer, error: VibeFollowError, unseen: boolean): Promise<void> {
    const events = buffer.events.map(fromJson);
    attach(error, 'events', events);
    if (this.#onRejected) {
      // Handed over, they make room: what is good among them may be tracked again.
      this.#release(buffer);
      try {
        await this.#onRejected(events, error);
        return;
      } catch (thrown) {
        this.#hold(buffer);
        attach(error, 'cause', thrown);
      }
    }
    if (unseen) this.#report(error);
    if (this.#flushes.length === 0) {
      this.#unreported.push({ error, buffer });
    } else {
      this.#release(buffer);
      for (const flush of this.#flushes) flush.failures.push(error);
    }
  }

  /** Ends every `flush()` that has nothing left to wait for. */
  #settle(): void {
    const settled = this.#sealedCount - this.#sealed.length;
    const done = this.#flushes.filter(({ upTo }) => upTo <= settled);
    this.#flushes = this.#flushes.filter(({ upTo }) => upTo > settled);
    for (const flush of done) end(flush);
  }

  #hold(buffer: EventBuffer): void {
    this.#heldEvents += buffer.events.length;
    this.#heldBytes += buffer.bytes - EMPTY_BODY_BYTES;
  }

  #release(buffer: EventBuffer): void {
    this.#heldEvents -= buffer.events.length;
    this.#heldBytes -= buffer.bytes - EMPTY_BODY_BYTES;
  }

  /** Tells `onError`, whose own failure has nowhere to go: `flush()` reports this error anyway. */
  #report(error: VibeFollowError): void {
    new Promise((resolve) => {
      resolve(this.#onError?.(error));
    }).catch(() => undefined);
  }
}

/** Resolves a `flush()`, or rejects it with one error that carries all there is to report. */
function end(flush: Flush, last?: VibeFollowError): void {
  const [first, ...rest] = last ? [...flush.failures, last] : flush.failures;
  if (!first) {
    flush.resolve();
    return;
  }
  if (rest.length > 0) attach(first, 'suppressed', rest);
  flush.reject(first);
}

function full(held: string, option: string): VibeFollowError {
  const what = `the queue is full: ${held} are not yet accepted or reported`;
  return refused('queue_full', `${what}; await flush() more often, or raise ${option}`);
}

function refused(code: string, message: string): VibeFollowError {
  return new VibeFollowError(message, { status: 0, code });
}
