// Whether the stream sends values in binary form. Asked by stream.ts before every connection; a connection has one form for
// all its tables.
//
//   text while changes may come under a type  widen-columns.ts
//     that was narrower
//   text from a source of version 13          its pgoutput has no binary
//   text when a table has a type without a    chooseFormat, as for the copy
//     stable binary form on both servers
//   text when a key has a type whose text we  the keys of changed rows are written down as text (changed-keys.ts)
//     cannot tell from its bytes
//   binary otherwise
import { relationKey } from '../model/relation.ts';
import { chooseFormat, readTypes } from '../postgres/binary-form.ts';
import { schemaPlanOf, type TaskScope } from '../postgres/task-scope.ts';
import { hasEasyText } from './binary-text.ts';

const BINARY_SINCE = 140_000;

export interface StreamFormat {
  readonly binary: boolean;
  readonly reason: string;
}

/** `connection`: why it must be text, as far as the connection's own state tells; null: it tells nothing. */
export async function chooseStreamFormat(
  scope: TaskScope,
  sourceVersion: number,
  connection: string | null,
): Promise<StreamFormat> {
  const text = (reason: string): StreamFormat => ({ binary: false, reason });
  if (sourceVersion < BINARY_SINCE) return text('a source of version 13 sends text only');
  if (connection !== null) return text(connection);
  const { tables } = schemaPlanOf(scope);
  const [source, target] = await Promise.all([
    readTypes(
      scope.source,
      tables.map((table) => table.source),
    ),
    readTypes(
      scope.target,
      tables.map((table) => table.target),
    ),
  ]);
  for (const table of tables) {
    const { format, reason } = chooseFormat(table, source, target);
    if (format === 'text') return text(`${relationKey(table.source)}: ${reason}`);
    const odd = table.columns.find(({ name, type }) => table.keyColumns.includes(name) && !hasEasyText(type));
    if (odd) return text(`${relationKey(table.source)}: the key has a column of type ${odd.type}`);
  }
  return { binary: true, reason: 'every column has the same binary form on both servers' };
}
