import { execFile, spawn } from 'node:child_process';
import { copyFileSync, existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { FakeService, KEY, refusal, type HttpService } from './service.js';

// The build on other runtimes. `npm run runtimes` installs them; without them, only this Node is tested.
const here = fileURLToPath(new URL('runtimes', import.meta.url));
const build = fileURLToPath(new URL('../dist/esm', import.meta.url));
const binary = (path: string) => join(here, 'node_modules', path);
const PROCESSES = {
  [`Node ${process.versions.node}`]: [process.execPath],
  'Node 22': [binary('node22/bin/node')],
  'Node 24': [binary('node24/bin/node')],
  Deno: [binary('@deno/linux-x64-glibc/deno'), 'run', '--allow-all', '--no-config', '--quiet'],
  Bun: [binary('@oven/bun-linux-x64/bin/bun')],
};
const WORKERD = binary('@cloudflare/workerd-linux-64/bin/workerd');

// `make test` sets RUNTIMES=required, so that no runtime is skipped in CI.
const isRequired = process.env['RUNTIMES'] === 'required' && process.platform === 'linux' && process.arch === 'x64';
const isMissing = (path: string) => !existsSync(path) && !isRequired;

let service: FakeService;
let http: HttpService;
let directory: string;

beforeEach(async () => {
  service = new FakeService();
  http = await service.listen();
  service.script = ['accept', 'accept, then drop the connection', refusal(503, 'service_unavailable')];
  directory = mkdtempSync(join(tmpdir(), 'vibefollow-runtime-'));
});

afterEach(async () => {
  await http.kill();
  rmSync(directory, { recursive: true });
});

const SCENARIO = [...Array.from({ length: 250 }, (_, i) => `batch ${i}`), 'single', 'bulk', 'handled', 'waited'];

function expectScenario(): void {
  expect(service.names().slice(0, SCENARIO.length)).toEqual(SCENARIO);
  expect(service.queue[0]?.properties).toEqual({ note: `é😀\ufffd${'x'.repeat(1_000)}` });
  const [first, second, third, fourth] = service.received;
  expect(first?.headers).toMatchObject({ 'content-type': 'application/gzip', 'content-encoding': 'gzip' });
  expect(first?.wireBytes).toBeLessThan(20_000);
  expect(third?.headers['idempotency-key']).toBe(second?.headers['idempotency-key']);
  expect(fourth?.headers['idempotency-key']).toBe(second?.headers['idempotency-key']);
}

for (const [name, [program = '', ...args]] of Object.entries(PROCESSES)) {
  it.skipIf(isMissing(program))(`${name} sends events, has a spool, and ends by itself`, async () => {
    const spool = join(directory, 'spool');
    const command = [...args, join(here, 'process.mjs'), http.url, KEY, spool];
    const env = { ...process.env, DENO_DIR: join(directory, 'deno'), NO_COLOR: '1' };
    const { stdout } = await promisify(execFile)(program, command, { env, timeout: 30_000 });
    expect(stdout).toBe('done\n');
    expectScenario();
    expect(service.names().slice(SCENARIO.length)).toEqual(['spooled']);
    // The process ended without close(), so its event and its lock are still there.
    expect(readdirSync(spool)).toEqual([expect.stringMatching(/\.buffer$/), 'lock']);
  });
}

it.skipIf(isMissing(WORKERD))('workerd sends events, and those of waitUntil after the response', async () => {
  const modules = readdirSync(build).filter((file) => file.endsWith('.js'));
  for (const file of modules) copyFileSync(join(build, file), join(directory, file));
  for (const file of ['worker.mjs', 'scenario.mjs']) copyFileSync(join(here, file), join(directory, file));
  const module = (file: string) => `(name = "${file}", esModule = embed "${file}")`;
  writeFileSync(
    join(directory, 'config.capnp'),
    `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "main", worker = (
      modules = [${['worker.mjs', 'scenario.mjs', ...modules].map(module).join(', ')}],
      compatibilityDate = "2026-11-01",
      bindings = [(name = "BASE_URL", text = "${http.url}"), (name = "API_KEY", text = "${KEY}")]
    )),
    (name = "internet", network = (allow = ["public", "private"]))
  ],
  sockets = [(name = "http", address = "127.0.0.1:0", http = (), service = "main")]
);`,
  );
  const workerd = spawn(WORKERD, ['serve', 'config.capnp', '--control-fd=3'], {
    cwd: directory,
    stdio: ['ignore', 'inherit', 'inherit', 'pipe'],
  });
  try {
    // workerd reports the port that it listens on.
    const line = await new Promise<string>((resolve) => workerd.stdio[3]?.once('data', (data) => {
      resolve(String(data));
    }));
    const { port } = JSON.parse(line) as { port: number };
    const sent = await fetch(`http://127.0.0.1:${port}/send`);
    expect([sent.status, await sent.text()]).toEqual([200, 'done']);
    expectScenario();
    const waited = await fetch(`http://127.0.0.1:${port}/wait`);
    expect(await waited.text()).toBe('done');
    expect(service.names()).toHaveLength(SCENARIO.length);
    await vi.waitFor(() => {
      expect(service.names().slice(SCENARIO.length)).toEqual(['after the response']);
    }, 10_000);
  } finally {
    workerd.kill('SIGKILL');
  }
});
