/// <reference lib="esnext.disposable" preserve="true" />
import { bodyOf, EMPTY_BODY_BYTES, MAX_BODY_BYTES, sizeOf } from './body.js';
import { MAX_BULK_EVENTS } from './bulk.js';
import { BATCH, BULK, readAccepted, readBulk, type BulkResult } from './endpoints.js';
import { attach, NetworkError, ValidationError, VibeFollowError } from './errors.js';
import {
  fromJson,
  snapshot,
  type BeforeSend,
  type Catalog,
  type Properties,
  type TrackedEvent,
  type TrackOptions,
} from './event.js';
import { MAX_TIMER_MS, wholeNumber } from './options.js';
import { actionAfter, roundDelay, type Action } from './retry.js';
import { Spool, type SpoolFile } from './spool.js';
import { backgroundTimer, foregroundTimer } from './timer.js';
import type { Transport } from './transport.js';

const MAX_BATCH_EVENTS = 500;
/** `withFlush` ends this long before the deadline of Lambda. */
const LAMBDA_MARGIN_MS = 500;

export interface BatchOptions {
  /** A buffer is sent when it has this many events, 1 to 500, or to 1,000 with `partial`. Default 100. */
  readonly maxSize?: number | undefined;
  /** A buffer is sent this many milliseconds after its first event. Default 5,000. */
  readonly maxAgeMs?: number | undefined;
  /** `track()` throws if this many events are queued: neither accepted nor reported. Default 100,000. */
  readonly maxQueue?: number | undefined;
  /** The same limit in bytes of JSON text. Default 128 MiB. */
  readonly maxQueueBytes?: number | undefined;
  /** Sends to the bulk endpoint, so that an invalid event does not cause its buffer to be rejected. */
  readonly partial?: boolean | undefined;
  /**
   * A directory on a local disk (Node 20.16 or later). Events are written to it when they are tracked and
   * removed when they are accepted or reported, and it is read at the start. Only one process can use it.
   */
  readonly spool?: string | undefined;
  /**
   * Keeps the runtime from freezing, such as `(promise) => context.waitUntil(promise)`. Called when a
   * buffer begins, with a promise that is fulfilled when the buffer was sent or its retries ran out.
   */
  readonly waitUntil?: ((promise: Promise<void>) => void) | undefined;
  /**
   * Receives the events that the service rejected, and the error. `flush()` then does not throw for
   * them. The batch waits for the promise that it returns, so it must not wait for a `flush()` of the
   * same batch. If it fails, `flush()` throws.
   */
  readonly onRejected?:
    | ((events: readonly TrackedEvent[], error: VibeFollowError) => unknown)
    | undefined;
  /** Receives every failure that no `flush()` was waiting for. */
  readonly onError?: ((error: VibeFollowError) => unknown) | undefined;
}

export interface FlushOptions {
  /** The most milliseconds to wait, after which `flush()` throws a `NetworkError` with `code` `timeout`. */
  readonly timeoutMs?: number | undefined;
  /** Ends the wait when it is aborted. `flush()` then throws its reason. */
  readonly signal?: AbortSignal | undefined;
}

export interface WithFlushOptions {
  /** The most milliseconds to wait for `flush()`. Default 10,000. */
  readonly timeoutMs?: number | undefined;
}

/** The events of one request. A sealed buffer never changes, because its key belongs to its bytes. */
interface EventBuffer {
  /** Ascending. The parts of a buffer that was split have the number of the whole. */
  readonly number: number;
  readonly key: string;
  readonly path: string;
  readonly events: string[];
  bytes: number;
  file: SpoolFile | undefined;
}

/** Rejected events of a buffer, until they are reported. */
interface Rejection {
  readonly error: VibeFollowError;
  readonly events: number;
  readonly bytes: number;
  readonly file: SpoolFile | undefined;
  isReported: boolean;
}

/** A `flush()` that waits until all buffers up to a number are accepted or rejected. */
interface Flush {
  readonly upTo: number;
  readonly rejections: Rejection[];
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

/** A promise that was passed to `waitUntil`. */
interface Watch {
  readonly upTo: number;
  readonly end: () => void;
}

/** The result of one round of attempts. */
interface Outcome {
  readonly action: Action | 'done';
  readonly error?: VibeFollowError;
  /** The rejected events. */
  readonly rejected?: readonly string[];
}

/** Collects events and sends them in batches. Each event is accepted once, or reported. */
export class EventBatch<C extends object = Catalog> implements AsyncDisposable {
  readonly #transport: Transport;
  readonly #beforeSend: BeforeSend | undefined;
  readonly #maxSize: number;
  readonly #maxAgeMs: number;
  readonly #maxQueue: number;
  readonly #maxQueueBytes: number;
  readonly #path: string;
  readonly #waitUntil: BatchOptions['waitUntil'];
  readonly #onRejected: BatchOptions['onRejected'];
  readonly #onError: BatchOptions['onError'];
  readonly #spool: Spool | undefined;

