import { randomBytes } from 'node:crypto';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { NetworkError, VibeFollow, VibeFollowError, type VibeFollowOptions } from '@vibefollow/sdk';
import { FakeService, KEY, rejection, type HttpService } from './service.js';

// The platform's fetch against a real server. The clock is real, so the jitter is set to 0.
let service: FakeService;
let http: HttpService;

beforeEach(async () => {
  vi.spyOn(Math, 'random').mockReturnValue(0);
  service = new FakeService();
  http = await service.listen();
});

afterEach(async () => {
  await http.kill();
  vi.restoreAllMocks();
});

function client(options: Partial<VibeFollowOptions> = {}): VibeFollow {
  return new VibeFollow({ apiKey: KEY, baseUrl: http.url, ...options });
}

describe('a network that fails', () => {
  it.each(['accept, then drop the connection', 'accept, then cut off the response'] as const)(
    'does not duplicate an event when the service does this: %s',
    async (step) => {
      service.script = [step];
      await client().events.track('signed_up', 'usr_42');
      expect(service.received).toHaveLength(2);
      expect(service.names()).toEqual(['signed_up']);
    },
  );

  it('causes a retry if it drops the connection or if there is no response in time', async () => {
    service.script = ['drop the connection', 'hang'];
    await client({ timeoutMs: 1_000 }).events.track('signed_up', 'usr_42');
    expect(service.received).toHaveLength(3);
    expect(new Set(service.sentKeys()).size).toBe(1);
  });

  it('causes a timeout in the middle of a response', async () => {
    service.script = ['hang in the response'];
    const sent = client({ timeoutMs: 100, maxRetries: 0 }).events.track('signed_up', 'usr_42');
    expect((await rejection(sent, NetworkError)).code).toBe('timeout');
  });

  it('is named in the error if nothing listens on the port', async () => {
    const { url } = http;
    await http.kill();
    const sent = client({ baseUrl: url, maxRetries: 0 }).events.track('signed_up', 'usr_42');
    expect((await rejection(sent, NetworkError)).message).toContain('ECONNREFUSED');
  });

  it('does not follow a redirect', async () => {
    let followed = 0;
    const other = createServer((_, response) => {
      followed++;
      response.writeHead(200).end('{"data":{"accepted":true}}');
    });
    await new Promise<void>((resolve) => other.listen(0, '127.0.0.1', resolve));
    const Location = `http://127.0.0.1:${(other.address() as AddressInfo).port}/`;
    service.script = [{ status: 302, headers: { Location }, body: '' }];
    const error = await rejection(client().events.track('signed_up', 'usr_42'), VibeFollowError);
    expect(error.status).toBe(302);
    expect(followed).toBe(0);
    other.close();
  });

  it('loses and duplicates nothing when the service crashes during a flush', async () => {
    const batch = client({ maxRetries: 0 }).events.batch({ maxSize: 10 });
    for (let i = 0; i < 55; i++) batch.track(`event ${i}`, 'usr_42');
    // The third buffer is accepted but its response is lost. Then the service is down for a while.
    service.script = ['accept', 'accept', 'accept, then drop the connection'];
    await rejection(batch.flush(), NetworkError);
    await http.kill();
    batch.track('event 55', 'usr_42');
    expect((await rejection(batch.flush(), NetworkError)).message).toContain('ECONNREFUSED');

    http = await service.listen(http.port);
    await batch.flush();
    expect(service.names()).toEqual(Array.from({ length: 56 }, (_, i) => `event ${i}`));
    const [, , third, again] = service.received;
    expect(again).toMatchObject({ body: third?.body, path: third?.path });
    expect(again?.headers['idempotency-key']).toBe(third?.headers['idempotency-key']);
  });
});

describe('a body', () => {
  /** Tracks one event that makes a body of exactly this many bytes, and sends it. */
  async function send(bytes: number, text: (length: number) => string): Promise<void> {
    const empty = JSON.stringify({ external_user_id: 'u', name: 'n', properties: { t: '' } });
    await client().events.track('n', 'u', { t: text(bytes - empty.length) });
  }

  it('is sent uncompressed up to 64 KB', async () => {
    await send(64 * 1024, (length) => 'x'.repeat(length));
    const [request] = service.received;
    expect(request?.wireBytes).toBe(64 * 1024);
    expect(request?.headers['content-type']).toBe('application/json');
    expect(request?.headers).not.toHaveProperty('content-encoding');
  });

  it('is compressed above 64 KB, with a content type that API Gateway treats as binary', async () => {
    await send(64 * 1024 + 1, (length) => 'x'.repeat(length));
    const [request] = service.received;
    expect(request?.wireBytes).toBeLessThan(1_000);
    expect(request?.body).toHaveLength(64 * 1024 + 1);
    expect(request?.headers).toMatchObject({
      'content-type': 'application/gzip',
      'content-encoding': 'gzip',
      'content-length': String(request?.wireBytes),
    });
  });

  it('is measured in UTF-8, and compression changes no character', async () => {
    const text = 'é€😀\u2028\ud800"\\\n'.repeat(5_000);
    await client().events.track('n', 'u', { text });
    expect(service.received[0]?.headers['content-encoding']).toBe('gzip');
    expect(service.queue[0]?.properties).toEqual({ text: text.replaceAll('\ud800', '\ufffd') });
  });

  it('stays below the limit of Lambda at its maximum size, even if it hardly compresses', async () => {
    const batch = client({ timeoutMs: 60_000 }).events.batch({ maxSize: 500 });
    for (let bytes = 0; bytes < 5_100_000; bytes += 100_000) {
      batch.track('n', 'u', { noise: randomBytes(75_000).toString('base64') });
    }
    await batch.flush();
    const [request] = service.received;
    expect(request?.body.length).toBeGreaterThan(5_000_000);
    // Lambda receives the body as base64, together with the rest of the event.
    expect(((request?.wireBytes ?? NaN) * 4) / 3).toBeLessThan(6_291_456 - 100_000);
  });

  it('is sent uncompressed if the runtime cannot compress', async () => {
    vi.stubGlobal('CompressionStream', undefined);
    await send(100_000, (length) => 'x'.repeat(length));
    vi.unstubAllGlobals();
    expect(service.received[0]?.wireBytes).toBe(100_000);
  });
});
