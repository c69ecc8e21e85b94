import { request as httpRequest } from 'node:http';
import type { FetchLike } from '@vibefollow/sdk';

/**
 * A fetch that sends a Host header of its own, which the platform's refuses to. A local AWS tells
 * the APIs behind its one address apart by it.
 */
export function fetchWithHost(host: string): FetchLike {
  return (url, { method, headers, body, signal }) =>
    new Promise((resolve, reject) => {
      const request = httpRequest(url, { method, headers: { ...headers, host }, signal });
      request.on('error', reject);
      request.on('response', (response) => {
        resolve({
          status: response.statusCode ?? 0,
          headers: new Headers(response.headers as Record<string, string>),
          text: async () => {
            const chunks: Buffer[] = [];
            for await (const chunk of response) chunks.push(chunk as Buffer);
            return Buffer.concat(chunks).toString('utf8');
          },
        });
      });
      request.end(body);
    });
}
