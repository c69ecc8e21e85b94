import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: { include: ['test/**/*.test.ts'] },
  resolve: {
    // The tests run the source; test/packaging.test.ts alone runs what is built from it.
    alias: { '@vibefollow/sdk': fileURLToPath(new URL('src/index.ts', import.meta.url)) },
  },
});
