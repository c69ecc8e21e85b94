import { bodyOf, EMPTY_BODY_BYTES, MAX_BODY_BYTES, sizeOf } from './body.js';
import { BULK, readBulk, type BulkResult } from './endpoints.js';
import { VibeFollowError } from './errors.js';
import { snapshot, type BeforeSend, type EventInput } from './event.js';
import { wholeNumber } from './options.js';
import { actionAfter } from './retry.js';
import type { Transport } from './transport.js';

/** The most events in one bulk request. */
export const MAX_BULK_EVENTS = 1_000;

/** Sends events to the bulk endpoint, in parts if one body is too large for them. */
export async function sendBulk(
  transport: Transport,
  events: readonly EventInput[],
  idempotencyKey: string,
  beforeSend: BeforeSend | undefined,
): Promise<BulkResult> {
  if (events.length > MAX_BULK_EVENTS) {
    throw new RangeError(`bulk() takes at most ${MAX_BULK_EVENTS} events; use chunk() to divide more`);
  }
  const json = events.map((event) => snapshot(event, beforeSend));
  const kept = [...json.keys()].filter((index) => json[index] !== undefined);
  const { errors, ...counts } = await sendPart(transport, json.filter((each) => each !== undefined), idempotencyKey);
  // `beforeSend` may have dropped events, so translate the indexes to those of the caller.
  return { ...counts, errors: errors.map((error) => ({ ...error, index: kept[error.index] ?? error.index })) };
}

async function sendPart(transport: Transport, events: readonly string[], key: string): Promise<BulkResult> {
  const received = events.length;
  if (received === 0) return { accepted: 0, rejected: 0, errors: [], received };
  const isTooLarge = EMPTY_BODY_BYTES + sum(events.map(sizeOf)) > MAX_BODY_BYTES;
  if (!isTooLarge || received === 1) {
    try {
      const call = { path: BULK, body: bodyOf(events), idempotencyKey: key, read: readBulk(received) };
      return await transport.post(call);
    } catch (error) {
      if (!(error instanceof VibeFollowError) || actionAfter(error) !== 'split') throw error;
      if (received === 1) {
        const { code, message } = error;
        return { accepted: 0, rejected: 1, errors: [{ index: 0, code, message }], received };
      }
    }
  }
  // The keys of the halves follow from that of the whole, so that a repeated call duplicates nothing.
  const middle = Math.ceil(received / 2);
  const first = await sendPart(transport, events.slice(0, middle), `${key}.0`);
  const second = await sendPart(transport, events.slice(middle), `${key}.1`);
  return {
    accepted: first.accepted + second.accepted,
    rejected: first.rejected + second.rejected,
    errors: [...first.errors, ...second.errors.map((error) => ({ ...error, index: error.index + middle }))],
    received,
  };
}

/**
 * Divides events into arrays for `events.bulk()`: each has at most `maxSize` events (default 1,000),
 * and fits into one request.
 */
export function* chunk<E extends EventInput>(
  events: Iterable<E>,
  { maxSize = MAX_BULK_EVENTS }: { readonly maxSize?: number } = {},
): Generator<E[], void, undefined> {
  wholeNumber('maxSize', maxSize, 1, MAX_BULK_EVENTS);
  let part: E[] = [];
  let bytes = EMPTY_BODY_BYTES;
  for (const event of events) {
    const size = sizeOf(snapshot(event, undefined) ?? '');
    if (part.length > 0 && (part.length === maxSize || bytes + size > MAX_BODY_BYTES)) {
      yield part;
      part = [];
      bytes = EMPTY_BODY_BYTES;
    }
    part.push(event);
    bytes += size;
  }
  if (part.length > 0) yield part;
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, number) => total + number, 0);
}