  /** The buffer that is being filled. */
  #open: EventBuffer | undefined;
  #cancelAge = (): void => undefined;
  /** Sealed buffers in order. The first one is in flight, or its last attempt failed. */
  readonly #sealed: EventBuffer[] = [];
  #lastNumber = 0;
  #isSending = false;
  #isClosed = false;
  /** Whether another process may use the spool, so that nothing more must be sent. */
  #isReleased = false;
  /** Ends the pause after a failed round. Undefined if there is no pause. */
  #endPause: (() => void) | undefined;
  #failedRounds = 0;
  #flushes: readonly Flush[] = [];
  #watches: readonly Watch[] = [];
  /** Rejections that no `flush()` has thrown yet. */
  #unreported: Rejection[] = [];
  #queuedEvents = 0;
  #queuedBytes = 0;

  /** @internal Use `events.batch()`. */
  constructor(transport: Transport, beforeSend: BeforeSend | undefined, options: BatchOptions) {
    this.#transport = transport;
    this.#beforeSend = beforeSend;
    const maxSize = options.partial ? MAX_BULK_EVENTS : MAX_BATCH_EVENTS;
    this.#maxSize = wholeNumber('maxSize', options.maxSize ?? 100, 1, maxSize);
    this.#maxAgeMs = wholeNumber('maxAgeMs', options.maxAgeMs ?? 5_000, 0, MAX_TIMER_MS);
    const most = Number.MAX_SAFE_INTEGER;
    this.#maxQueue = wholeNumber('maxQueue', options.maxQueue ?? 100_000, 1, most);
    const bytes = options.maxQueueBytes ?? 128 * 1024 * 1024;
    this.#maxQueueBytes = wholeNumber('maxQueueBytes', bytes, 1, most);
    this.#path = options.partial ? BULK : BATCH;
    this.#waitUntil = options.waitUntil;
    this.#onRejected = options.onRejected;
    this.#onError = options.onError;
    if (options.spool !== undefined) {
      this.#spool = Spool.open(options.spool);
      this.#takeUp(this.#spool);
    }
  }

