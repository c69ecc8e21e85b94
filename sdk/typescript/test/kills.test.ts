import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { FakeService, KEY } from './service.js';

// tests/suite/spool_kills.rs does the same against the function, more often.
const KILLS = 5;
const writer = fileURLToPath(new URL('spool-writer.mjs', import.meta.url));

it(`loses and duplicates no event of a spool whose process is killed ${KILLS} times`, async () => {
  const service = new FakeService();
  const http = await service.listen();
  const spool = mkdtempSync(join(tmpdir(), 'vibefollow-kills-'));
  const tracked: string[] = [];

  /** Runs a process, and kills it after its first event and a random time. */
  const run = (mode: 'track' | 'drain', number: number) =>
    new Promise<unknown>((resolve) => {
      const child = spawn(process.execPath, [writer, http.url, KEY, spool, mode, String(number)], {
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      let output = '';
      child.stdout.on('data', (data) => {
        if (output === '') setTimeout(() => child.kill('SIGKILL'), Math.random() * 200);
        output += String(data);
      });
      child.once('close', (code, signal) => {
        // The last line is incomplete if the process died while it wrote it.
        tracked.push(...output.split('\n').slice(0, -1));
        resolve(code ?? signal);
      });
    });

  for (let i = 0; i < KILLS; i++) expect(await run('track', i)).toBe('SIGKILL');
  expect(await run('drain', KILLS)).toBe(0);
  await http.kill();
  rmSync(spool, { recursive: true });

  const queued = service.queue.map(({ external_user_id }) => external_user_id);
  expect(new Set(queued).size).toBe(queued.length);
  expect(tracked.filter((id) => !queued.includes(id))).toEqual([]);
  expect(tracked.length).toBeGreaterThanOrEqual(KILLS);
  // At most one event of each process was written although its track() did not return.
  expect(queued.length).toBeLessThanOrEqual(tracked.length + KILLS);
});
