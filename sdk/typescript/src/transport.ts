import { errorFor, NetworkError, RateLimitError, ServerError, VibeFollowError } from './errors.js';
import type { Fault } from './errors.js';
import { MAX_TIMER_MS, wholeNumber } from './options.js';

const GZIP_OVER_BYTES = 64 * 1024;
const BACKOFF_MS = 500;
const MAX_BACKOFF_MS = 8_000;
/** A longer Retry-After of a 429 is the caller's to sit out, not ours; that of a 5xx is a guess. */
const MAX_RETRY_AFTER_MS = 60_000;

/** What this SDK asks of `fetch`; the platform's own and undici's both fit. */
export type FetchLike = (url: string, request: FetchRequest) => Promise<FetchResponse>;

export interface FetchRequest {
  readonly method: 'POST';
  readonly headers: Record<string, string>;
  readonly body: Uint8Array<ArrayBuffer>;
  readonly redirect: 'manual';
  readonly signal: AbortSignal;
}

export interface FetchResponse {
  readonly status: number;
  readonly headers: { get(name: string): string | null };
  text(): Promise<string>;
}

export interface TransportOptions {
  /** The API key, `sk_live_…` or `sk_test_…`. */
  readonly apiKey: string;
  /** Default `https://api.vibefollow.com`. */
  readonly baseUrl?: string | undefined;
  /** How long one attempt may take, its answer's body included. Default 10,000. */
  readonly timeoutMs?: number | undefined;
  /** How often a failed attempt is repeated, 0 to 10. Default 2. */
  readonly maxRetries?: number | undefined;
  /** Used in place of the global `fetch`. */
  readonly fetchImpl?: FetchLike | undefined;
}

interface Payload {
  readonly body: Uint8Array<ArrayBuffer>;
  readonly headers: Record<string, string>;
}

/** Takes one body to the service: attempts, time-outs, and what each answer means. */
export class Transport {
  // All private: what prints a client must not print its key.
  readonly #apiKey: string;
  readonly #baseUrl: string;
  readonly #timeoutMs: number;
  readonly #maxRetries: number;
  readonly #fetch: FetchLike;

  constructor(options: TransportOptions) {
    this.#apiKey = checkedKey(options.apiKey);
    this.#baseUrl = checkedBaseUrl(options.baseUrl ?? 'https://api.vibefollow.com');
    this.#timeoutMs = wholeNumber('timeoutMs', options.timeoutMs ?? 10_000, 1, MAX_TIMER_MS);
    this.#maxRetries = wholeNumber('maxRetries', options.maxRetries ?? 2, 0, 10);
    // Looked up at each call and called unbound, as browsers demand and test doubles expect.
    this.#fetch = options.fetchImpl ?? ((url, request) => fetch(url, request));
    if (typeof this.#fetch !== 'function') throw new TypeError('fetchImpl must be a function');
    if (!options.fetchImpl && typeof fetch !== 'function') {
      throw new TypeError('this runtime has no fetch: pass one as fetchImpl');
    }
    const { crypto } = globalThis as { crypto?: Partial<Crypto> };
    if (typeof crypto?.randomUUID !== 'function') {
      throw new TypeError('this runtime has no crypto.randomUUID; browsers have it on https only');
    }
  }

  /** Resolves once the service has accepted the body. Rejects with a `VibeFollowError` only. */
  async post(path: string, body: string, idempotencyKey: string): Promise<void> {
    let payload: Payload | undefined;
    for (let attempt = 0; ; attempt++) {
      try {
        payload ??= await encode(body);
        await this.#attempt(path, payload, idempotencyKey);
        return;
      } catch (thrown) {
        const error =
          thrown instanceof VibeFollowError
            ? thrown
            : new NetworkError(`no connection: ${this.#redacted(describe(thrown))}`, 'network_error');
        const delay = retryDelay(error, attempt);
        if (delay === undefined || attempt >= this.#maxRetries) throw error;
        await new Promise((resolve) => setTimeout(resolve, delay));
      }
    }
  }

  async #attempt(path: string, payload: Payload, idempotencyKey: string): Promise<void> {
    const controller = new AbortController();
    let timer;
    // Raced, since a fetchImpl may not heed the signal.
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        reject(new NetworkError(`no answer within ${this.#timeoutMs} ms`, 'timeout'));
        controller.abort();
      }, this.#timeoutMs);
    });
    try {
      await Promise.race([this.#exchange(path, payload, idempotencyKey, controller.signal), late]);
    } finally {
      clearTimeout(timer);
    }
  }

  async #exchange(
    path: string,
    payload: Payload,
    idempotencyKey: string,
    signal: AbortSignal,
  ): Promise<void> {
    const fetch = this.#fetch;
    const response = await fetch(this.#baseUrl + path, {
      method: 'POST',
      headers: {
        Authorization: `Bearer ${this.#apiKey}`,
        'Idempotency-Key': idempotencyKey,
        ...payload.headers,
      },
      body: payload.body,
      // A redirected POST may arrive as a GET, whose 200 would look like success.
      redirect: 'manual',
      signal,
    });
    const answer = parse(this.#redacted(await response.text()));
    // Only the service's own words count: a proxy's 200 has put nothing into the queue.
    if (response.status >= 200 && response.status < 300 && accepted(answer)) return;
    throw failed(response, answer);
  }

  #redacted(text: string): string {
    return text.replaceAll(this.#apiKey, '[API key]');
  }
}

