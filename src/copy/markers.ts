// Markers in `dts.part`: a part is done if and only if its marker of the present slot exists, because the marker commits
// together with the rows. Read at the start and after every failure: the target knows, our memory may not.
import type { Lsn } from '../model/lsn.ts';
import { formatRange } from '../model/part-range.ts';
import type { Queryable } from '../postgres/flush-wal.ts';
import { literal } from '../postgres/sql.ts';
import { emptyTable } from '../postgres/existing-tables.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import { PATIENT } from '../postgres/transaction-options.ts';
import { partKey, type CopyPart, type Marker } from './plan.ts';

export interface MarkerRow {
  readonly relation: string;
  readonly part: number;
  readonly rows: string;
  readonly bytes: string;
  readonly epoch: number;
}

export function markerFromRow(row: MarkerRow): Marker {
  const { relation, part, epoch } = row;
  return { relation, part, rows: Number(row.rows), bytes: Number(row.bytes), generation: epoch };
}

const columns = 'relation, part, rows::text, bytes::text, epoch';

/** Every marker of the task under this slot, by `partKey`. */
export async function readMarkers(
  scope: TaskScope,
  slotIncarnation: string,
  target: Queryable = scope.target,
): Promise<Map<string, Marker>> {
  const { rows } = await target.query<MarkerRow>(
    `select ${columns} from dts.part where task_id = $1 and slot_incarnation = $2`,
    [scope.taskId, slotIncarnation],
  );
  return new Map(rows.map((row) => [partKey(row), markerFromRow(row)]));
}

function ofTable(scope: TaskScope, slotIncarnation: string, relation: string): string {
  return (
    `task_id = ${literal(scope.taskId)} and slot_incarnation = ${literal(slotIncarnation)} ` +
    `and relation = ${literal(relation)}`
  );
}

/** Statement for the marker of one part as its session sees it now; rows are `MarkerRow`s. */
export function findMarkerSql(
  scope: TaskScope,
  slotIncarnation: string,
  { relation, part }: CopyPart,
): string {
  return `select ${columns} from dts.part where ${ofTable(scope, slotIncarnation, relation)} and part = ${part}`;
}

/**
 * Statement for one row `strange`: whether the target's table has rows though no marker explains any. In one snapshot, so
 * that a part which commits meanwhile shows both or neither; not looked at once there is a marker, when rows are many.
 */
export function tableIsStrangeSql(
  scope: TaskScope,
  slotIncarnation: string,
  relation: string,
  target: string,
): string {
  return `select case when exists (select from dts.part where ${ofTable(scope, slotIncarnation, relation)}) then false
                 else exists (select from only ${target}) end as strange`;
}

/** Statement that writes the marker into the transaction that holds the part's rows. */
export function writeMarkerSql(
  scope: TaskScope,
  slotIncarnation: string,
  { relation, part, range }: CopyPart,
  read: { readonly pgSnapshot: string; readonly horizonLsn: Lsn },
  { rows, bytes, generation }: Marker,
): string {
  const text = formatRange(range);
  const texts = [scope.taskId, slotIncarnation, relation].map(literal).join(', ');
  return `insert into dts.part (task_id, slot_incarnation, relation, part, range, pg_snapshot, horizon_lsn, rows, bytes, epoch)
     values (${texts}, ${part}, ${text === null ? 'null' : literal(text)}, ${literal(read.pgSnapshot)},
             ${literal(read.horizonLsn)}, ${rows}, ${bytes}, ${generation})`;
}

/** Empties the target's table and forgets its markers: its parts must share one snapshot, and that one is gone. */
export async function startOver(
  scope: TaskScope,
  slotIncarnation: string,
  { relation, table }: Pick<CopyPart, 'relation' | 'table'>,
): Promise<void> {
  await scope.target.transaction(async (client) => {
    await client.query(`set local lock_timeout = '30s'`);
    // first the table: behind its lock a predecessor's part has ended, and its marker, if any, is seen
    await emptyTable(scope, client, table.target);
    await client.query(`delete from dts.part where ${ofTable(scope, slotIncarnation, relation)}`);
    // what an online validation has found out about the rows is not true of those that will come
    await client.query(
      `insert into dts.changed (task_id, relation, keys)
       select task_id, $2, null from dts.progress where task_id = $1 and tracking`,
      [scope.taskId, relation],
    );
  }, PATIENT);
}
