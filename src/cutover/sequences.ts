// Sets the target's sequences to where the source's stand, under the fence, for prepareTarget, and sees to it that they
// are still there when the target opens, for settle. nextval is not fenced: a value drawn on the source afterwards belongs
// to a row that cannot be written there any more.
import { MigrationError } from '../model/errors.ts';
import { relationKey, type RelationName } from '../model/relation.ts';
import type { SequenceVerdict } from '../model/certificate.ts';
import type { Side } from '../postgres/connections.ts';
import { identRelation } from '../postgres/sql.ts';
import { schemaPlanOf, type TaskScope } from '../postgres/task-scope.ts';

/** Sequences read by one statement. */
const BATCH = 200;

interface Position {
  readonly last_value: string;
  readonly is_called: boolean;
  readonly increment: string;
  readonly min: string;
  readonly max: string;
}

/**
 * Copies `last_value` and `is_called` exactly (a cached sequence's includes the values handed out in advance; max(col)
 * knows nothing of rows that were deleted), `sequence_margin` values ahead where these are left before the sequence's end,
 * and reads them back. Idempotent.
 * Errors: `target_conflict` when a sequence of the target moves meanwhile.
 */
export async function copySequences(scope: TaskScope): Promise<SequenceVerdict[]> {
  const { sequences } = schemaPlanOf(scope);
  const verdicts: SequenceVerdict[] = [];
  for (let from = 0; from < sequences.length; from += BATCH) {
    scope.signal.throwIfAborted();
    const batch = sequences.slice(from, from + BATCH);
    const positions = await readPositions(
      scope.source,
      batch.map((sequence) => sequence.source),
    );
    const targets = batch.map((sequence) => sequence.target);
    const ahead = positions.map((position) => advance(position, scope.spec.options.sequenceMargin));
    await setPositions(scope.target, targets, ahead);
    const found = await readPositions(scope.target, targets);
    for (const [index, { source, target }] of batch.entries()) {
      const wanted = ahead[index];
      const now = found[index];
      if (!wanted || now?.last_value !== wanted.last_value || now.is_called !== wanted.is_called) {
        throw new MigrationError(
          'target_conflict',
          `target: sequence ${relationKey(target)} moves while it is set`,
          {
            hint: 'somebody uses the target already: stop that, then request the cutover again',
            details: { role: 'target', sequence: relationKey(target) },
          },
        );
      }
      verdicts.push({
        source: relationKey(source),
        target: relationKey(target),
        sourceLastValue: positions[index]?.last_value ?? wanted.last_value,
        lastValue: wanted.last_value,
        isCalled: wanted.is_called,
      });
    }
  }
  return verdicts;
}

/**
 * Before the target opens: sets again what it has lost since copySequences (a failover to a standby that was behind) and
 * reads it back. `verdicts` are those of the plan, for the source may be gone by now. A sequence that is ahead is in use,
 * and is never set back. Idempotent. Errors: `target_conflict` when a sequence does not keep its position.
 */
export async function restoreSequences(
  scope: TaskScope,
  verdicts: readonly SequenceVerdict[],
): Promise<void> {
  const wantedBy = new Map(verdicts.map((verdict) => [verdict.target, verdict]));
  const { sequences } = schemaPlanOf(scope);
  for (let from = 0; from < sequences.length; from += BATCH) {
    scope.signal.throwIfAborted();
    const targets = sequences.slice(from, from + BATCH).map((sequence) => sequence.target);
    const lost = await findLost(scope, targets, wantedBy);
    if (lost.length === 0) continue;
    scope.log.warn({ sequences: lost.map(({ target }) => relationKey(target)) }, 'sequences are set again');
    await setPositions(
      scope.target,
      lost.map(({ target }) => target),
      lost.map(({ verdict }) => ({ last_value: verdict.lastValue, is_called: verdict.isCalled })),
    );
    const [stillLost] = await findLost(scope, targets, wantedBy);
    if (stillLost) {
      const sequence = relationKey(stillLost.target);
      throw new MigrationError('target_conflict', `target: sequence ${sequence} does not keep its position`, {
        hint: `somebody sets it on the target: stop that; it must reach ${stillLost.verdict.lastValue}`,
        details: { role: 'target', sequence },
      });
    }
  }
}

async function findLost(
  scope: TaskScope,
  targets: readonly RelationName[],
  wantedBy: ReadonlyMap<string, SequenceVerdict>,
): Promise<{ target: RelationName; verdict: SequenceVerdict }[]> {
  const found = await readPositions(scope.target, targets);
  return targets.flatMap((target, index) => {
    const verdict = wantedBy.get(relationKey(target));
    const now = found[index];
    if (!verdict || !now)
      throw new MigrationError('internal', `target: sequence ${relationKey(target)} has no position`);
    return isBehind(now, verdict) ? [{ target, verdict }] : [];
  });
}

function isBehind(now: Position, wanted: SequenceVerdict): boolean {
  const distance = BigInt(now.last_value) - BigInt(wanted.lastValue);
  if (distance === 0n) return wanted.isCalled && !now.is_called;
  return ascends(now) ? distance < 0n : distance > 0n;
}

function ascends(position: Position): boolean {
  return BigInt(position.increment) > 0n;
}

/** The position `margin` values later; the same where the sequence ends, or begins again, before. */
export function advance(position: Position, margin: number): Position {
  const next = BigInt(position.last_value) + BigInt(position.increment) * BigInt(margin);
  const fits = ascends(position) ? next <= BigInt(position.max) : next >= BigInt(position.min);
  return fits ? { ...position, last_value: next.toString() } : position;
}

async function setPositions(
  side: Side,
  sequences: readonly RelationName[],
  positions: readonly Pick<Position, 'last_value' | 'is_called'>[],
): Promise<void> {
  await side.query(
    `select setval(s.name::regclass, s.last_value, s.is_called)
     from unnest($1::text[], $2::bigint[], $3::boolean[]) as s(name, last_value, is_called)`,
    [
      sequences.map((sequence) => identRelation(sequence)),
      positions.map((position) => position.last_value),
      positions.map((position) => position.is_called),
    ],
  );
}

async function readPositions(side: Side, sequences: readonly RelationName[]): Promise<Position[]> {
  const selects = sequences.map(
    (sequence, n) => `select ${n} as n, s.last_value::text, s.is_called, p.seqincrement::text as increment,
        p.seqmin::text as min, p.seqmax::text as max
      from ${identRelation(sequence)} s join pg_sequence p on p.seqrelid = s.tableoid`,
  );
  const { rows } = await side.query<Position>(`${selects.join(' union all ')} order by n`);
  return rows;
}
