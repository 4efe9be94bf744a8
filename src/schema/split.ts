// Runs in dump-worker.ts: a dump of `pg_dump --verbose` → its entries, each with its statements read by PostgreSQL's own
// parser. The comment above every entry carries what the text alone does not say: the catalog row it was made from, and
// the entries that it belongs to. psql's meta commands and session settings are dropped.
import { parse } from 'libpg-query';
import { readStatement, type DumpStatement } from './statement.ts';

export interface DumpEntry {
  /** pg_dump's number of the entry, what `dependencies` of others name. */
  readonly dumpId: number;
  /** OIDs of the catalog and of the row in it; 0 where the entry is a property of another one (comments, ATTACH). */
  readonly classId: number;
  readonly objectId: number;
  /** Entries that this one needs or belongs to; pg_dump prints them where it made them itself. */
  readonly dependencies: readonly number[];
  /** pg_dump's word: `TABLE`, `FK CONSTRAINT`, `COMMENT` … */
  readonly kind: string;
  /** pg_dump's name of it, without schema and unquoted: for people only. */
  readonly tag: string;
  readonly schema: string | null;
  /** Of tables, where it is not `heap`: pg_dump sets it for the session, not in the statement. */
  readonly accessMethod: string | null;
  /** Of tables, indexes, constraints and materialized views; '' is the default, and always so where none are printed. */
  readonly tablespace: string;
  readonly statements: readonly DumpStatement[];
}

/** Parsing makes a tree many times as large as the text; a dump of ten thousand tables is parsed in pieces. */
const PIECE_LENGTH = 256 * 1024;
const ENTRY_COMMENT = /^--\n-- TOC entry \d+ \(class \d+ OID \d+\)\n/gm;

/** Throws what the parser throws when a piece is no SQL. */
export async function splitDump(text: string): Promise<DumpEntry[]> {
  // psql's \restrict opens and \unrestrict closes the dump; elsewhere such a line is somebody's text
  const dump = text.replace(/^(?:(?:--.*)?\n)*\\restrict .*\n/, '').replace(/\n\\unrestrict .*\s*$/, '\n');
  const starts = [...dump.matchAll(ENTRY_COMMENT)].map((match) => match.index);
  const entries: DumpEntry[] = [];
  let tableAccessMethod = 'heap';
  let tablespace = '';
  let from = 0;
  for (let next = 0; from < dump.length; next++) {
    while (next < starts.length && (starts[next] ?? 0) - from < PIECE_LENGTH) next++;
    const to = starts[next] ?? dump.length;
    const piece = dump.slice(from, to);
    const statements = await parsePiece(piece).catch((error: unknown) => {
      // A string or function body can hold a line that looks like an entry's comment: then take the next piece along.
      if (to < dump.length) return null;
      throw error;
    });
    if (statements === null) continue;
    for (const entry of entriesOf(statements)) {
      tableAccessMethod = entry.tableAccessMethod ?? tableAccessMethod;
      tablespace = entry.tablespace ?? tablespace;
      if (entry.header === null) continue;
      entries.push({
        ...entry.header,
        accessMethod:
          entry.header.kind === 'TABLE' && tableAccessMethod !== 'heap' ? tableAccessMethod : null,
        tablespace: haveTablespace.has(entry.header.kind) ? tablespace : '',
        statements: entry.statements,
      });
    }
    from = to;
  }
  return entries;
}

interface RawStatement {
  /** Comments and white space between the statement before and this one. */
  readonly before: string;
  readonly text: string;
  readonly bytes: Buffer;
  readonly byteStart: number;
  readonly tree: unknown;
}

async function parsePiece(text: string): Promise<RawStatement[]> {
  if (text.trim() === '') return [];
  const bytes = Buffer.from(text);
  const { stmts } = await parse(text);
  let end = 0;
  return (stmts ?? []).map(({ stmt, stmt_location: location = 0, stmt_len: length = 0 }) => {
    const byteEnd = length === 0 ? bytes.length : location + length;
    // before 18 the location included leading comments; skip them either way
    const lead = /^(?:\s|--[^\n]*(?:\n|$))*/.exec(bytes.toString('utf8', location, byteEnd))?.[0] ?? '';
    const byteStart = location + Buffer.byteLength(lead);
    const before = bytes.toString('utf8', end, byteStart);
    end = byteEnd;
    return {
      before,
      text: bytes.toString('utf8', byteStart, byteEnd).trimEnd(),
      bytes,
      byteStart,
      tree: stmt,
    };
  });
}

type EntryHeader = Omit<DumpEntry, 'statements' | 'accessMethod' | 'tablespace'>;

const haveTablespace: ReadonlySet<string> = new Set(['TABLE', 'INDEX', 'CONSTRAINT', 'MATERIALIZED VIEW']);

interface OpenEntry {
  readonly header: EntryHeader | null;
  readonly statements: DumpStatement[];
  tableAccessMethod: string | null;
  tablespace: string | null;
}

function entriesOf(statements: readonly RawStatement[]): OpenEntry[] {
  const entries: OpenEntry[] = [];
  let current: OpenEntry = { header: null, statements: [], tableAccessMethod: null, tablespace: null };
  entries.push(current);
  for (const raw of statements) {
    const header = lastHeader(raw.before);
    if (header !== null)
      entries.push((current = { header, statements: [], tableAccessMethod: null, tablespace: null }));
    const setting = readSetting(raw.tree);
    if (setting === null) current.statements.push(readStatement(raw));
    else if (setting.name === 'default_table_access_method') {
      // It stands after the comment of the table before: what follows belongs to the next entry.
      entries.push(
        (current = { header: null, statements: [], tableAccessMethod: setting.value, tablespace: null }),
      );
    } else if (setting.name === 'default_tablespace')
      entries.push(
        (current = { header: null, statements: [], tableAccessMethod: null, tablespace: setting.value }),
      );
  }
  return entries.filter(
    (entry) => entry.statements.length > 0 || entry.tableAccessMethod !== null || entry.tablespace !== null,
  );
}

/** The settings that pg_dump prints for psql; our sessions bring their own. */
function readSetting(tree: unknown): { readonly name: string; readonly value: string } | null {
  const node = tree as {
    VariableSetStmt?: { name?: string; args?: { A_Const?: { sval?: { sval?: string } } }[] };
    SelectStmt?: unknown;
  };
  if (node.SelectStmt !== undefined) return { name: 'search_path', value: '' };
  if (node.VariableSetStmt === undefined) return null;
  const { name = '', args = [] } = node.VariableSetStmt;
  return { name, value: args[0]?.A_Const?.sval?.sval ?? '' };
}

// Names come as they are: a tag may hold anything but a line end (pg_dump replaces those), so match from both ends.
const header =
  /^--\n-- TOC entry (\d+) \(class (\d+) OID (\d+)\)\n(?:-- Dependencies:((?: \d+)*)\n)?-- Name: (.*); Type: ([A-Z ]+); Schema: (.*); Owner: .*\n--\n/gm;

function lastHeader(comments: string): EntryHeader | null {
  const match = [...comments.matchAll(header)].at(-1);
  if (!match) return null;
  const [, dumpId = '', classId = '', objectId = '', dependencies = '', tag = '', kind = '', schema = ''] =
    match;
  return {
    dumpId: Number(dumpId),
    classId: Number(classId),
    objectId: Number(objectId),
    dependencies: dependencies.split(' ').filter(Boolean).map(Number),
    kind,
    tag,
    schema: schema === '-' ? null : schema,
  };
}
