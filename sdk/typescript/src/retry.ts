import type { VibeFollowError } from './errors.js';

const BACKOFF_MS = 500;
const MAX_BACKOFF_MS = 8_000;
const ROUND_BACKOFF_MS = 1_000;
const MAX_ROUND_BACKOFF_MS = 60_000;
/** A 429 with a longer Retry-After is not retried at once. For other responses, it is shortened. */
const MAX_RETRY_AFTER_MS = 60_000;
/** A batch waits at most this long for the Retry-After of a 429. */
const MAX_ROUND_RETRY_AFTER_MS = 3_600_000;

/** Statuses below 500 that say "later" and nothing about the events. */
const LATER = new Set([408, 409, 421, 425, 429]);
/** The codes with which the service rejects events for good. */
const REJECTIONS = new Set(['validation_failed', 'idempotency_key_reuse']);

/**
 * - `retry`: send the same bytes with the same key again, later
 * - `split`: send each half with a key of its own; reject a single event
 * - `reject`: the service will never accept the events
 * - `stop`: something other than the events is wrong, and somebody has to correct it
 */
export type Action = 'retry' | 'split' | 'reject' | 'stop';

/** The action after a failed attempt. docs/clients.md contains the table. */
export function actionAfter({ status, code }: VibeFollowError): Action {
  if (status === 413) return 'split';
  if (status === 422 && REJECTIONS.has(code)) return 'reject';
  // In browsers, a redirect that is not followed has status 0.
  if (status === 0 && code === 'unexpected_response') return 'stop';
  if (status < 300 || status >= 500 || LATER.has(status)) return 'retry';
  return 'stop';
}

/** The delay before the next attempt of the same call, or undefined if there must be none. */
export function retryDelay(error: VibeFollowError, attempt: number): number | undefined {
  const retryAfter = Math.min(error.retryAfterMs ?? 0, MAX_RETRY_AFTER_MS);
  const isTooLong = error.status === 429 && retryAfter < (error.retryAfterMs ?? 0);
  if (actionAfter(error) !== 'retry' || isTooLong) return undefined;
  // Full jitter in addition to Retry-After, so that clients that failed together do not retry together.
  return retryAfter + Math.random() * Math.min(MAX_BACKOFF_MS, BACKOFF_MS * 2 ** attempt);
}

/** The delay before a batch sends again by itself, after this many rounds of attempts failed in a row. */
export function roundDelay(error: VibeFollowError, failedRounds: number): number {
  const longest = error.status === 429 ? MAX_ROUND_RETRY_AFTER_MS : MAX_RETRY_AFTER_MS;
  const retryAfter = Math.min(error.retryAfterMs ?? 0, longest);
  const backoff = Math.min(MAX_ROUND_BACKOFF_MS, ROUND_BACKOFF_MS * 2 ** (failedRounds - 1));
  const jittered = (backoff * (1 + Math.random())) / 2;
  return Math.max(jittered, retryAfter > 0 ? retryAfter + Math.min(jittered, ROUND_BACKOFF_MS) : 0);
}
