import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';

export default defineConfig({
  // Long enough for a machine that is busy with other things.
  test: { include: ['test/**/*.test.ts'], testTimeout: 30_000 },
  resolve: {
    // The tests run the source; test/packaging.test.ts alone runs what is built from it.
    alias: { '@vibefollow/sdk': fileURLToPath(new URL('src/index.ts', import.meta.url)) },
  },
});
