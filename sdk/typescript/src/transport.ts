import { encode, type Payload } from './body.js';
import { errorFor, NetworkError, VibeFollowError, type Fault } from './errors.js';
import { MAX_TIMER_MS, wholeNumber } from './options.js';
import { retryDelay } from './retry.js';

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

/** Returns the result in a response, or undefined if the response is not a success of the endpoint. */
export type ReadResult<T> = (status: number, body: Record<string, unknown>) => T | undefined;

/** A request, and how to read its response. */
export interface Call<T> {
  readonly path: string;
  readonly body: string;
  readonly idempotencyKey: string;
  readonly read: ReadResult<T>;
}

/** Sends a body to the service, with timeouts and retries, and interprets the responses. */
export class Transport {
  // Private, so that printing a client does not print its API key.
  #apiKey: string;
  #keyChanges = 0;
  readonly #keyListeners = new Set<() => void>();
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

  /** Uses another API key from the next attempt on. */
  setApiKey(apiKey: string): void {
    this.#apiKey = checkedKey(apiKey);
    this.#keyChanges += 1;
    for (const listener of [...this.#keyListeners]) listener();
  }

  /** How often the API key was changed. */
  get keyChanges(): number {
    return this.#keyChanges;
  }

  /** Calls a listener when the API key is changed. Returns a function that removes the listener. */
  onKeyChange(listener: () => void): () => void {
    this.#keyListeners.add(listener);
    return () => {
      this.#keyListeners.delete(listener);
    };
  }

  /** Resolves once the service has accepted the body. Otherwise rejects with a `VibeFollowError`. */
  async post<T>(call: Call<T>): Promise<T> {
    let payload: Payload | undefined;
    for (let attempt = 0; ; attempt++) {
      const apiKey = this.#apiKey;
      try {
        payload ??= await encode(call.body);
        return await this.#attempt(call, payload, apiKey);
      } catch (thrown) {
        const error =
          thrown instanceof VibeFollowError
            ? thrown
            : new NetworkError(`the request failed: ${redacted(describe(thrown), apiKey)}`, 'network_error');
        const delay = retryDelay(error, attempt);
        if (delay === undefined || attempt >= this.#maxRetries) throw error;
        await new Promise((resolve) => setTimeout(resolve, delay));
      }
    }
  }

  async #attempt<T>(call: Call<T>, payload: Payload, apiKey: string): Promise<T> {
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
      return await Promise.race([this.#exchange(call, payload, apiKey, controller.signal), timeout]);
    } finally {
      clearTimeout(timer);
    }
  }

  async #exchange<T>(call: Call<T>, payload: Payload, apiKey: string, signal: AbortSignal): Promise<T> {
    const fetch = this.#fetch;
    const response = await fetch(this.#baseUrl + call.path, {
      method: 'POST',
      headers: {
        Authorization: `Bearer ${apiKey}`,
        'Idempotency-Key': call.idempotencyKey,
        ...payload.headers,
      },
      body: payload.body,
      // A redirected POST can become a GET, whose 200 would look like success.
      redirect: 'manual',
      signal,
    });
    const body = parse(redacted(await response.text(), apiKey));
    // A status alone is not enough: a proxy can answer 200 although nothing was queued.
    const result = call.read(response.status, body);
    if (result === undefined) throw failed(response, body);
    return result;
  }
}

function redacted(text: string, apiKey: string): string {
  return text.replaceAll(apiKey, '[API key]');
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

/** Parses a JSON object. Returns an empty object for anything else. */
function parse(text: string): Record<string, unknown> {
  try {
    return record(JSON.parse(text));
  } catch {
    return {};
  }
}

export function record(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
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

/** Parses a Retry-After header: seconds, as the service sends, or fractions or a date, as a proxy might send. */
function retryAfterMs(header: string | null): number | undefined {
  const text = header?.trim() ?? '';
  if (/^\d+(\.\d+)?$/.test(text)) return Math.ceil(Number(text) * 1_000);
  // Date.parse reads almost anything as a date, such as "1.5" as the first of May 2001.
  const at = /^(Mon|Tue|Wed|Thu|Fri|Sat|Sun)/.test(text) ? Date.parse(text) : NaN;
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
