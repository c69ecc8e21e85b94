import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { gunzipSync } from 'node:zlib';
import type { FetchLike } from '@vibefollow/sdk';

export const KEY = 'sk_test_0123456789abcdefghijklmnopqrstuv';

export interface WireEvent {
  external_user_id: string;
  name: string;
  properties?: Record<string, unknown>;
  timestamp?: string;
}

export interface Answer {
  status: number;
  headers?: Record<string, string>;
  body: string;
}

export interface Received {
  path: string;
  /** With names in lowercase. */
  headers: Record<string, string>;
  /** After decoding. */
  body: string;
  wireBytes: number;
  at: number;
  /** The status that reached the client, or 0. */
  seen: number;
}

export const ACCEPTED: Answer = { status: 202, body: '{"data":{"accepted":true}}' };

export function refusal(
  status: number,
  code: string,
  extra: { field?: string; headers?: Record<string, string> } = {},
): Answer {
  const { headers = {}, ...field } = extra;
  return { status, headers, body: JSON.stringify({ errors: [{ code, message: `no: ${code}`, ...field }] }) };
}

/** The behavior for one request. Only `accept…` and `hang in the response` queue its events. */
export type Step =
  | 'accept'
  | 'accept, then drop the connection'
  | 'accept, then cut off the response'
  | 'drop the connection'
  | 'hang'
  | 'hang in the response'
  | Answer;

/** The service's idempotency and validation in memory, with a script of failures. */
export class FakeService {
  /** One step per request. After the last step, every request is accepted. */
  script: Step[] = [];
  readonly received: Received[] = [];
  readonly queue: WireEvent[] = [];
  readonly keys = new Map<string, string>();
  /** A larger body gets a 413. */
  maxBodyBytes = 5_242_880;
  /** The 413 of the service, which a test can replace with that of a proxy. */
  tooLarge: Answer = refusal(413, 'payload_too_large');
  /** The highest number of requests in flight. */
  mostAtOnce = 0;
  #inFlight = 0;

  /** Events with this name violate a rule. */
  static readonly BAD = 'bad';

  accept(received: Received): Answer {
    if (Buffer.byteLength(received.body) > this.maxBodyBytes) return this.tooLarge;
    const endpoint = received.path.slice(received.path.lastIndexOf('/') + 1);
    const parsed = JSON.parse(received.body) as unknown;
    const events = endpoint === 'events' ? [parsed as WireEvent] : (parsed as { events: WireEvent[] }).events;
    const bad = [...events.keys()].filter((i) => violates(events[i]));
    const good = events.filter((event) => !violates(event));
    const bulk = endpoint === 'bulk';
    const [first] = bad;
    if (first !== undefined && !bulk) {
      const field = endpoint === 'events' ? 'name' : `events[${first}].name`;
      return refusal(422, 'validation_failed', { field });
    }

    const key = received.headers['idempotency-key'] ?? '';
    const id = `${received.path} ${key}`;
    const known = this.keys.get(id);
    if (known !== undefined && known !== received.body) return refusal(422, 'idempotency_key_reuse');
    if (known === undefined && good.length > 0) {
      this.keys.set(id, received.body);
      this.queue.push(...good);
    }
    if (!bulk) return ACCEPTED;
    const errors = bad.map((index) => ({ index, code: 'validation', message: 'no: validation', field: 'name' }));
    const data = { accepted: good.length, rejected: bad.length, errors };
    return { status: 200, body: JSON.stringify({ data, meta: { received: events.length } }) };
  }

  names(): string[] {
    return this.queue.map(({ name }) => name);
  }

  sentKeys(): string[] {
    return this.received.map(({ headers }) => headers['idempotency-key'] ?? '');
  }

