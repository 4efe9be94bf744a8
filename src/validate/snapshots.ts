// Digests of whole tables as they were when the target opened, computed afterwards: a snapshot on each side is taken
// before the opening and read while the application already works. So the certificate has them without a longer write
// stop. Called by settle, through the runtime.
import { MigrationError } from '../model/errors.ts';
import { relationKey } from '../model/relation.ts';
import type { TableVerdict } from '../model/certificate.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { schemaPlanOf, type TaskScope } from '../postgres/task-scope.ts';
import { ONE_SNAPSHOT } from '../postgres/transaction-options.ts';
import { compareTable } from './compare.ts';
import { closePair, needsRecoding, openPair, type SidePair } from './sessions.ts';

/** The application waits for the opening: without an answer by then the certificate has no whole digests. */
const SNAPSHOT_TIMEOUT_MS = 3_000;

interface HeldSnapshots {
  /** The verdicts, those by `changes` replaced by whole digests where the servers gave them in time; else `fault` tells why not. */
  digest(verdicts: readonly TableVerdict[]): Promise<Digested>;
  close(): Promise<void>;
}

interface Digested {
  readonly tables: readonly TableVerdict[];
  readonly fault: string | null;
}

/** Null when a side does not answer in time. Errors: `aborted`. */
export async function holdSnapshots(scope: TaskScope): Promise<HeldSnapshots | null> {
  const end = new AbortController();
  const signal = AbortSignal.any([scope.signal, end.signal]);
  const timer = setTimeout(() => end.abort(), SNAPSHOT_TIMEOUT_MS);
  try {
    const pair = await openPair(scope, signal);
    for (const { client } of [pair.source, pair.target]) {
      await client.query(ONE_SNAPSHOT.begin);
      await client.query('select pg_current_snapshot()'); // the first query takes it
    }
    clearTimeout(timer);
    return {
      digest: (verdicts) => digestAll(scope, verdicts, pair),
      close: () => closePair(pair),
    };
  } catch (error) {
    clearTimeout(timer);
    end.abort();
    if (scope.signal.aborted) throw new MigrationError('aborted', 'stopped on request', { cause: error });
    scope.log.warn({ err: fromPostgres(error) }, 'the certificate will lack digests of whole tables');
    return null;
  }
}

async function digestAll(
  scope: TaskScope,
  verdicts: readonly TableVerdict[],
  pair: SidePair,
): Promise<Digested> {
  const plans = new Map(schemaPlanOf(scope).tables.map((plan) => [relationKey(plan.source), plan]));
  const { validationTimeoutMs } = scope.spec.options;
  const deadline = Date.now() + validationTimeoutMs;
  let fault: string | null = null;
  const result: TableVerdict[] = [...verdicts];
  try {
    const recode = await needsRecoding(scope);
    for (const [index, verdict] of verdicts.entries()) {
      const plan = plans.get(verdict.table);
      if (verdict.method === 'full' || !plan) continue;
      if (Date.now() > deadline) {
        fault = `reading whole tables took longer than ${validationTimeoutMs} ms`;
        break;
      }
      scope.progress.setWaitingFor(`the certificate's digests, ${index} of ${verdicts.length} tables done`);
      const whole = await compareTable(plan, pair, recode);
      result[index] = { ...whole, verifiedLsn: verdict.verifiedLsn };
    }
  } catch (error) {
    if (scope.signal.aborted) throw new MigrationError('aborted', 'stopped on request', { cause: error });
    // Row-level security that begins with the opening, a lock, a lost connection: what was compared still holds.
    const known = fromPostgres(error);
    fault = `a whole table could not be read: ${known.message}`;
    scope.log.warn({ err: known }, 'the certificate lacks digests of some tables');
  } finally {
    scope.progress.setWaitingFor(null);
  }
  return { tables: result, fault };
}
