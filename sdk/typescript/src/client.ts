import { EventBatch, type BatchOptions } from './batch.js';
import { toJson, type Properties } from './event.js';
import { Transport, type TransportOptions } from './transport.js';

export type VibeFollowOptions = TransportOptions;

/** A client of the VibeFollow API. */
export class VibeFollow {
  readonly events: Events;

  constructor(options: VibeFollowOptions) {
    this.events = new Events(new Transport(options));
  }
}

/** Sends events, one at a time or in batches. */
export class Events {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /**
   * Sends one event and resolves once it is accepted. The Idempotency-Key is valid for this call
   * only, so calling again after a failure sends another event. A batch keeps its keys until the
   * service has accepted or rejected the events.
   */
  async track(name: string, userId: string, properties?: Properties | null): Promise<void> {
    const body = toJson(name, userId, properties);
    await this.#transport.post('/api/v1/events', body, crypto.randomUUID());
  }

  /** Creates a batch, which collects events and sends many at a time. */
  batch(options: BatchOptions = {}): EventBatch {
    return new EventBatch(this.#transport, options);
  }
}