function checkedKey(apiKey: unknown): string {
  // Never quoted in a message, not even a wrong one.
  if (typeof apiKey !== 'string' || apiKey === '') {
    throw new TypeError('apiKey is missing: pass your API key, for example from the environment');
  }
  if (!/^[\w.~+/=-]+$/.test(apiKey)) {
    throw new TypeError('apiKey holds a character no key has, such as a space or a line break');
  }
  return apiKey;
}

function checkedBaseUrl(baseUrl: string): string {
  let url: URL;
  try {
    url = new URL(baseUrl);
  } catch {
    throw new TypeError('baseUrl is not a URL');
  }
  if (!/^https?:$/.test(url.protocol)) throw new TypeError('baseUrl must be http or https');
  // A bare `?` or `#` is in neither `search` nor `hash`.
  if (url.username || url.password || /[?#]/.test(url.href)) {
    throw new TypeError('baseUrl must have no user, query or fragment');
  }
  return url.href.replace(/\/+$/, '');
}

/** The bytes to send. The API's gateway takes bodies as text and limits that text to 6 MB, quotes
 * escaped, which 5 MB of JSON can exceed; compressed, it never does. Compressed bytes in turn
 * reach the service whole only under a content type that is not text. */
async function encode(text: string): Promise<Payload> {
  const body = new TextEncoder().encode(text);
  if (body.length <= GZIP_OVER_BYTES || typeof CompressionStream === 'undefined') {
    return { body, headers: { 'Content-Type': 'application/json' } };
  }
  const gzip = new Blob([body]).stream().pipeThrough(new CompressionStream('gzip'));
  return {
    body: new Uint8Array(await new Response(gzip).arrayBuffer()),
    headers: { 'Content-Type': 'application/gzip', 'Content-Encoding': 'gzip' },
  };
}

/** How long to wait before the next attempt, or nothing where there should be none. */
function retryDelay(error: VibeFollowError, attempt: number): number | undefined {
  const passing =
    error instanceof RateLimitError ||
    error instanceof ServerError ||
    error instanceof NetworkError;
  const asked = Math.min(error.retryAfterMs ?? 0, MAX_RETRY_AFTER_MS);
  const tooLong = error instanceof RateLimitError && asked < (error.retryAfterMs ?? 0);
  if (!passing || tooLong) return undefined;
  // Full jitter, on top of what was asked, so that clients turned away together do not return so.
  return asked + Math.random() * Math.min(MAX_BACKOFF_MS, BACKOFF_MS * 2 ** attempt);
}

/** A JSON answer as an object to look into, or an empty one for anything else. */
function parse(text: string): Record<string, unknown> {
  try {
    return record(JSON.parse(text));
  } catch {
    return {};
  }
}

function record(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
}

function accepted(answer: Record<string, unknown>): boolean {
  return record(answer['data'])['accepted'] === true;
}

function failed(response: FetchResponse, answer: Record<string, unknown>): VibeFollowError {
  const { status } = response;
  const errors = faults(answer['errors']);
  const [first] = errors;
  // The gateway speaks for itself with {"message": …}.
  const message = first?.message ?? answer['message'];
  const text =
    typeof message === 'string' && message !== '' ? message : "the answer was not the service's own";
  const code = first?.code ?? (status < 400 ? 'unexpected_response' : `http_${status}`);
  return errorFor(`${text} (${[`HTTP ${status}`, first?.code, first?.field].filter(Boolean).join(', ')})`, {
    status,
    code,
    errors,
    requestId: response.headers.get('x-request-id') ?? undefined,
    retryAfterMs: retryAfterMs(response.headers.get('retry-after')),
  });
}

function faults(value: unknown): Fault[] {
  if (!Array.isArray(value)) return [];
  return value.map(record).flatMap(({ code, message, field }) =>
    typeof code === 'string' && typeof message === 'string'
      ? [{ code, message, ...(typeof field === 'string' && { field }) }]
      : [],
  );
}

/** Reads a Retry-After header: seconds, as the service writes it, or a date, as a proxy may. */
function retryAfterMs(header: string | null): number | undefined {
  if (header === null) return undefined;
  if (/^\d+$/.test(header.trim())) return Number(header) * 1_000;
  const at = Date.parse(header);
  return Number.isNaN(at) ? undefined : Math.max(0, at - Date.now());
}

/** What went wrong below us: `fetch` hides it in causes, some of which have a code but no words. */
function describe(thrown: unknown): string {
  const words: string[] = [];
  for (let error = thrown; error instanceof Error && words.length < 4; error = error.cause) {
    const { code } = error as { code?: unknown };
    words.push(error.message || (typeof code === 'string' ? code : error.name));
  }
  return words.join(': ') || String(thrown);
}
