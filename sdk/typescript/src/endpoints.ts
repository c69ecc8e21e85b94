import type { Fault } from './errors.js';
import { record, type ReadResult } from './transport.js';

export const SINGLE = '/api/v1/events';
export const BATCH = '/api/v1/events/batch';
export const BULK = '/api/v1/events/bulk';

/** A reason why an event was rejected. */
export interface BulkError extends Fault {
  /** The index of the event in the array that was sent. */
  readonly index: number;
}

/** The response to a bulk request. */
export interface BulkResult {
  /** The number of events that are in the service's queue. */
  readonly accepted: number;
  readonly rejected: number;
  /** At least one element for each rejected event, in order of `index`. */
  readonly errors: readonly BulkError[];
  /** `accepted` + `rejected` */
  readonly received: number;
}

/** Reads a success of the endpoints that accept a body as a whole. */
export function readAccepted(status: number, body: Record<string, unknown>): true | undefined {
  return (status === 202 && record(body['data'])['accepted'] === true) || undefined;
}

/** Reads a success of the bulk endpoint. It is not a result unless it accounts for every event sent. */
export function readBulk(received: number): ReadResult<BulkResult> {
  return (status, body) => {
    if (status !== 200) return undefined;
    const { accepted, rejected, errors } = record(body['data']);
    if (typeof accepted !== 'number' || typeof rejected !== 'number' || !Array.isArray(errors)) return undefined;
    const read = errors.map(record).flatMap(({ index, code, message, field }) =>
      Number.isInteger(index) && typeof code === 'string'
        ? [{ index: Number(index), code, message: String(message), ...(typeof field === 'string' && { field }) }]
        : [],
    );
    const indexes = new Set(read.map(({ index }) => index));
    const isComplete = accepted + rejected === received && indexes.size === rejected;
    if (!isComplete || read.some(({ index }) => index < 0 || index >= received)) return undefined;
    return { accepted, rejected, errors: read, received };
  };
}
