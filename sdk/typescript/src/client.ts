import { EventBatch, type BatchOptions } from './batch.js';
import { sendBulk } from './bulk.js';
import { readAccepted, SINGLE, type BulkResult } from './endpoints.js';
import {
  snapshot,
  type BeforeSend,
  type Catalog,
  type EventInput,
  type Properties,
  type TrackOptions,
} from './event.js';
import { checkedIdempotencyKey } from './options.js';
import { Transport, type TransportOptions } from './transport.js';

export interface VibeFollowOptions extends TransportOptions {
  /**
   * Called with a copy of every event before it is queued or sent. It returns the event, changed or
   * not, or `null` to drop it. If it throws, so does the call that was given the event.
   */
  readonly beforeSend?: BeforeSend | undefined;
}

export interface SendOptions {
  /**
   * The `Idempotency-Key`. Repeating a call with the same key and the same arguments within 24 hours
   * does not duplicate events. Default: a new key for each call.
   */
  readonly idempotencyKey?: string | undefined;
}

/** A client of the VibeFollow API. `C` can be an interface that gives each event name the type of its properties. */
export class VibeFollow<C extends object = Catalog> {
  readonly events: Events<C>;
  readonly #transport: Transport;

  constructor(options: VibeFollowOptions) {
    this.#transport = new Transport(options);
    this.events = new Events(this.#transport, options.beforeSend);
  }

  /**
   * Uses another API key of the same project from the next attempt on. Batches that were stopped, for
   * example by a 401, send again.
   */
  setApiKey(apiKey: string): void {
    this.#transport.setApiKey(apiKey);
  }
}

/** Sends events, one at a time or in batches. */
export class Events<C extends object = Catalog> {
  readonly #transport: Transport;
  readonly #beforeSend: BeforeSend | undefined;

  /** @internal Use `new VibeFollow().events`. */
  constructor(transport: Transport, beforeSend: BeforeSend | undefined) {
    if (beforeSend !== undefined && typeof beforeSend !== 'function') {
      throw new TypeError('beforeSend must be a function');
    }
    this.#transport = transport;
    this.#beforeSend = beforeSend;
  }

  /**
   * Sends one event and resolves once it is accepted. Unless it is given a timestamp, the time of the
   * event is that of its arrival. Calling again after a failure sends another event, unless both calls
   * have the same `idempotencyKey`. A batch keeps its keys by itself.
   */
  async track<N extends keyof C & string>(
    name: N,
    userId: string,
    properties?: C[N] | null,
    { timestamp, idempotencyKey = crypto.randomUUID() }: TrackOptions & SendOptions = {},
  ): Promise<void> {
    const key = checkedIdempotencyKey(idempotencyKey);
    const body = snapshot({ name, userId, properties: properties as Properties, timestamp }, this.#beforeSend);
    if (body === undefined) return;
    await this.#transport.post({ path: SINGLE, body, idempotencyKey: key, read: readAccepted });
  }

  /**
   * Sends up to 1,000 events in one request. Rejected events do not prevent the others from being
   * accepted; the result lists them. Throws if it is unknown whether the events were accepted. Calling
   * again then sends them again, unless both calls have the same `idempotencyKey`.
   */
  async bulk<N extends keyof C & string>(
    events: readonly EventInput<N, C[N]>[],
    { idempotencyKey = crypto.randomUUID() }: SendOptions = {},
  ): Promise<BulkResult> {
    const key = checkedIdempotencyKey(idempotencyKey);
    return sendBulk(this.#transport, events as readonly EventInput[], key, this.#beforeSend);
  }

  /** Creates a batch, which collects events and sends many at a time. */
  batch(options: BatchOptions = {}): EventBatch<C> {
    return new EventBatch(this.#transport, this.#beforeSend, options);
  }
}
