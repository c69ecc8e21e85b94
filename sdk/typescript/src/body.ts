/** The largest body that the service accepts, in bytes before compression. */
export const MAX_BODY_BYTES = 5 * 1024 * 1024;
/** Bytes of a body without events. Each event counts with a comma, so the last comma is subtracted. */
export const EMPTY_BODY_BYTES = '{"events":[]}'.length - 1;

const GZIP_OVER_BYTES = 64 * 1024;
const utf8 = new TextEncoder();

/** The bytes to send, and the headers that describe them. */
export interface Payload {
  readonly body: Uint8Array<ArrayBuffer>;
  readonly headers: Record<string, string>;
}

export function bodyOf(events: readonly string[]): string {
  return `{"events":[${events.join(',')}]}`;
}

/**
 * The bytes that an event and its comma take up in a body. Lambda limits the body as an escaped string
 * to 6 MB. A runtime that cannot compress therefore counts the escaped text.
 */
export function sizeOf(event: string): number {
  return utf8.encode(canCompress() ? event : JSON.stringify(event).slice(1, -1)).length + 1;
}

/**
 * Returns the bytes to send. Behind API Gateway, a text body becomes an escaped string of at most
 * 6 MB, which 5 MB of JSON can exceed. A compressed body never exceeds it, but needs a content type
 * that is not text, because API Gateway corrupts compressed bytes of a text type.
 */
export async function encode(text: string): Promise<Payload> {
  const body = utf8.encode(text);
  if (body.length <= GZIP_OVER_BYTES || !canCompress()) {
    return { body, headers: { 'Content-Type': 'application/json' } };
  }
  const gzip = new Blob([body]).stream().pipeThrough(new CompressionStream('gzip'));
  return {
    body: new Uint8Array(await new Response(gzip).arrayBuffer()),
    headers: { 'Content-Type': 'application/gzip', 'Content-Encoding': 'gzip' },
  };
}

function canCompress(): boolean {
  return typeof CompressionStream !== 'undefined';
}
