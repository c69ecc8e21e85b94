import { errorFor, NetworkError, RateLimitError, ServerError, VibeFollowError } from './errors.js';
import type { Fault } from './errors.js';
import { MAX_TIMER_MS, wholeNumber } from './options.js';

const GZIP_OVER_BYTES = 64 * 1024;
const BACKOFF_MS = 500;
const MAX_BACKOFF_MS = 8_000;
/** A 429 with a longer Retry-After is not retried. For a 5xx, a longer Retry-After is shortened. */
const MAX_RETRY_AFTER_MS = 60_000;

/** The subset of `fetch` that this client uses. The platform's `fetch` and undici's are compatible. */
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
  /** Base URL of the API. Default `https://api.vibefollow.com`. */
  readonly baseUrl?: string | undefined;
  /** Timeout of one attempt in milliseconds, including its response body. Default 10,000. */
  readonly timeoutMs?: number | undefined;
  /** Retries after a failed attempt, 0 to 10. Default 2. */
  readonly maxRetries?: number | undefined;
  /** Used in place of the global `fetch`. */
  readonly fetchImpl?: FetchLike | undefined;
}

interface Payload {
  readonly body: Uint8Array<ArrayBuffer>;
  readonly headers: Record<string, string>;
}

/** Sends a body to the service, with timeouts and retries, and interprets the responses. */
export class Transport {
  // Private, so that printing a client does not print its API key.
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
    // The global fetch is looked up at each call, so that tests can replace it, and is called without
    // `this`, as browsers require.
    this.#fetch = options.fetchImpl ?? ((url, request) => fetch(url, request));
    if (typeof this.#fetch !== 'function') throw new TypeError('fetchImpl must be a function');
    if (!options.fetchImpl && typeof fetch !== 'function') {
      throw new TypeError('this runtime has no fetch; pass one as fetchImpl');
    }
    const { crypto } = globalThis as { crypto?: Partial<Crypto> };
    if (typeof crypto?.randomUUID !== 'function') {
      throw new TypeError('this runtime has no crypto.randomUUID; browsers provide it only over HTTPS');
    }
  }

  /** Resolves once the service has accepted the body. Otherwise rejects with a `VibeFollowError`. */
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
            : new NetworkError(`the request failed: ${this.#redacted(describe(thrown))}`, 'network_error');
        const delay = retryDelay(error, attempt);
        if (delay === undefined || attempt >= this.#maxRetries) throw error;
        await new Promise((resolve) => setTimeout(resolve, delay));
      }
    }
  }

  async #attempt(path: string, payload: Payload, idempotencyKey: string): Promise<void> {
    const controller = new AbortController();
    let timer;
    // A race, because a fetchImpl might ignore the signal.
    const timeout = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        reject(new NetworkError(`no response within ${this.#timeoutMs} ms`, 'timeout'));
        controller.abort();
      }, this.#timeoutMs);
    });
    try {
      await Promise.race([this.#exchange(path, payload, idempotencyKey, controller.signal), timeout]);
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
      // A redirected POST can become a GET, whose 200 would look like success.
      redirect: 'manual',
      signal,
    });
    const body = parse(this.#redacted(await response.text()));
    // A 2xx alone is not enough: a 200 from a proxy has queued nothing.
    if (response.status >= 200 && response.status < 300 && accepted(body)) return;
    throw failed(response, body);
  }

  #redacted(text: string): string {
    return text.replaceAll(this.#apiKey, '[API key]');
  }
}

function checkedKey(apiKey: unknown): string {
  // No message quotes the API key, even if it is invalid.
  if (typeof apiKey !== 'string' || apiKey === '') {
    throw new TypeError('apiKey is missing; pass your API key, for example from the environment');
  }
  if (!/^[\w.~+/=-]+$/.test(apiKey)) {
    throw new TypeError('apiKey contains an invalid character, such as a space or a line break');
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
  if (!/^https?:$/.test(url.protocol)) throw new TypeError('baseUrl must start with http:// or https://');
  // `search` and `hash` are empty for a `?` or `#` at the end, so test the whole URL.
  if (url.username || url.password || /[?#]/.test(url.href)) {
    throw new TypeError('baseUrl must not contain a user, a query or a fragment');
  }
  return url.href.replace(/\/+$/, '');
}

/**
 * Returns the bytes to send. Behind API Gateway, a text body becomes an escaped string of at most
 * 6 MB, which 5 MB of JSON can exceed. A compressed body never exceeds it, but needs a content type
 * that is not text, because API Gateway corrupts compressed bytes of a text type.
 */
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

/** The delay before the next attempt, or undefined if the error must not be retried. */
function retryDelay(error: VibeFollowError, attempt: number): number | undefined {
  const temporary =
    error instanceof RateLimitError ||
    error instanceof ServerError ||
    error instanceof NetworkError;
  const retryAfter = Math.min(error.retryAfterMs ?? 0, MAX_RETRY_AFTER_MS);
  const tooLong = error instanceof RateLimitError && retryAfter < (error.retryAfterMs ?? 0);
  if (!temporary || tooLong) return undefined;
  // Full jitter in addition to Retry-After, so that clients that failed together do not retry together.
  return retryAfter + Math.random() * Math.min(MAX_BACKOFF_MS, BACKOFF_MS * 2 ** attempt);
}

/** Parses a JSON object. Returns an empty object for anything else. */
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

function accepted(body: Record<string, unknown>): boolean {
  return record(body['data'])['accepted'] === true;
}

function failed(response: FetchResponse, body: Record<string, unknown>): VibeFollowError {
  const { status } = response;
  const errors = faults(body['errors']);
  const [first] = errors;
  // Responses that come from API Gateway have the body {"message": …}.
  const message = first?.message ?? body['message'];
  const text =
    typeof message === 'string' && message !== '' ? message : 'the response did not come from the service';
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

/** Parses a Retry-After header: seconds, as the service sends, or a date, as a proxy might send. */
function retryAfterMs(header: string | null): number | undefined {
  if (header === null) return undefined;
  if (/^\d+$/.test(header.trim())) return Number(header) * 1_000;
  const at = Date.parse(header);
  return Number.isNaN(at) ? undefined : Math.max(0, at - Date.now());
}

/** Describes an error with its causes. `fetch` puts the reason into causes, some of which have only a code. */
function describe(thrown: unknown): string {
  const messages: string[] = [];
  for (let error = thrown; error instanceof Error && messages.length < 4; error = error.cause) {
    const { code } = error as { code?: unknown };
    messages.push(error.message || (typeof code === 'string' ? code : error.name));
  }
  return messages.join(': ') || String(thrown);
}