  /**
   * Queues an event with a snapshot of its properties. Throws only if the timestamp is invalid, if the
   * properties cannot be serialized to JSON, if the event does not fit into a request, if the queue is
   * full, if `beforeSend` throws, or if the spool cannot be written.
   */
  track<N extends keyof C & string>(
    name: N,
    userId: string,
    properties?: C[N] | null,
    { timestamp = new Date() }: TrackOptions = {},
  ): void {
    const json = snapshot({ name, userId, properties: properties as Properties, timestamp }, this.#beforeSend);
    if (json === undefined) return;
    if (this.#isClosed) throw closed();
    const bytes = sizeOf(json);
    this.#makeRoom(bytes);

    const open = (this.#open ??= this.#begin());
    if (this.#spool) {
      open.file ??= this.#spool.create(open.key, open.path);
      open.file.append(json);
    }
    open.events.push(json);
    open.bytes += bytes;
    this.#queuedEvents += 1;
    this.#queuedBytes += bytes;
    if (open.events.length >= this.#maxSize) this.#send();
  }

  /**
   * Sends the queued events, and resolves once every event tracked before is accepted or was passed
   * to `onRejected`. Otherwise it throws. Rejected events are in `error.events`. Events that failed
   * for another reason stay queued, and are sent again with the same key.
   */
  async flush({ timeoutMs, signal }: FlushOptions = {}): Promise<void> {
    if (timeoutMs !== undefined) wholeNumber('timeoutMs', timeoutMs, 0, MAX_TIMER_MS);
    signal?.throwIfAborted();
    if (this.#isReleased && this.#sealed.length > 0) throw closed();
    this.#seal();
    const unreported = this.#unreported.splice(0).filter(({ isReported }) => !isReported);
    let timer: ReturnType<typeof setTimeout> | undefined;
    let onAbort = (): void => undefined;
    try {
      await new Promise<void>((resolve, reject) => {
        const flush = { upTo: this.#lastNumber, rejections: unreported, resolve, reject };
        onAbort = () => {
          this.#giveUp(flush, signal?.reason);
        };
        signal?.addEventListener('abort', onAbort);
        if (timeoutMs !== undefined) {
          timer = setTimeout(() => {
            this.#giveUp(flush, new NetworkError(`flush() did not end within ${timeoutMs} ms`, 'timeout'));
          }, timeoutMs);
        }
        this.#flushes = [...this.#flushes, flush];
        this.#endFlushes();
        this.#resume();
      });
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener('abort', onAbort);
    }
  }

  /**
   * Wraps the handler of a runtime that freezes between calls, such as Lambda, so that each call ends
   * with a `flush()`. On Lambda, it ends half a second before the deadline of the call. A failure does
   * not fail the call: it goes to `onError`, and the events stay queued for the next call.
   */
  withFlush<A extends unknown[], R>(
    handler: (...args: A) => R | PromiseLike<R>,
    { timeoutMs = 10_000 }: WithFlushOptions = {},
  ): (...args: A) => Promise<R> {
    wholeNumber('timeoutMs', timeoutMs, 0, MAX_TIMER_MS);
    return async (...args) => {
      try {
        return await handler(...args);
      } finally {
        const context = args[1] as { getRemainingTimeInMillis?: () => number } | null | undefined;
        const left = (context?.getRemainingTimeInMillis?.() ?? Infinity) - LAMBDA_MARGIN_MS;
        await this.flush({ timeoutMs: Math.max(0, Math.min(timeoutMs, Math.floor(left))) }).catch(
          (error: unknown) => {
            this.#report(error as VibeFollowError);
          },
        );
      }
    };
  }

  /**
   * Flushes, after which `track()` throws. If the batch has a spool, `close()` then releases it, even if
   * `flush()` throws, and events that are still queued stay in it.
   */
  async close(options?: FlushOptions): Promise<void> {
    this.#isClosed = true;
    try {
      await this.flush(options);
    } finally {
      if (this.#spool) this.#release(this.#spool);
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #release(spool: Spool): void {
    this.#isReleased = true;
    this.#cancelPause();
    for (const flush of this.#flushes) this.#giveUp(flush, closed());
    spool.close();
  }

  /** Queues the buffers that an earlier process left in the spool, and starts sending them. */
  #takeUp(spool: Spool): void {
    const { buffers, problems } = spool.read();
    // Later, so that `onError` can use the batch.
    queueMicrotask(() => {
      for (const message of problems) this.#report(refused('spool_corrupt', message));
    });
    for (const { key, path, events, file } of buffers) {
      const bytes = EMPTY_BODY_BYTES + sizeOfAll(events);
      const buffer = { number: ++this.#lastNumber, key, path, events, bytes, file };
      this.#sealed.push(buffer);
      this.#count(contents(buffer), 1);
    }
    if (buffers.length > 0) this.#send();
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
    const number = ++this.#lastNumber;
    this.#waitUntil?.(
      new Promise((resolve) => {
        this.#watches = [...this.#watches, { upTo: number, end: resolve }];
      }),
    );
    // With waitUntil, somebody waits for the buffer, so its timer keeps the process alive.
    const timer = this.#waitUntil ? foregroundTimer : backgroundTimer;
    this.#cancelAge = timer(() => {
      this.#send();
    }, this.#maxAgeMs);
    const key = crypto.randomUUID();
    return { number, key, path: this.#path, events: [], bytes: EMPTY_BODY_BYTES, file: undefined };
  }

  #seal(): void {
    if (!this.#open) return;
    this.#cancelAge();
    // It has no events if its first one could not be written to the spool.
    if (this.#open.events.length > 0) this.#sealed.push(this.#open);
    this.#open = undefined;
  }

  /** Seals the open buffer, and starts sending unless a send is running or has failed. */
  #send(): void {
    this.#seal();
    if (this.#endPause) this.#endWatches(this.#lastNumber);
    else this.#resume();
  }

  /** Starts sending, even in a pause. */
  #resume(): void {
    this.#cancelPause();
    if (!this.#isSending && !this.#isReleased) void this.#sendAll();
  }

  #cancelPause(): void {
    this.#endPause?.();
    this.#endPause = undefined;
  }

  /** Sends one buffer after another until none is left or one cannot be sent now. */
  async #sendAll(): Promise<void> {
    this.#isSending = true;
    // Let the caller reach its flush() first, so that this round counts for that flush().
    await Promise.resolve();
    for (let buffer = this.#sealed[0]; buffer; buffer = this.#sealed[0]) {
      const before = this.#flushes;
      const { keyChanges } = this.#transport;
      const outcome = await this.#post(buffer);
      const { action, error } = outcome.action === 'split' ? await this.#split(buffer, outcome) : outcome;
      if (this.#isReleased) break;
      // Without those that have ended at their deadline.
      const waiting = before.filter((flush) => this.#flushes.includes(flush));
      if (error && (action === 'retry' || action === 'stop')) {
        if (action === 'stop' && keyChanges !== this.#transport.keyChanges) continue;
        if (waiting.length === 0) this.#report(error);
        for (const flush of waiting) this.#end(flush, error);
        this.#flushes = this.#flushes.filter((flush) => !waiting.includes(flush));
        // A flush() that was called meanwhile gets its own round of attempts.
        if (this.#flushes.length === 0) {
          this.#pause(action, error);
          break;
        }
        continue;
      }
      this.#failedRounds = 0;
      if (action === 'split') continue;
      if (error) await this.#reject(buffer, outcome.rejected ?? buffer.events, error, waiting.length === 0);
      else this.#done(buffer);
      this.#sealed.shift();
      this.#endFlushes();
    }
    this.#isSending = false;
  }

  /** Sends a buffer once, with the retries of the transport. */
  async #post(buffer: EventBuffer): Promise<Outcome> {
    const { path, key: idempotencyKey, events } = buffer;
    try {
      await buffer.file?.sync();
    } catch (cause) {
      return { action: 'retry', error: spoolFailed(cause) };
    }
    try {
      const call = { path, idempotencyKey, body: bodyOf(events) };
      if (path !== BULK) {
        await this.#transport.post({ ...call, read: readAccepted });
        return { action: 'done' };
      }
      const result = await this.#transport.post({ ...call, read: readBulk(events.length) });
      return result.rejected === 0 ? { action: 'done' } : partlyRejected(events, result);
    } catch (thrown) {
      const error = thrown as VibeFollowError;
      return { action: actionAfter(error), error };
    }
  }

  /** Replaces a buffer that is too large by its halves, and rejects a single event. */
  async #split(buffer: EventBuffer, outcome: Outcome): Promise<Outcome> {
    const { events } = buffer;
    const middle = Math.ceil(events.length / 2);
    if (middle === events.length) return { ...outcome, action: 'reject' };
    try {
      const halves = [events.slice(0, middle), events.slice(middle)].map((half, i) => {
        // The key follows from that of the whole, so that splitting again after a crash duplicates nothing.
        const key = `${buffer.key}.${i}`;
        const bytes = EMPTY_BODY_BYTES + sizeOfAll(half);
        return { ...buffer, key, events: half, bytes, file: buffer.file?.part(key, half) };
      });
      for (const { file } of halves) await file?.sync();
      buffer.file?.remove();
      this.#sealed.splice(0, 1, ...halves);
      return { action: 'split' };
    } catch (cause) {
      return { action: 'retry', error: spoolFailed(cause) };
    }
  }

  #done(buffer: EventBuffer): void {
    this.#count(contents(buffer), -1);
    this.#remove(buffer.file);
  }

  /** Waits after a failed round: for a while, or until somebody has corrected the cause. */
  #pause(action: Action, error: VibeFollowError): void {
    this.#failedRounds += 1;
    const resume = () => {
      this.#resume();
    };
    this.#endPause =
      action === 'stop'
        ? this.#transport.onKeyChange(resume)
        : backgroundTimer(resume, roundDelay(error, this.#failedRounds));
    const lastSealed = this.#sealed.at(-1)?.number ?? 0;
    this.#endWatches(lastSealed);
  }

  /** Reports rejected events to `onRejected` or, without it, to a `flush()`. */
  async #reject(
    buffer: EventBuffer,
    events: readonly string[],
    error: VibeFollowError,
    isUnseen: boolean,
  ): Promise<void> {
    const tracked = events.map(fromJson);
    attach(error, 'events', tracked);
    const { file } = buffer;
    const rejected = { events: events.length, bytes: sizeOfAll(events) };
    const accepted = { events: buffer.events.length - rejected.events, bytes: contents(buffer).bytes - rejected.bytes };
    this.#count(accepted, -1);
    if (this.#onRejected) {
      // Make room first, so that the callback can track the valid events again.
      this.#count(rejected, -1);
      try {
        await this.#onRejected(tracked, error);
        this.#remove(file);
        return;
      } catch (thrown) {
        this.#count(rejected, 1);
        attach(error, 'cause', thrown);
      }
    }
    if (isUnseen) this.#report(error);
    const rejection = { ...rejected, error, file, isReported: false };
    if (this.#flushes.length === 0) this.#unreported.push(rejection);
    for (const flush of this.#flushes) flush.rejections.push(rejection);
  }

  /** Ends every `flush()` whose buffers are all accepted or rejected. */
  #endFlushes(): void {
    const oldest = this.#sealed[0]?.number ?? this.#open?.number ?? Infinity;
    const done = this.#flushes.filter(({ upTo }) => upTo < oldest);
    this.#flushes = this.#flushes.filter(({ upTo }) => upTo >= oldest);
    for (const flush of done) this.#end(flush);
    this.#endWatches(oldest - 1);
  }

  /** Resolves a `flush()`, or rejects it with the first error, which has the others in `suppressed`. */
  #end(flush: Flush, last?: VibeFollowError): void {
    for (const rejection of flush.rejections) {
      if (rejection.isReported) continue;
      rejection.isReported = true;
      this.#count(rejection, -1);
      this.#remove(rejection.file);
    }
    const errors = flush.rejections.map(({ error }) => error);
    const [first, ...rest] = last ? [...errors, last] : errors;
    if (!first) {
      flush.resolve();
      return;
    }
    // Another flush() may have ended with the same first error.
    const suppressed = new Set([...(first.suppressed ?? []), ...rest]);
    if (suppressed.size > 0) attach(first, 'suppressed', [...suppressed]);
    flush.reject(first);
  }

  /** Ends a `flush()` before its buffers, and keeps its rejections for the next one. */
  #giveUp(flush: Flush, reason: unknown): void {
    if (!this.#flushes.includes(flush)) return;
    this.#flushes = this.#flushes.filter((other) => other !== flush);
    this.#unreported = [...new Set([...this.#unreported, ...flush.rejections])];
    flush.reject(reason);
  }

  #endWatches(upTo: number): void {
    for (const watch of this.#watches) if (watch.upTo <= upTo) watch.end();
    this.#watches = this.#watches.filter((watch) => watch.upTo > upTo);
  }

  #count({ events, bytes }: { readonly events: number; readonly bytes: number }, sign: 1 | -1): void {
    this.#queuedEvents += sign * events;
    this.#queuedBytes += sign * bytes;
  }

  /** Removes a file of the spool. If it stays, the next process sends it again with the same key. */
  #remove(file: SpoolFile | undefined): void {
    try {
      file?.remove();
    } catch (cause) {
      this.#report(spoolFailed(cause));
    }
  }

  /** Calls `onError` and ignores its failures, because `flush()` reports the error as well. */
  #report(error: VibeFollowError): void {
    new Promise((resolve) => {
      resolve(this.#onError?.(error));
    }).catch(() => undefined);
  }
}

function contents(buffer: EventBuffer): { events: number; bytes: number } {
  return { events: buffer.events.length, bytes: buffer.bytes - EMPTY_BODY_BYTES };
}

function sizeOfAll(events: readonly string[]): number {
  return events.reduce((bytes, event) => bytes + sizeOf(event), 0);
}

/** The outcome of a bulk request that rejected events. An index in a `field` refers to the rejected ones. */
function partlyRejected(events: readonly string[], { errors }: BulkResult): Outcome {
  const indexes = [...new Set(errors.map(({ index }) => index))];
  const places = new Map(indexes.map((index, place) => [index, `events[${place}]`]));
  const faults = errors.map(({ index, code, message, field }) => {
    const place = places.get(index) ?? 'events';
    return { code, message, field: field === undefined ? place : `${place}.${field}` };
  });
  const [first] = faults;
  const error = new ValidationError(`${indexes.length} of ${events.length} events were rejected: ${first?.message}`, {
    status: 200,
    code: first?.code ?? 'validation',
    errors: faults,
  });
  return { action: 'reject', error, rejected: events.filter((_, index) => places.has(index)) };
}

function full(queued: string, option: string): VibeFollowError {
  const what = `the queue is full: ${queued} are not yet accepted or reported`;
  return refused('queue_full', `${what}; await flush() more often, or raise ${option}`);
}

function refused(code: string, message: string): VibeFollowError {
  return new VibeFollowError(message, { status: 0, code });
}

function closed(): VibeFollowError {
  return refused('closed', 'the batch was closed');
}

function spoolFailed(cause: unknown): VibeFollowError {
  if (cause instanceof VibeFollowError) return cause;
  const error = refused('spool_failed', `the spool cannot be written: ${cause instanceof Error ? cause.message : String(cause)}`);
  attach(error, 'cause', cause);
  return error;
}
