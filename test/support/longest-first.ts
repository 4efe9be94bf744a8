// The order of the test files: what takes longest begins first, so that no worker is left alone with it in the end.
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** Parts of paths, the slowest first. */
const slow = [
  'test/crash/random-kills',
  'test/crash/reverse',
  'test/crash/kill.',
  'test/crash/',
  'test/e2e/many-tasks',
  'test/e2e/',
  'test/integration/',
];

function rankOf(file: string): number {
  const rank = slow.findIndex((part) => file.includes(part));
  return rank === -1 ? slow.length : rank;
}

export class LongestFirst extends BaseSequencer {
  /** Within a rank: as vitest orders them, by what it remembers of earlier runs or by size. */
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const ordered = await super.sort(files);
    return ordered.toSorted((a, b) => rankOf(a.moduleId) - rankOf(b.moduleId));
  }
}
