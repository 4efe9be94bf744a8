// Markers in `dts.part`: a part is done if and only if its marker of the present slot exists, because the marker commits
// together with the rows. Read at the start and after every failure: the target knows, our memory may not.
import type { Lsn } from '../model/lsn.ts';
import { formatRange } from '../model/part-range.ts';
import type { Session } from '../postgres/connections.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import { partKey, type CopyPart, type Marker } from './plan.ts';

interface MarkerRow {
  readonly relation: string;
  readonly part: number;
  readonly rows: string;
  readonly bytes: string;
  readonly epoch: number;
}

function fromRow(row: MarkerRow): Marker {
  const { relation, part, epoch } = row;
  return { relation, part, rows: Number(row.rows), bytes: Number(row.bytes), generation: epoch };
}

const columns = 'relation, part, rows::text, bytes::text, epoch';

/** Every marker of the task under this slot, by `partKey`. */
export async function readMarkers(scope: TaskScope, slotIncarnation: string): Promise<Map<string, Marker>> {
  const { rows } = await scope.target.query<MarkerRow>(
    `select ${columns} from dts.part where task_id = $1 and slot_incarnation = $2`,
    [scope.taskId, slotIncarnation],
  );
  return new Map(rows.map((row) => [partKey(row), fromRow(row)]));
}

/** The marker of one part as `session` sees it now. */
export async function findMarker(
  scope: TaskScope,
  slotIncarnation: string,
  part: CopyPart,
  session: Session,
): Promise<Marker | null> {
  const { rows } = await session.client.query<MarkerRow>(
    `select ${columns} from dts.part where task_id = $1 and slot_incarnation = $2 and relation = $3 and part = $4`,
    [scope.taskId, slotIncarnation, part.relation, part.part],
  );
  return rows[0] === undefined ? null : fromRow(rows[0]);
}

/** Writes the marker into the transaction that holds the part's rows. */
export async function writeMarker(
  scope: TaskScope,
  slotIncarnation: string,
  part: CopyPart,
  read: { readonly pgSnapshot: string; readonly horizonLsn: Lsn },
  marker: Marker,
  session: Session,
): Promise<void> {
  await session.client.query(
    `insert into dts.part (task_id, slot_incarnation, relation, part, range, pg_snapshot, horizon_lsn, rows, bytes, epoch)
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
    [
      scope.taskId,
      slotIncarnation,
      part.relation,
      part.part,
      formatRange(part.range),
      read.pgSnapshot,
      read.horizonLsn,
      marker.rows,
      marker.bytes,
      marker.generation,
    ],
  );
}