  /** The service without a network, for tests with a fake clock. */
  readonly fetch: FetchLike = async (url, request) => {
    this.mostAtOnce = Math.max(this.mostAtOnce, ++this.#inFlight);
    try {
      const headers = Object.fromEntries(
        Object.entries(request.headers).map(([name, value]) => [name.toLowerCase(), value]),
      );
      const received: Received = {
        path: new URL(url).pathname,
        headers,
        body: decode(headers, Buffer.from(request.body)),
        wireBytes: request.body.length,
        at: Date.now(),
        seen: 0,
      };
      this.received.push(received);
      const step = this.script.shift() ?? 'accept';
      await Promise.resolve();
      const hanging = new Promise<never>((_, reject) => {
        request.signal.addEventListener('abort', () => {
          reject(new Error('aborted'));
        });
      });
      const answer = ({ status, headers, body }: Answer) => ({
        status,
        headers: new Headers(headers),
        text: () => {
          received.seen = status;
          return Promise.resolve(body);
        },
      });
      if (typeof step === 'object') return answer(step);
      switch (step) {
        case 'accept':
          return answer(this.accept(received));
        case 'accept, then drop the connection':
          this.accept(received);
          throw new TypeError('fetch failed', { cause: new Error('other side closed') });
        case 'accept, then cut off the response':
          return {
            ...answer(this.accept(received)),
            text: () => Promise.reject(new TypeError('terminated')),
          };
        case 'drop the connection':
          throw new TypeError('fetch failed', { cause: new Error('other side closed') });
        case 'hang':
          return await hanging;
        case 'hang in the response':
          return { ...answer(this.accept(received)), text: () => hanging };
      }
    } finally {
      this.#inFlight--;
    }
  };

  /** The service on a port, for tests with a network. */
  async listen(port = 0): Promise<HttpService> {
    const server = createServer((request, response) => {
      void this.#serve(request, response);
    });
    await new Promise<void>((resolve) => server.listen(port, '127.0.0.1', resolve));
    return new HttpService(server);
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const wire = Buffer.concat(chunks);
    const headers = request.headers as Record<string, string>;
    const received: Received = {
      path: request.url ?? '',
      headers,
      body: decode(headers, wire),
      wireBytes: wire.length,
      at: Date.now(),
      seen: 0,
    };
    this.received.push(received);
    const step = this.script.shift() ?? 'accept';
    const answer = ({ status, headers, body }: Answer) => {
      received.seen = status;
      response.writeHead(status, headers).end(body);
    };
    if (typeof step === 'object') {
      answer(step);
      return;
    }
    switch (step) {
      case 'accept':
        answer(this.accept(received));
        break;
      case 'accept, then drop the connection':
        this.accept(received);
        request.socket.destroy();
        break;
      case 'accept, then cut off the response': {
        const { status, body } = this.accept(received);
        response.writeHead(status, { 'Content-Length': body.length });
        response.write(body.slice(0, 10), () => request.socket.destroy());
        break;
      }
      case 'drop the connection':
        request.socket.destroy();
        break;
      case 'hang':
        break;
      case 'hang in the response': {
        const { status, body } = this.accept(received);
        response.writeHead(status, { 'Content-Length': body.length });
        response.write(body.slice(0, 10));
        break;
      }
    }
  }
}

export class HttpService {
  readonly #server: Server;
  readonly port: number;

  constructor(server: Server) {
    this.#server = server;
    this.port = (server.address() as AddressInfo).port;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  /** Stops the service like a crash. */
  async kill(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

/** Whether an event has the name BAD, or a string with half of a surrogate pair. */
function violates(event: WireEvent | undefined): boolean {
  // JSON.stringify writes an escape only for a surrogate without its other half.
  return event?.name === FakeService.BAD || /(?<!\\)(\\\\)*\\ud[89a-f]/.test(JSON.stringify(event));
}

function decode(headers: Record<string, string>, wire: Buffer): string {
  return (headers['content-encoding'] === 'gzip' ? gunzipSync(wire) : wire).toString('utf8');
}

/** Returns the error that a promise is rejected with, which must be an instance of this class. */
export async function rejection<E extends Error>(
  promise: Promise<unknown>,
  type: abstract new (...args: never[]) => E,
): Promise<E> {
  const outcome = await promise.then(
    () => 'it resolved',
    (error: unknown) => error,
  );
  if (outcome instanceof type) return outcome;
  throw new Error(`expected ${type.name}, got ${String(outcome)}`);
}
