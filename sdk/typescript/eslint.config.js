import eslint from '@eslint/js';
import { defineConfig } from 'eslint/config';
import tseslint from 'typescript-eslint';

export default defineConfig(
  // The programs in test/ that run without TypeScript are plain JavaScript for several runtimes.
  { ignores: ['dist', 'test/consumers', '**/*.mjs'] },
  eslint.configs.recommended,
  tseslint.configs.strictTypeChecked,
  {
    languageOptions: {
      parserOptions: { projectService: { allowDefaultProject: ['eslint.config.js'] } },
    },
    rules: {
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true }],
    },
  },
  // The file is the example of the product page, word for word.
  { files: ['examples/page.ts'], rules: { '@typescript-eslint/no-non-null-assertion': 'off' } },
);
