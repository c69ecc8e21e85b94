import { VibeFollowError } from './errors.js';

const HEARTBEAT_MS = 10_000;
/** A lock of another host is stale if it got no heartbeat for this long. */
const STALE_MS = 60_000;
const NEWLINE = 10;

/** The functions of `node:fs` that a spool uses. The types of Node are not needed to use this package. */
interface Fs {
  mkdirSync(path: string, options: { recursive: boolean; mode: number }): unknown;
  readdirSync(path: string): string[];
  readFileSync(path: string): Uint8Array;
  openSync(path: string, flags: string, mode?: number): number;
  writeSync(fd: number, bytes: Uint8Array): number;
  ftruncateSync(fd: number, length: number): void;
  fsync(fd: number, done: (error: Error | null) => void): void;
  closeSync(fd: number): void;
  linkSync(from: string, to: string): void;
  renameSync(from: string, to: string): void;
  rmSync(path: string, options: { force: boolean }): void;
  statSync(path: string): { mtimeMs: number };
  utimesSync(path: string, atime: Date, mtime: Date): void;
}

interface Process {
  readonly pid: number;
  kill(pid: number, signal: 0): unknown;
  getBuiltinModule?(name: 'node:fs'): Fs | undefined;
  getBuiltinModule?(name: 'node:os'): { hostname(): string } | undefined;
}

/** A buffer that an earlier process left. */
export interface StoredBuffer {
  readonly key: string;
  readonly path: string;
  readonly events: string[];
  readonly file: SpoolFile;
}

/**
 * A directory with one file for each buffer that is not yet accepted or reported. The first line of a
 * file contains the idempotency key and the path of the endpoint, and each further line is an event, so
 * that a process that takes up the file sends the same bytes with the same key.
 */
export class Spool {
  readonly #fs: Fs;
  readonly #directory: string;
  readonly #lock: Lock;
  #lastNumber = 0;

  private constructor(fs: Fs, directory: string, lock: Lock) {
    this.#fs = fs;
    this.#directory = directory;
    this.#lock = lock;
  }

  /** Opens a directory, which is created if it does not exist. Throws if another process uses it. */
  static open(directory: string): Spool {
    const { process } = globalThis as { process?: Process };
    const fs = process?.getBuiltinModule?.('node:fs');
    if (!process || !fs) throw new TypeError('spool needs Node 20.16 or later, Deno, or Bun');
    if (typeof directory !== 'string' || directory === '') throw new TypeError('spool must be the path of a directory');
    fs.mkdirSync(directory, { recursive: true, mode: 0o700 });
    const host = process.getBuiltinModule?.('node:os')?.hostname() ?? '';
    return new Spool(fs, directory, new Lock(fs, process, host, directory));
  }

