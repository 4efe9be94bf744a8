import { defineConfig } from 'vitest/config';
import { LongestFirst } from './test/support/longest-first.ts';

export default defineConfig({
  test: {
    include: ['test/{unit,integration,crash,e2e}/**/*.test.ts'],
    globalSetup: ['test/support/global-setup.ts'],
    testTimeout: 480_000,
    hookTimeout: 120_000,
    maxWorkers: 2,
    retry: 0,
    sequence: { sequencer: LongestFirst },
  },
});
