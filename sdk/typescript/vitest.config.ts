import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';

export default defineConfig({
  // Long enough for a busy machine.
  test: { include: ['test/**/*.test.ts'], testTimeout: 30_000 },
  resolve: {
    // The tests run the source. Only test/packaging.test.ts runs the build.
    alias: { '@vibefollow/sdk': fileURLToPath(new URL('src/index.ts', import.meta.url)) },
  },
});