  /** Reads the buffers that an earlier process left, in order, and says what could not be read. */
  read(): { buffers: StoredBuffer[]; problems: string[] } {
    const buffers: StoredBuffer[] = [];
    const problems: string[] = [];
    const names = this.#fs.readdirSync(this.#directory).filter((name) => name.endsWith('.buffer')).sort();
    for (const name of names) {
      this.#lastNumber = Math.max(this.#lastNumber, Number.parseInt(name, 10) || 0);
      const file = new SpoolFile(this.#fs, this.#directory, name, this.#lock);
      // The process died while it split a buffer: the whole is still there, so nobody has sent the parts.
      const isPart = names.some((other) => other !== name && name.startsWith(other.replace(/buffer$/, '')));
      const stored = isPart ? undefined : this.#parse(file, problems);
      if (stored) buffers.push(stored);
      else file.remove();
    }
    return { buffers, problems };
  }

  /** Creates the file of a buffer. */
  create(key: string, path: string): SpoolFile {
    this.#lastNumber += 1;
    const name = `${String(this.#lastNumber).padStart(12, '0')}-${key}.buffer`;
    return new SpoolFile(this.#fs, this.#directory, name, this.#lock).start(key, path);
  }

  /** Lets other processes use the directory. */
  close(): void {
    this.#lock.release();
  }

  /** Returns the buffer in a file, or undefined if it contains no complete event. */
  #parse(file: SpoolFile, problems: string[]): StoredBuffer | undefined {
    // Without its newline, the last line is that of a track() that did not return.
    const [header, ...lines] = completeLines(this.#fs.readFileSync(file.path));
    if (header === undefined) return undefined;
    const { key, path } = (object(header) ?? {}) as { key?: unknown; path?: unknown };
    const hasHeader = typeof key === 'string' && typeof path === 'string';
    const events = hasHeader ? lines.filter((line) => object(line) !== undefined) : [];
    if (events.length === lines.length && hasHeader) {
      return events.length === 0 ? undefined : { key, path, events, file };
    }
    // The file itself stays until its events are accepted, so that a death here loses nothing.
    const copy = `${file.path}.corrupt`;
    linkUnlessExists(this.#fs, file.path, copy);
    problems.push(`the spool has ${lines.length - events.length} unreadable lines; they are in ${copy}`);
    return hasHeader && events.length > 0 ? { key, path, events, file } : undefined;
  }
}

/** The file of one buffer. */
export class SpoolFile {
  readonly path: string;
  readonly #fs: Fs;
  readonly #directory: string;
  readonly #name: string;
  readonly #lock: Lock;
  #fd: number | undefined;
  #size = 0;
  #isSynced = false;

  constructor(fs: Fs, directory: string, name: string, lock: Lock) {
    this.#fs = fs;
    this.#directory = directory;
    this.#name = name;
    this.#lock = lock;
    this.path = `${directory}/${name}`;
  }

  /** Creates the file. */
  start(key: string, path: string): this {
    this.#fs.rmSync(this.path, { force: true });
    // Writes go to the end of the file, even after it was truncated.
    this.#fd = this.#fs.openSync(this.path, 'a', 0o600);
    this.append(JSON.stringify({ key, path }));
    return this;
  }

  /** Appends a line. It survives the death of the process when this returns. */
  append(line: string): void {
    const fd = this.#fd;
    if (fd === undefined) throw new Error('the file is not open');
    const bytes = new TextEncoder().encode(`${line}\n`);
    try {
      for (let written = 0; written < bytes.length; ) written += this.#fs.writeSync(fd, bytes.subarray(written));
      this.#size += bytes.length;
    } catch (cause) {
      // Part of a line would make the next one unreadable.
      this.#fs.ftruncateSync(fd, this.#size);
      throw failed('the event cannot be written to the spool', cause);
    }
  }

  /** Waits until the file is on the disk. Call it before the first attempt: nothing may be appended afterwards. */
  async sync(): Promise<void> {
    this.#lock.check();
    if (this.#isSynced) return;
    // A file that an earlier process left is not open, and may not be on the disk yet.
    const fd = this.#fd ?? this.#fs.openSync(this.path, 'r');
    await this.#fsync(fd);
    this.#fd = undefined;
    this.#fs.closeSync(fd);
    const directory = this.#fs.openSync(this.#directory, 'r');
    try {
      await this.#fsync(directory);
    } finally {
      this.#fs.closeSync(directory);
    }
    this.#isSynced = true;
  }

  /** Creates the file of a part of this buffer, which sorts where this file does. */
  part(key: string, events: readonly string[]): SpoolFile {
    const { path } = object(completeLines(this.#fs.readFileSync(this.path))[0] ?? '') as { path: string };
    const name = `${this.#name.slice(0, this.#name.indexOf('-'))}-${key}.buffer`;
    const part = new SpoolFile(this.#fs, this.#directory, name, this.#lock).start(key, path);
    for (const event of events) part.append(event);
    return part;
  }

  remove(): void {
    if (this.#fd !== undefined) this.#fs.closeSync(this.#fd);
    this.#fd = undefined;
    this.#fs.rmSync(this.path, { force: true });
  }

  #fsync(fd: number): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#fs.fsync(fd, (error) => {
        if (error) reject(error);
        else resolve();
      });
    });
  }
}

/** A process that holds a lock. */
interface Holder {
  readonly id: string;
  readonly pid: number;
  readonly host: string;
  /** Tells apart processes that have the same pid one after the other. Undefined if there is no `/proc`. */
  readonly start?: string | undefined;
}

/** The file `lock`, which belongs to one process. */
class Lock {
  readonly #fs: Fs;
  readonly #process: Process;
  readonly #path: string;
  readonly #me: Holder;
  readonly #heartbeat: ReturnType<typeof setInterval>;

  constructor(fs: Fs, process: Process, host: string, directory: string) {
    this.#fs = fs;
    this.#process = process;
    this.#path = `${directory}/lock`;
    const id = crypto.randomUUID();
    this.#me = { id, pid: process.pid, host, start: this.#startOf(process.pid) };
    this.#acquire();
    this.#heartbeat = setInterval(() => {
      this.#beat();
    }, HEARTBEAT_MS);
    (this.#heartbeat as { unref?: () => void }).unref?.();
  }

  /** Throws if another process has taken the lock, because this one was frozen for long. */
  check(): void {
    if (this.#holder()?.id !== this.#me.id) {
      throw new VibeFollowError('another process has taken over the spool', { status: 0, code: 'spool_lost' });
    }
  }

  release(): void {
    clearInterval(this.#heartbeat);
    if (this.#holder()?.id === this.#me.id) this.#fs.rmSync(this.#path, { force: true });
  }

  #acquire(): void {
    // Complete before it gets its name, so that no process reads a part of it.
    const draft = `${this.#path}.${this.#me.id}`;
    const fd = this.#fs.openSync(draft, 'w', 0o600);
    this.#fs.writeSync(fd, new TextEncoder().encode(JSON.stringify(this.#me)));
    this.#fs.closeSync(fd);
    try {
      while (!linkUnlessExists(this.#fs, draft, this.#path)) {
        const holder = this.#holder();
        if (holder && this.#isAlive(holder)) {
          throw new VibeFollowError(
            `the spool is used by process ${holder.pid} on ${holder.host}; give each process a directory of its own`,
            { status: 0, code: 'spool_in_use' },
          );
        }
        this.#removeLockOf(holder);
      }
    } finally {
      this.#fs.rmSync(draft, { force: true });
    }
  }

  /** Removes the lock of a dead process, unless another process has just replaced it by its own. */
  #removeLockOf(dead: Holder | undefined): void {
    const aside = `${this.#path}.${this.#me.id}.stale`;
    try {
      this.#fs.renameSync(this.#path, aside);
    } catch (error) {
      if ((error as { code?: unknown }).code === 'ENOENT') return;
      throw error;
    }
    if (this.#holder(aside)?.id !== dead?.id) linkUnlessExists(this.#fs, aside, this.#path);
    this.#fs.rmSync(aside, { force: true });
  }

  #holder(path = this.#path): Holder | undefined {
    const text = this.#text(path);
    const holder = (text === undefined ? undefined : object(text)) as Partial<Holder> | undefined;
    return typeof holder?.id === 'string' && typeof holder.pid === 'number' ? (holder as Holder) : undefined;
  }

  #isAlive(holder: Holder): boolean {
    if (holder.host !== this.#me.host) {
      return Date.now() - this.#fs.statSync(this.#path).mtimeMs < STALE_MS;
    }
    if (holder.start !== undefined && this.#me.start !== undefined) {
      return this.#startOf(holder.pid) === holder.start;
    }
    try {
      this.#process.kill(holder.pid, 0);
      return true;
    } catch (error) {
      return (error as { code?: unknown }).code !== 'ESRCH';
    }
  }

  /** The boot of the machine and the start of a process on Linux. Undefined for a process that has ended. */
  #startOf(pid: number): string | undefined {
    const stat = this.#text(`/proc/${pid}/stat`);
    const boot = this.#text('/proc/sys/kernel/random/boot_id');
    if (stat === undefined || boot === undefined) return undefined;
    // The name of the program, in parentheses, can contain anything. The state follows, and 19 fields later the start.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' || fields[0] === 'X' ? undefined : `${boot.trim()} ${fields[19]}`;
  }

  #beat(): void {
    if (this.#holder()?.id !== this.#me.id) return;
    try {
      this.#fs.utimesSync(this.#path, new Date(), new Date());
    } catch {
      // The next check() reports it.
    }
  }

  #text(path: string): string | undefined {
    try {
      return new TextDecoder().decode(this.#fs.readFileSync(path));
    } catch {
      return undefined;
    }
  }
}

/** Gives a file a second name. Returns false if that name exists. */
function linkUnlessExists(fs: Fs, from: string, to: string): boolean {
  try {
    fs.linkSync(from, to);
    return true;
  } catch (error) {
    if ((error as { code?: unknown }).code === 'EEXIST') return false;
    throw error;
  }
}

/** The complete lines of a file. A line that is not UTF-8 becomes an empty one. */
function completeLines(bytes: Uint8Array): string[] {
  const lines: string[] = [];
  for (let start = 0, end; (end = bytes.indexOf(NEWLINE, start)) >= 0; start = end + 1) {
    try {
      lines.push(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes.subarray(start, end)));
    } catch {
      lines.push('');
    }
  }
  return lines;
}

/** Parses a JSON object. Returns undefined for anything else. */
function object(line: string): object | undefined {
  try {
    const value: unknown = JSON.parse(line);
    return typeof value === 'object' && value !== null && !Array.isArray(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

function failed(what: string, cause: unknown): VibeFollowError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  const error = new VibeFollowError(`${what}: ${reason}`, { status: 0, code: 'spool_failed' });
  Object.defineProperty(error, 'cause', { value: cause, configurable: true });
  return error;
}
