// Called when the target is complete: both sides dumped by the same pg_dump, statement by statement. What the source
// prints is put under the target's names first, so that with a suffix nothing differs but what should not. Only reads.
import { asMigrationError, MigrationError } from '../model/errors.ts';
import { relationKey } from '../model/relation.ts';
import { reverseNotes } from '../model/reverse.ts';
import type { SchemaDifference, SchemaVerdict } from '../model/schema-plan.ts';
import { SCHEMA_VERDICT, type TaskScope } from '../postgres/task-scope.ts';
import { identityNotes, type IdentityNote } from '../postgres/replica-identity.ts';
import { chooseDumper, dumpSchema, majorOf } from './dump.ts';
import { loosened, normalised } from './normalise.ts';
import { describeEntry } from './plan-findings.ts';
import { besidesOf, keepEntries, readPlanInput, type KeptEntries } from './plan-input.ts';
import { Renaming } from './rename.ts';
import type { DumpEntry } from './split.ts';
import type { DumpStatement } from './statement.ts';
import { isOurs } from './whole-database.ts';

const SHOWN = 200;

/** Also kept as a checkpoint, for the API. Never fails but when it is stopped: what could not be compared is a verdict, too. Errors: `aborted`. */
export async function compareSchema(scope: TaskScope): Promise<SchemaVerdict> {
  const verdict = await compare(scope);
  scope.checkpoints.set(SCHEMA_VERDICT, verdict);
  return verdict;
}

async function compare(scope: TaskScope): Promise<SchemaVerdict> {
  const comparedAt = new Date().toISOString();
  try {
    const input = await readPlanInput(scope);
    const { schemas, extensions } = input.dependencies;
    const narrow = !input.everything && !input.dependencies.beyondSchemas && schemas.length > 0;
    const target = await dumpSchema(scope, await chooseDumper(scope), {
      role: 'target',
      schemas: narrow ? schemas : null,
      extensions,
      besides: besidesOf(input.options),
    });
    const sameMajor = (await majorOf(scope, 'source')) === (await majorOf(scope, 'target'));
    const entries = withOldIdentities(input.entries, identityNotes(scope));
    return {
      comparedAt,
      error: null,
      ...compareEntries(
        keepEntries({ ...input, entries }),
        withOldIdentities(target, identityNotes(scope, reverseNotes.prefix)),
        sameMajor,
      ),
    };
  } catch (error) {
    const { code, message } = asMigrationError(error);
    if (scope.signal.aborted || code === 'aborted')
      throw new MigrationError('aborted', 'stopped on request', { cause: error });
    const nothing = { differences: [], differencesTotal: 0, spelling: [], targetOnly: [] };
    return { comparedAt, equal: false, statements: 0, ...nothing, error: message };
  }
}

/** As a side will be again when the task, or its way back, has ended: `options.replica_identity` holds for its time only. */
function withOldIdentities(
  entries: readonly DumpEntry[],
  notes: readonly IdentityNote[],
): readonly DumpEntry[] {
  const previous = new Map(notes.map((note) => [note.oid, note.previous]));
  return entries.map((entry) => {
    const had = entry.kind === 'TABLE' ? previous.get(entry.objectId) : undefined;
    if (had === undefined) return entry;
    const statements = entry.statements.flatMap((statement) => {
      if (!statement.text.endsWith(' REPLICA IDENTITY FULL')) return [statement];
      return had === 'n' ? [{ ...statement, text: statement.text.replace(/FULL$/, 'NOTHING') }] : [];
    });
    return { ...entry, statements };
  });
}

interface Printed {
  readonly object: string;
  readonly text: string;
  /** What an equal text has. */
  readonly strict: string;
  readonly loose: string;
  /** `relationKey` of what it is about, on the target. */
  readonly subject: string | null;
}

