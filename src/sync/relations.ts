// Relation messages against the schema plan: which planned table a change belongs to, and whether the source's table
// still is what was planned. The stream brings no DDL; its only trace is a Relation message that looks different.
import { MigrationError } from '../model/errors.ts';
import { relationKey, type RelationName } from '../model/relation.ts';
import { isLeftOut, type PlannedColumn, type PlannedTable } from '../model/schema-plan.ts';
import type { Side } from '../postgres/connections.ts';
import type { RelationMessage } from '../postgres/pgoutput-messages.ts';
import { HOLDS_CHANGED, type HeldRelation } from './held-changes.ts';
import type { BatchShape } from './table-batch.ts';
import { widens } from './widen-columns.ts';

/** A planned table as the stream sends it. */
export interface StreamedTable {
  /** `relationKey` of the source table. */
  readonly key: string;
  readonly plan: PlannedTable;
  /** In the order of the message's tuples; generated columns are not among them. */
  readonly columns: readonly PlannedColumn[];
  /** Of a tuple as it comes, where columns are ignored: those of `columns`. Null: all, in this order. */
  readonly kept: readonly number[] | null;
  /** Positions of the replica identity's columns in a tuple; empty under identity full. */
  readonly keyPositions: readonly number[];
  /** How its changes are coalesced (table-batch.ts); null: every change goes the ordered way. */
  readonly shape: Omit<BatchShape, 'binary'> | null;
  /** Whether updates may be coalesced, too. */
  readonly setUpdates: boolean;
}

/** A table of the publication: one of the plan's, applied or set aside, or the marker table of a source of version 13. */
export type KnownRelation =
  | { readonly kind: 'table'; readonly table: StreamedTable }
  | ({ readonly kind: 'held' } & HeldRelation)
  | { readonly kind: 'marker' };

/**
 * What differs between plan and message, in words; null when nothing does. `types` are the format_type texts of the
 * message's columns.
 */
export function relationDifference(
  plan: PlannedTable,
  message: RelationMessage,
  types: readonly string[],
): string | null {
  const planned = plan.columns.filter((column) => !column.generated);
  const names = new Map(message.columns.map((column, position) => [column.name, position]));
  // messages from before the DDL that brought it do not have an added column
  const missing = planned
    .filter((column) => !names.has(column.name) && !column.added)
    .map((column) => column.name);
  const known = new Set(plan.columns.map((column) => column.name));
  const isForeign = ({ name }: { readonly name: string }): boolean =>
    !known.has(name) && !isLeftOut(plan, name);
  const added = message.columns.filter(isForeign).map((column) => column.name);
  if (missing.length === 1 && added.length === 1)
    return `column ${missing[0]} was renamed to ${added[0]}, or dropped while ${added[0]} was added`;
  if (missing.length > 0) return `column ${missing.join(', ')} was dropped or renamed`;
  if (added.length > 0) return `column ${added.join(', ')} was added`;
  const sent = planned.filter((column) => names.has(column.name));
  for (const column of sent) {
    const type = types[names.get(column.name) ?? -1];
    const wasNarrower = column.widenedUntil !== undefined && widens(type ?? '', column.type);
    if (type !== column.type && !wasNarrower)
      return `column ${column.name} changed its type from ${column.type} to ${type}`;
  }
  const expected = message.columns.filter(({ name }) => known.has(name));
  if (expected.length !== sent.length) return 'a column changed between generated and ordinary';
  // A plan without a key is `default` for `nothing`, too: neither can send an update or delete.
  const keyless = plan.replicaIdentity === 'default' && plan.keyColumns.length === 0;
  const identity = keyless && message.replicaIdentity === 'nothing' ? 'default' : message.replicaIdentity;
  // by the primary key or by an index is one as long as the columns are the same
  if (identity !== plan.replicaIdentity && [identity, plan.replicaIdentity].some((each) => !isByKey(each)))
    return `its replica identity changed from ${plan.replicaIdentity} to ${message.replicaIdentity}`;
  if (plan.replicaIdentity === 'full') return null;
  const keys = message.columns.filter((column) => column.key).map((column) => column.name);
  const wanted = new Set(plan.keyColumns);
  if (keys.length !== wanted.size || keys.some((name) => !wanted.has(name)))
    return `its key changed from (${plan.keyColumns.join(', ')}) to (${keys.join(', ')})`;
  return null;
}

