import { request as httpRequest } from 'node:http';
import type { FetchLike } from '@vibefollow/sdk';

/**
 * Creates a fetch that sends the given Host header, which the platform's fetch does not allow. A local
 * AWS selects the API by this header.
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
