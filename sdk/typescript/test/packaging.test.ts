import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { build as bundle } from 'esbuild';
import { afterAll, beforeAll, expect, it } from 'vitest';

// The output of `npm run build`, packed and installed as in a consumer's project.
const root = fileURLToPath(new URL('..', import.meta.url));
const consumer = mkdtempSync(join(tmpdir(), 'vibefollow-sdk-'));
const installed = join(consumer, 'node_modules/@vibefollow/sdk');

function run(command: string, ...args: string[]): string {
  return execFileSync(command, args, { cwd: consumer, encoding: 'utf8', timeout: 60_000 });
}

beforeAll(() => {
  execFileSync('npm', ['pack', '--silent', '--ignore-scripts', '--pack-destination', consumer], { cwd: root });
  mkdirSync(installed, { recursive: true });
  const [tarball = 'none'] = readdirSync(consumer).filter((name) => name.endsWith('.tgz'));
  run('tar', '-xzf', tarball, '-C', installed, '--strip-components=1');
  cpSync(join(root, 'test/consumers'), consumer, { recursive: true });
  const compilerOptions = {
    strict: true,
    exactOptionalPropertyTypes: true,
    target: 'ES2022',
    module: 'NodeNext',
    types: [],
    lib: ['ES2022', 'DOM'],
    outDir: 'out',
  };
  writeFileSync(
    join(consumer, 'tsconfig.json'),
    JSON.stringify({ compilerOptions, files: ['esm.mts', 'cjs.cts'] }),
  );
  writeFileSync(join(consumer, 'package.json'), '{"private":true}');
}, 60_000);

afterAll(() => {
  rmSync(consumer, { recursive: true });
});

it('type-checks and runs as an ES module and as CommonJS, and lets the process end', () => {
  run(process.execPath, join(root, 'node_modules/typescript/bin/tsc'));
  expect(run(process.execPath, 'out/esm.mjs')).toBe(
    'esm {"events":[{"external_user_id":"usr_42","name":"signed_up","properties":{"plan":"trial"},"timestamp":"1970-01-01T00:00:00.000Z"}]}\n',
  );
  expect(run(process.execPath, 'out/cjs.cjs')).toBe('cjs ValidationError validation_failed usr_42\n');
}, 120_000);

it('type-checks for an older target and library', () => {
  const flags = ['--ignoreConfig', '--noEmit', '--strict', '--module', 'nodenext'];
  const old = ['--target', 'ES2020', '--lib', 'ES2020,DOM'];
  run(process.execPath, join(root, 'node_modules/typescript/bin/tsc'), ...flags, ...old, 'cjs.cts');
}, 120_000);

it('contains only the build, and has no dependencies', () => {
  expect(readdirSync(installed).sort()).toEqual(['LICENSE', 'README.md', 'dist', 'package.json']);
  const files = readdirSync(join(root, 'src')).flatMap((name) => {
    const module = name.replace(/\.ts$/, '');
    return [`${module}.d.ts`, `${module}.js`, `${module}.js.map`];
  });
  expect(readdirSync(join(installed, 'dist/esm')).sort()).toEqual(files.sort());
  expect(readdirSync(join(installed, 'dist/cjs')).sort()).toEqual([...files, 'package.json'].sort());
  const manifest = JSON.parse(readFileSync(join(installed, 'package.json'), 'utf8')) as object;
  expect(manifest).toMatchObject({ name: '@vibefollow/sdk', private: true });
  expect(manifest).not.toHaveProperty('dependencies');
});

it('has the size that the README states, bundled, minified, and gzipped', async () => {
  const { outputFiles } = await bundle({
    entryPoints: [join(installed, 'dist/esm/index.js')],
    bundle: true,
    minify: true,
    format: 'esm',
    write: false,
  });
  const kilobytes = gzipSync(outputFiles[0]?.contents ?? '', { level: 9 }).length / 1_000;
  const readme = readFileSync(join(installed, 'README.md'), 'utf8');
  expect(readme).toContain(`it is ${kilobytes.toFixed(1)} KB gzipped`);
  expect(kilobytes).toBeLessThan(9);
});

it('exports the same names from both kinds of module', async () => {
  const esm = (await import(join(installed, 'dist/esm/index.js'))) as object;
  const names = run(
    process.execPath,
    '-p',
    'JSON.stringify(Object.keys(require("@vibefollow/sdk")).filter((name) => name !== "__esModule"))',
  );
  expect((JSON.parse(names) as string[]).sort()).toEqual(Object.keys(esm).sort());
  expect(Object.keys(esm).sort()).toEqual([
    'AuthError',
    'NetworkError',
    'RateLimitError',
    'ServerError',
    'ValidationError',
    'VibeFollow',
    'VibeFollowError',
    'chunk',
  ]);
});