const isByKey = (identity: RelationMessage['replicaIdentity']): boolean =>
  identity === 'default' || identity === 'index';

function sourceDdl(table: string, change: string): MigrationError {
  return new MigrationError('source_ddl', `source: ${table}: ${change}`, {
    hint:
      'DDL is not replicated. Undo it on the source and resume (changes that were made under the new structure may ' +
      'still stop the stream), or cancel this migration and start a new one',
    details: { table, change },
  });
}

/** Not among them: numeric (scale), floats (−0), interval, bpchar (blanks), citext and other types of extensions. */
const bytewiseTypes =
  '{bool,bytea,name,int2,int4,int8,text,varchar,oid,date,timestamp,timestamptz,uuid,pg_lsn,macaddr}';

/**
 * What may be coalesced. Without a key: inserts only, what else happens is a barrier. A key whose equality is not bytewise:
 * nothing. GENERATED ALWAYS AS IDENTITY outside of the key: no updates, for the server refuses to set it.
 */
function coalescingOf(
  { columns, keyPositions, kept }: Pick<StreamedTable, 'columns' | 'keyPositions' | 'kept'>,
  sent: number,
  bytewise: ReadonlySet<string>,
): Pick<StreamedTable, 'shape' | 'setUpdates'> {
  const keys = [...keyPositions].sort((a, b) => a - b);
  const all = columns.length > 0 && keys.every((position) => bytewise.has(columns[position]?.name ?? ''));
  if (!all) return { shape: null, setUpdates: false };
  const integers = ['smallint', 'integer', 'bigint'];
  const [first] = keys;
  const integerKey = keys.length === 1 && integers.includes(columns[first ?? 0]?.type ?? '');
  const setUpdates =
    keys.length > 0 && !columns.some((column, position) => column.identityAlways && !keys.includes(position));
  return { shape: { columns: columns.length, sent, kept, keys, integerKey }, setUpdates };
}

function shapeOf(message: RelationMessage): string {
  return JSON.stringify([relationKey(message), message.replicaIdentity, message.columns]);
}

/**
 * The tables by the relation ids of one walsender connection. `held`: their changes are set aside; `isComing`: whether a
 * table that is not planned is being added.
 */
export class RelationMap {
  readonly #source: Side;
  readonly #target: Side;
  readonly #planned: ReadonlyMap<string, PlannedTable>;
  readonly #marker: string | null;
  readonly #held: ReadonlySet<string>;
  readonly #isComing: (table: string) => boolean;
  readonly #known = new Map<number, { readonly shape: string; readonly relation: KnownRelation }>();
  /** By OID and modifier. */
  readonly #typeNames = new Map<string, string>();
  /** By `relationKey` of the target's table. */
  #bytewiseColumns: Promise<ReadonlyMap<string, ReadonlySet<string>>> | null = null;

  constructor(
    sides: { readonly source: Side; readonly target: Side },
    tables: readonly PlannedTable[],
    marker: RelationName | null,
    {
      held = new Set(),
      isComing = () => false,
    }: { readonly held?: ReadonlySet<string>; readonly isComing?: (table: string) => boolean } = {},
  ) {
    this.#source = sides.source;
    this.#target = sides.target;
    this.#planned = new Map(tables.map((table) => [relationKey(table.source), table]));
    this.#marker = marker === null ? null : relationKey(marker);
    this.#held = held;
    this.#isComing = isComing;
  }