/** Pure. `target`: entries of the whole target, or of the schemas concerned. */
function compareEntries(
  { kept, renaming }: KeptEntries,
  target: readonly DumpEntry[],
  sameMajor: boolean,
): Omit<SchemaVerdict, 'comparedAt' | 'error'> {
  const expected = printedBy(kept, renaming);
  const found = printedBy(
    target.filter((entry) => !isOurs(entry)),
    new Renaming('', [], []),
  );
  const exact = unmatched(expected, found, ({ strict }) => strict);
  const spelling: SchemaDifference[] = [];
  const left = sameMajor
    ? exact
    : unmatched(
        exact.expected,
        exact.found,
        ({ loose }) => loose,
        (a, b) => spelling.push({ object: a.object, source: a.text, target: b.text }),
      );
  const ours = new Set(
    kept.flatMap(({ statements }) =>
      statements.flatMap(({ takes }) => takes.map((name) => relationKey(renaming.relation(name)))),
    ),
  );
  const named = new Set(expected.map(({ object }) => object));
  const isMeant = ({ object, subject }: Printed): boolean =>
    named.has(object) || (subject !== null && ours.has(subject));
  const differences = paired(left.expected, left.found.filter(isMeant));
  const targetOnly = new Set(left.found.filter((one) => !isMeant(one)).map(({ object }) => object));
  return {
    equal: differences.length === 0,
    statements: expected.length,
    differences: differences.slice(0, SHOWN),
    differencesTotal: differences.length,
    spelling: spelling.slice(0, SHOWN),
    targetOnly: [...targetOnly].slice(0, SHOWN),
  };
}

function printedBy(entries: readonly DumpEntry[], renaming: Renaming): Printed[] {
  return entries.flatMap((entry) =>
    entry.statements.map((statement) => {
      const text = renaming.printed(statement, false);
      const subject = statement.subject ? relationKey(renaming.relation(statement.subject)) : null;
      return {
        object: objectOf(entry, statement, subject, renaming),
        text,
        strict: normalised(text),
        loose: loosened(renaming.printed(statement, true)),
        subject,
      };
    }),
  );
}

/** Under the target's names, so that both sides call it the same. */
function objectOf(
  entry: DumpEntry,
  { takes: [taken], subject: source, constraint }: DumpStatement,
  subject: string | null,
  renaming: Renaming,
): string {
  if (taken) return `${entry.kind} ${relationKey(renaming.relation(taken))}`;
  if (subject === null || source === null) return describeEntry(entry);
  const tag = entry.tag.startsWith(`${source.name} `) ? entry.tag.slice(source.name.length + 1) : entry.tag;
  const name = tag === constraint ? renaming.constraint(tag, source) : tag;
  const named = tag === source.name ? '' : `${name} on `;
  return `${entry.kind} ${named}${subject}`;
}

/** What of two lists has no partner of the same key in the other; each statement has one partner at most. */
function unmatched(
  expected: readonly Printed[],
  found: readonly Printed[],
  keyOf: (printed: Printed) => string,
  matched: (expected: Printed, found: Printed) => void = () => undefined,
): { expected: Printed[]; found: Printed[] } {
  const byKey = new Map<string, Printed[]>();
  for (const one of found) {
    const list = byKey.get(keyOf(one));
    if (list) list.push(one);
    else byKey.set(keyOf(one), [one]);
  }
  const missing = expected.filter((one) => {
    const partner = byKey.get(keyOf(one))?.pop();
    if (partner) matched(one, partner);
    return !partner;
  });
  return { expected: missing, found: [...byKey.values()].flat() };
}

/** Statements about one object side by side. */
function paired(expected: readonly Printed[], found: readonly Printed[]): SchemaDifference[] {
  const rest = [...found];
  const differences = expected.map(({ object, text }): SchemaDifference => {
    const at = rest.findIndex((one) => one.object === object);
    const [partner] = at === -1 ? [] : rest.splice(at, 1);
    return { object, source: text, target: partner?.text ?? null };
  });
  return [
    ...differences,
    ...rest.map(({ object, text }): SchemaDifference => ({ object, source: null, target: text })),
  ];
}
