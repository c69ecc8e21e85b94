import { spawn, type ChildProcess } from 'node:child_process';
import { appendFileSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { NetworkError, ValidationError, VibeFollow, type BatchOptions, type EventBatch } from '@vibefollow/sdk';
import { FakeService, KEY, refusal, rejection, type Step } from './service.js';

const { BAD } = FakeService;
const DOWN = refusal(503, 'service_unavailable');

let service: FakeService;
let parent: string;
let directory: string;

beforeEach(() => {
  service = new FakeService();
  parent = mkdtempSync(join(tmpdir(), 'vibefollow-spool-'));
  directory = join(parent, 'spool');
});

afterEach(() => {
  vi.unstubAllGlobals();
  rmSync(parent, { recursive: true });
});

function batchOf(options: BatchOptions = {}): EventBatch {
  const client = new VibeFollow({ apiKey: KEY, fetchImpl: service.fetch, maxRetries: 0 });
  return client.events.batch({ spool: directory, ...options });
}

/** Ends a batch like the death of its process: the spool is left as it is, apart from the lock. */
function kill(): void {
  rmSync(join(directory, 'lock'));
}

function files(): string[] {
  return readdirSync(directory).filter((name) => name !== 'lock');
}

function onlyFile(): string {
  const [name = 'none', ...others] = files();
  expect(others).toEqual([]);
  return join(directory, name);
}

describe('a spool', () => {
  it('holds an event from track() until it is accepted, and then nothing', async () => {
    const batch = batchOf();
    batch.track('a', 'usr_42', { plan: 'trial' }, { timestamp: null });
    const [header = '', event, end] = readFileSync(onlyFile(), 'utf8').split('\n');
    expect(JSON.parse(header)).toEqual({ key: expect.any(String) as string, path: '/api/v1/events/batch' });
    expect(event).toBe('{"external_user_id":"usr_42","name":"a","properties":{"plan":"trial"}}');
    expect(end).toBe('');
    expect(statSync(onlyFile()).mode & 0o777).toBe(0o600);
    expect(statSync(directory).mode & 0o777).toBe(0o700);
    await batch.flush();
    expect(files()).toEqual([]);
    await batch.close();
    expect(readdirSync(directory)).toEqual([]);
  });

  it('is on the disk before the first attempt, also if an earlier process wrote it', async () => {
    const fs = process.getBuiltinModule('node:fs');
    const { fsync } = fs;
    const order: string[] = [];
    const spy = vi.spyOn(fs, 'fsync').mockImplementation((fd, done) => {
      fsync(fd, (error) => {
        order.push('fsync');
        done(error);
      });
    });
    const { fetch } = service;
    Object.assign(service, {
      fetch: (...args: Parameters<typeof fetch>) => {
        order.push('attempt');
        return fetch(...args);
      },
    });
    service.script = [DOWN];
    const batch = batchOf();
    batch.track('a', 'u');
    await rejection(batch.flush(), Error);
    await batch.flush();
    batch.track('b', 'u');
    kill();
    await batchOf().flush();
    spy.mockRestore();
    const first = ['fsync', 'fsync', 'attempt'];
    expect(order).toEqual([...first, 'attempt', ...first]);
  });

  it('is taken up by the next process with the same keys, bytes and order', async () => {
    const batch = batchOf({ maxSize: 2 });
    service.script = ['accept, then drop the connection'];
    for (const name of ['a', 'b', 'c', 'd', 'e']) batch.track(name, 'u', { text: 'é😀\u2028\u0000' });
    await rejection(batch.flush(), NetworkError);
    kill();

    const next = batchOf({ maxSize: 2 });
    next.track('f', 'u');
    await next.flush();
    expect(service.names()).toEqual(['a', 'b', 'c', 'd', 'e', 'f']);
    const [first, again] = service.received;
    expect(again?.body).toBe(first?.body);
    expect(again?.headers['idempotency-key']).toBe(first?.headers['idempotency-key']);
    expect(files()).toEqual([]);
  });

  it('is sent by the next process by itself', async () => {
    batchOf({ maxAgeMs: 3_600_000 }).track('a', 'u');
    kill();
    batchOf();
    await vi.waitFor(() => {
      expect(service.names()).toEqual(['a']);
    });
  });

  it('keeps rejected events until they are reported', async () => {
    const batch = batchOf({ maxSize: 1 });
    batch.track(BAD, 'u');
    await vi.waitFor(() => {
      expect(service.received).toHaveLength(1);
    });
    expect(files()).toHaveLength(1);
    kill();
    const next = batchOf();
    const error = await rejection(next.flush(), ValidationError);
    expect(error.events).toMatchObject([{ name: BAD }]);
    expect(files()).toEqual([]);
    kill();

    let filesDuringCallback: string[] = [];
    const last = batchOf({
      onRejected: async () => {
        await Promise.resolve();
        filesDuringCallback = files();
      },
    });
    last.track(BAD, 'u');
    await last.flush();
    expect(filesDuringCallback).toHaveLength(1);
    expect(files()).toEqual([]);
  });

  it('remembers the endpoint, to which a key belongs', async () => {
    const batch = batchOf({ partial: true });
    service.script = ['accept, then drop the connection'];
    batch.track('a', 'u');
    await rejection(batch.flush(), NetworkError);
    kill();
    await batchOf().flush();
    expect(service.names()).toEqual(['a']);
  });

  it('splits a buffer without a moment in which a death loses or duplicates an event', async () => {
    service.maxBodyBytes = 150;
    const batch = batchOf();
    for (const name of ['a', 'b', 'c']) batch.track(name, 'u');
    const whole = onlyFile();
    const before = readFileSync(whole);
    service.script = ['accept', 'accept', 'accept', DOWN];
    await rejection(batch.flush(), Error);
    expect(service.names()).toEqual(['a']);
    const parts = files();
    expect(parts).toHaveLength(2);
    kill();
    // The process died before it removed the file of the whole.
    writeFileSync(whole, before);
    const next = batchOf();
    await next.flush();
    expect(service.names()).toEqual(['a', 'b', 'c']);
    expect(files()).toEqual([]);
  });

  it('removes the whole of a split buffer only when its parts are on the disk', async () => {
    service.maxBodyBytes = 150;
    const batch = batchOf();
    for (const name of ['a', 'b']) batch.track(name, 'u');
    const whole = onlyFile();
    const fs = process.getBuiltinModule('node:fs');
    const fsync = vi.spyOn(fs, 'fsync');
    const { rmSync } = fs;
    let before = 0;
    const remove = vi.spyOn(fs, 'rmSync').mockImplementation((path, options) => {
      if (path === whole) before = fsync.mock.calls.length;
      rmSync(path, options);
    });
    await batch.flush();
    remove.mockRestore();
    fsync.mockRestore();
    // The file and the directory, for the whole and for each part.
    expect(before).toBe(6);
    expect(service.names()).toEqual(['a', 'b']);
  });

  it('ignores the parts of a buffer whose process died while it wrote them', async () => {
    const batch = batchOf({ maxAgeMs: 3_600_000 });
    for (const name of ['a', 'b', 'c', 'd']) batch.track(name, 'u');
    kill();
    const whole = onlyFile();
    const [header = '', first] = readFileSync(whole, 'utf8').split('\n');
    const { key, path } = JSON.parse(header) as { key: string; path: string };
    const part = `${JSON.stringify({ key: `${key}.0`, path })}\n${first}\n`;
    writeFileSync(whole.replace('.buffer', '.0.buffer'), part);
    service.maxBodyBytes = 250;
    await batchOf().flush();
    expect(service.names()).toEqual(['a', 'b', 'c', 'd']);
    expect(files()).toEqual([]);
  });

  it('counts what it contains against maxQueue', () => {
    batchOf({ maxAgeMs: 3_600_000 }).track('a', 'u');
    kill();
    service.script = ['hang'];
    const next = batchOf({ maxQueue: 1 });
    expect(() => {
      next.track('b', 'u');
    }).toThrow('maxQueue');
  });

  it('makes track() throw if it cannot be written, and the batch can still be used', async () => {
    const batch = batchOf();
    batch.track('a', 'u');
    const fs = process.getBuiltinModule('node:fs');
    // Part of the line reaches the disk before it is full.
    let calls = 0;
    const original = fs.writeSync.bind(fs) as (fd: number, bytes: Uint8Array) => number;
    const spy = vi.spyOn(fs, 'writeSync').mockImplementation(((fd: number, bytes: Uint8Array) => {
      calls += 1;
      if (calls === 2) throw new Error('ENOSPC: no space left on device');
      return original(fd, bytes.subarray(0, 5));
    }) as typeof fs.writeSync);
    expect(() => {
      batch.track('b', 'u');
    }).toThrow(expect.objectContaining({ code: 'spool_failed' }));
    spy.mockRestore();
    batch.track('c', 'u');
    kill();
    await batchOf().flush();
    expect(service.names()).toEqual(['a', 'c']);
  });

  it('needs a directory and a runtime with files', () => {
    expect(() => batchOf({ spool: '' })).toThrow('spool');
    writeFileSync(join(parent, 'file'), '');
    expect(() => batchOf({ spool: join(parent, 'file') })).toThrow('EEXIST');
    vi.stubGlobal('process', undefined);
    expect(() => batchOf()).toThrow('Node 20.16');
  });
});

describe('a corrupt spool', () => {
  /** Leaves a spool with the events a, b and c, and the path of its file. */
  function leave(): string {
    const batch = batchOf({ maxAgeMs: 3_600_000 });
    for (const name of ['a', 'b', 'c']) batch.track(name, 'u');
    kill();
    return onlyFile();
  }

  it.each([
    ['cut in the last line', (bytes: Buffer) => bytes.subarray(0, -10), ['a', 'b']],
    ['cut before the last newline', (bytes: Buffer) => bytes.subarray(0, -1), ['a', 'b']],
    ['cut in the header', (bytes: Buffer) => bytes.subarray(0, 20), []],
    ['empty', () => Buffer.alloc(0), []],
    ['followed by zeros', (bytes: Buffer) => Buffer.concat([bytes, Buffer.alloc(4_096)]), ['a', 'b', 'c']],
    ['followed by half a character', (bytes: Buffer) => Buffer.concat([bytes, Buffer.from([0xf0, 0x9f])]), ['a', 'b', 'c']],
  ])('that is %s is sent up to its last complete line', async (_, damage, expected) => {
    const file = leave();
    writeFileSync(file, damage(readFileSync(file)));
    const onError = vi.fn();
    const batch = batchOf({ onError });
    await batch.flush();
    expect(service.names()).toEqual(expected);
    expect(files()).toEqual([]);
    expect(onError).not.toHaveBeenCalled();
  });

  it('with an unreadable line in the middle is sent without it, and is kept and reported', async () => {
    const file = leave();
    const lines = readFileSync(file, 'utf8').split('\n');
    lines[2] = '\0'.repeat(lines[2]?.length ?? 0);
    writeFileSync(file, lines.join('\n'));
    const onError = vi.fn();
    await batchOf({ onError }).flush();
    expect(service.names()).toEqual(['a', 'c']);
    expect(onError).toHaveBeenCalledExactlyOnceWith(expect.objectContaining({ code: 'spool_corrupt' }));
    expect(readFileSync(`${file}.corrupt`, 'utf8')).toBe(lines.join('\n'));
  });

  it('with an unreadable header is kept and reported, and does not stop the others', async () => {
    const file = leave();
    writeFileSync(file, readFileSync(file, 'utf8').replace('"key"', '"kez"'));
    const onError = vi.fn();
    const batch = batchOf({ onError });
    batch.track('d', 'u');
    await batch.flush();
    expect(service.names()).toEqual(['d']);
    expect(onError).toHaveBeenCalledExactlyOnceWith(expect.objectContaining({ code: 'spool_corrupt' }));
    expect(existsSync(`${file}.corrupt`)).toBe(true);
  });
});

describe('the lock of a spool', () => {
  /** Starts a process that holds the lock, waits until it does, and returns its pid. */
  async function holder(): Promise<number> {
    const script = `
      const { VibeFollow } = await import(${JSON.stringify(new URL('../dist/esm/index.js', import.meta.url).href)});
      const vf = new VibeFollow({ apiKey: ${JSON.stringify(KEY)}, fetchImpl: () => new Promise(() => {}) });
      vf.events.batch({ spool: ${JSON.stringify(directory)} }).track('left', 'u');
      console.log(process.pid);
      setInterval(() => {}, 1000);`;
    // Its parent, sleep, never collects its exit status, so it stays a zombie after its death.
    shell = spawn('sh', ['-c', '"$0" --input-type=module -e "$1" & exec sleep 60', process.execPath, script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const { stdout } = shell;
    return new Promise((resolve) => stdout?.once('data', (line) => {
      resolve(Number(line));
    }));
  }

  let shell: ChildProcess | undefined;
  afterEach(() => shell?.kill('SIGKILL'));

  it('keeps out a second process until the first one is dead', async () => {
    const pid = await holder();
    expect(() => batchOf()).toThrow(expect.objectContaining({ code: 'spool_in_use' }));
    expect(service.received).toHaveLength(0);
    process.kill(pid, 'SIGKILL');
    await vi.waitFor(() => batchOf(), 10_000);
    await vi.waitFor(() => {
      expect(service.names()).toEqual(['left']);
    });
  });

  it('keeps out a second batch of the same process until the first one is closed', async () => {
    const batch = batchOf();
    expect(() => batchOf()).toThrow('process ' + String(process.pid));
    batch.track('a', 'u');
    await batch.close();
    expect(service.names()).toEqual(['a']);
    expect(() => {
      batch.track('b', 'u');
    }).toThrow(expect.objectContaining({ code: 'closed' }));
    await batchOf().close();
    expect(readdirSync(directory)).toEqual([]);
  });

  it('is released by close() even if the events cannot be sent, and nothing is sent afterwards', async () => {
    const batch = batchOf();
    service.script = [DOWN];
    batch.track('a', 'u');
    await rejection(batch.close(), Error);
    await expect(batch.flush()).rejects.toMatchObject({ code: 'closed' });
    expect(service.received).toHaveLength(1);
    await batchOf().flush();
    expect(service.names()).toEqual(['a']);
  });

  it('is released by close() after its deadline, and the attempt in flight is the last one', async () => {
    let open = () => undefined as unknown;
    const gate = new Promise<void>((resolve) => (open = resolve));
    const { fetch } = service;
    Object.assign(service, {
      fetch: async (...args: Parameters<typeof fetch>) => {
        await gate;
        return fetch(...args);
      },
    });
    const onError = vi.fn();
    const batch = batchOf({ maxSize: 1, onError });
    batch.track('a', 'u');
    batch.track('b', 'u');
    await rejection(batch.close({ timeoutMs: 0 }), NetworkError);
    open();
    await batchOf().flush();
    expect(service.names()).toEqual(['a', 'b']);
    expect(onError).not.toHaveBeenCalled();
  });

  it('of a process that had the same pid before is stale', async () => {
    const batch = batchOf({ maxAgeMs: 3_600_000 });
    batch.track('a', 'u');
    const lock = join(directory, 'lock');
    const me = JSON.parse(readFileSync(lock, 'utf8')) as object;
    writeFileSync(lock, JSON.stringify({ ...me, id: 'x', start: 'an earlier boot 42' }));
    await batchOf().flush();
    expect(service.names()).toEqual(['a']);
  });

  it('is not taken from a process that has just taken that of a dead one', async () => {
    const batch = batchOf({ maxAgeMs: 3_600_000 });
    batch.track('a', 'u');
    const lock = join(directory, 'lock');
    const living = readFileSync(lock, 'utf8');
    writeFileSync(lock, JSON.stringify({ ...(JSON.parse(living) as object), id: 'x', start: 'an earlier boot 42' }));
    const fs = process.getBuiltinModule('node:fs');
    const { renameSync } = fs;
    const rename = vi.spyOn(fs, 'renameSync').mockImplementationOnce((from, to) => {
      writeFileSync(lock, living);
      renameSync(from, to);
    });
    expect(() => batchOf()).toThrow(expect.objectContaining({ code: 'spool_in_use' }));
    rename.mockRestore();
    expect(readFileSync(lock, 'utf8')).toBe(living);
    expect(readdirSync(directory).filter((name) => name.startsWith('lock'))).toEqual(['lock']);
    await batch.flush();
    expect(service.names()).toEqual(['a']);
  });

  it('of another host is stale after a minute without a heartbeat', async () => {
    batchOf({ maxAgeMs: 3_600_000 }).track('a', 'u');
    const lock = join(directory, 'lock');
    const me = JSON.parse(readFileSync(lock, 'utf8')) as object;
    writeFileSync(lock, JSON.stringify({ ...me, id: 'x', host: 'another' }));
    expect(() => batchOf()).toThrow('on another');
    const before = new Date(Date.now() - 61_000);
    utimesSync(lock, before, before);
    await batchOf().flush();
    expect(service.names()).toEqual(['a']);
  });

  it.each(['', '{', 'null', '{"id":7}'])('with the content %o is stale', async (content) => {
    await batchOf().close();
    appendFileSync(join(directory, 'lock'), content);
    const batch = batchOf();
    batch.track('a', 'u');
    await batch.flush();
    expect(service.names()).toEqual(['a']);
  });

  it('that another process has taken over stops the batch', async () => {
    const batch = batchOf();
    batch.track('a', 'u');
    kill();
    const next = batchOf({ maxSize: 1 });
    await expect(batch.flush()).rejects.toMatchObject({ code: 'spool_lost' });
    await next.flush();
    expect(service.names()).toEqual(['a']);
    service.script = Array<Step>(3).fill(DOWN);
  });
});
