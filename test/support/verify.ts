// A certificate as a user checks it: kept as the file that the API gives, verified by the command line.
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { verify } from '../../src/cli/verify.ts';
import { toSnake } from '../../src/model/case.ts';
import type { DatabasePair } from './databases.ts';

export interface Verified {
  readonly code: number;
  readonly lines: readonly string[];
}

/** `env` replaces what leads to the pair. */
export async function verifyCertificateOf(
  pair: DatabasePair,
  certificate: unknown,
  env: NodeJS.ProcessEnv = {},
): Promise<Verified> {
  const file = join(mkdtempSync(join(tmpdir(), 'dts-verify-')), 'certificate.json');
  writeFileSync(file, JSON.stringify(toSnake(certificate)));
  const lines: string[] = [];
  const leadsTo = { DTS_SOURCE_URL: pair.source.url, DTS_TARGET_URL: pair.target.url, ...env };
  return { code: await verify(file, {}, leadsTo, (line) => lines.push(line)), lines };
}