  /**
   * Takes a Relation message in, `raw` as it came. Throws `source_ddl` when the table is not the planned one any more;
   * HOLDS_CHANGED for one that is being added.
   */
  async learn(message: RelationMessage, raw: Buffer): Promise<void> {
    const key = relationKey(message);
    const shape = shapeOf(message);
    if (this.#known.get(message.relationId)?.shape === shape) return;
    this.#known.set(message.relationId, { shape, relation: await this.#identify(key, message, raw) });
  }

  /** Whether a relation that is known has got other columns: what came before the message is to be read with the old ones. */
  reshapes(message: RelationMessage): boolean {
    const known = this.#known.get(message.relationId);
    return known !== undefined && known.shape !== shapeOf(message);
  }

  /** Throws `internal` for an id without a Relation message: the protocol sends it first. */
  get(relationId: number): KnownRelation {
    const known = this.#known.get(relationId);
    if (!known)
      throw new MigrationError('internal', `source: a change of the unknown relation ${relationId}`, {
        details: { relationId },
      });
    return known.relation;
  }

  async #identify(key: string, message: RelationMessage, raw: Buffer): Promise<KnownRelation> {
    if (key === this.#marker) return { kind: 'marker' };
    // its columns are compared when it is applied
    if (this.#held.has(key)) return { kind: 'held', key, description: raw };
    const plan = this.#planned.get(key);
    if (!plan && this.#isComing(key)) throw HOLDS_CHANGED;
    if (!plan)
      throw sourceDdl(key, 'a table was renamed, moved to another schema, or added to the publication');
    this.#bytewiseColumns ??= this.#readBytewise();
    const [types, columnsByTable] = await Promise.all([this.#types(message), this.#bytewiseColumns]);
    const bytewise = columnsByTable.get(relationKey(plan.target)) ?? new Set();
    const difference = relationDifference(plan, message, types);
    if (difference !== null) throw sourceDdl(key, difference);
    const byName = new Map(plan.columns.map((column) => [column.name, column]));
    const kept = message.columns.flatMap(({ name }, at) =>
      byName.has(name) || !isLeftOut(plan, name) ? [at] : [],
    );
    const columns = kept.map((at): PlannedColumn => {
      const column = message.columns[at] ?? { name: '' };
      const planned = byName.get(column.name);
      if (!planned) throw sourceDdl(key, `column ${column.name} was added`);
      return planned;
    });
    const position = new Map(columns.map((column, index) => [column.name, index]));
    const keyColumns = plan.replicaIdentity === 'full' ? [] : plan.keyColumns;
    const keyPositions = keyColumns.map((name) => position.get(name) ?? -1);
    const sent = message.columns.length;
    const table = { key, plan, columns, kept: kept.length === sent ? null : kept, keyPositions };
    const coalescing = coalescingOf(table, sent, bytewise);
    return { kind: 'table', table: { ...table, ...coalescing } };
  }

  /**
   * The target's columns whose `=` holds for identical values only: rows may be told apart by their bytes. Of all tables at
   * once: after a reconnection each of thousands sends a Relation message.
   */
  async #readBytewise(): Promise<ReadonlyMap<string, ReadonlySet<string>>> {
    const targets = [...this.#planned.values()].map(({ target }) => target);
    const { rows } = await this.#target.query<{ schema: string; name: string; columns: string[] }>(
      // one level of domains; enums are sent as labels
      `select w.schema, w.name, array_agg(a.attname::text) as columns
       from unnest($1::text[], $2::text[]) as w(schema, name)
         join pg_namespace n on n.nspname = w.schema
         join pg_class c on c.relnamespace = n.oid and c.relname = w.name join pg_attribute a on a.attrelid = c.oid
         join pg_type t on t.oid = a.atttypid left join pg_type b on b.oid = t.typbasetype
         left join pg_collation k on k.oid = a.attcollation
       where a.attnum > 0 and not a.attisdropped
         and coalesce(k.collisdeterministic, true)
         and (coalesce(b.typtype, t.typtype) = 'e' or coalesce(b.oid, t.oid) = any ($3::regtype[]))
       group by w.schema, w.name`,
      [targets.map(({ schema }) => schema), targets.map(({ name }) => name), bytewiseTypes],
    );
    return new Map(rows.map((row) => [relationKey(row), new Set(row.columns)]));
  }

  /** The message has the type's OID on the source; the plan has its name, which is the same on both sides. */
  async #types(message: RelationMessage): Promise<readonly string[]> {
    const keyOf = ({ typeOid, typmod }: RelationMessage['columns'][number]): string => `${typeOid} ${typmod}`;
    const unknown = message.columns.filter((column) => !this.#typeNames.has(keyOf(column)));
    if (unknown.length > 0) {
      const { rows } = await this.#source.query<{ type: string }>(
        `select format_type(c.type, c.typmod) as type
         from unnest($1::oid[], $2::int[]) with ordinality as c(type, typmod, n) order by n`,
        [unknown.map(({ typeOid }) => typeOid), unknown.map(({ typmod }) => typmod)],
      );
      for (const [at, column] of unknown.entries()) this.#typeNames.set(keyOf(column), rows[at]?.type ?? '');
    }
    return message.columns.map((column) => this.#typeNames.get(keyOf(column)) ?? '');
  }
}
