// The hard schema of test/cases/schema, with everything that a database can have, across majors, as superuser and as
// plain owner, without and then with a suffix beside it: both sides print the same, by the product's own comparison and,
// line by line, by that of dump-lines.ts.
import { readFile } from 'node:fs/promises';
import { expect, onTestFinished, test } from 'vitest';
import type { EmbeddedMajor } from '../../src/cli/embedded-postgres.ts';
import { removeBookkeeping } from '../../src/postgres/bookkeeping.ts';
import { runStatement, statementsDone } from '../../src/postgres/statement-journal.ts';
import { schemaPlanOf } from '../../src/postgres/task-scope.ts';
import { compareSchema } from '../../src/schema/compare.ts';
import { createTables } from '../../src/schema/create-tables.ts';
import { makePair, type DatabasePair, type TestDatabase } from '../support/databases.ts';
import { lineDifference, linesOf } from '../support/dump-lines.ts';
import { startServers } from '../support/extra-servers.ts';
import { makeScope, type TestScope } from '../support/scope.ts';

startServers(15, 17);

const read = (name: string): Promise<string> =>
  readFile(new URL(`../cases/schema/${name}`, import.meta.url), 'utf8');
const parts = [
  { from: 13, sql: await read('hard.sql') },
  { from: 14, sql: await read('hard-14.sql') },
  { from: 15, sql: await read('hard-15.sql') },
  { from: 18, sql: await read('hard-18.sql') },
];
const superuserPart = await read('hard-superuser.sql');

type Who = 'superuser' | 'owner';

type Connection = TestDatabase['connection'];

interface HardPair {
  readonly pair: DatabasePair;
  readonly connections: { readonly sourceDb: Connection; readonly targetDb: Connection };
}

/** Both databases belong to a plain role, or nobody but the superuser is there. */
async function hardPair(source: EmbeddedMajor, target: EmbeddedMajor, who: Who): Promise<HardPair> {
  const admin = await makePair({ source, target, checkLeaks: false });
  const user = who === 'owner' ? `owner_${admin.source.dbname}` : 'postgres';
  const servers = source === target ? [admin.source] : [admin.source, admin.target];
  if (who === 'owner')
    for (const server of servers) {
      await server.query(`create role ${user} login replication password 'x'`);
      onTestFinished(async () => void (await server.query(`drop role ${user}`)));
    }
  const pair = await makePair({ source, target });
  const connections = {
    sourceDb: { ...pair.source.connection, user },
    targetDb: { ...pair.target.connection, user },
  };
  const sql = parts.filter(({ from }) => source >= from).map((part) => part.sql);
  if (who === 'superuser') {
    await pair.source.query([...sql, superuserPart].join('\n'));
    return { pair, connections };
  }
  for (const database of [pair.source, pair.target]) await giveTo(database, user);
  await pair.source.query(
    `set session authorization ${user}; ${sql.join('\n')}; reset session authorization`,
  );
  connections.sourceDb.password = 'x';
  connections.targetDb.password = 'x';
  return { pair, connections };
}

async function giveTo(database: TestDatabase, user: string): Promise<void> {
  await database.query(`alter database ${database.dbname} owner to ${user}`);
  await database.query(`alter schema public owner to ${user}`);
}

async function emptyTarget(major: EmbeddedMajor, user: string): Promise<TestDatabase> {
  const { target } = await makePair({ source: major, target: major });
  await giveTo(target, user);
  return target;
}

async function migrate(scope: TestScope): Promise<void> {
  await createTables(scope);
  const done = await statementsDone(scope);
  const session = await scope.target.session({ purpose: 'test', signal: scope.signal });
  for (const statement of schemaPlanOf(scope).statements)
    if (!done.has(statement.n)) await runStatement(scope, session, statement);
  await session.close();
}

test.each([
  [13, 18, 'owner'],
  [13, 18, 'superuser'],
  [15, 15, 'owner'],
  [15, 15, 'superuser'],
  [15, 18, 'owner'],
  [15, 18, 'superuser'],
  [16, 17, 'owner'],
  [16, 17, 'superuser'],
] as const)('the hard schema, %i to %i as %s, is the same but for listed spelling', async (from, to, who) => {
  const { pair, connections } = await hardPair(from, to, who);
  const optIns = who === 'superuser' ? { foreignTables: true, eventTriggers: true, publications: true } : {};
  const scope = makeScope(pair, { ...connections, options: optIns });
  await migrate(scope);
  const verdict = await compareSchema(scope);
  expect(verdict).toMatchObject({ error: null, differences: [], equal: true, targetOnly: [] });
  expect(verdict.statements).toBeGreaterThan(220);
  const findings = schemaPlanOf(scope).findings.map(({ code, object }) => `${code} ${object}`);
  expect(findings).toEqual(
    who === 'superuser' ? ['holds_secret USER MAPPING USER MAPPING public SERVER hard_server'] : [],
  );
  // nothing from 15 to 15; else the lines that majors spell differently, kept beside the schema
  const spelled = lineDifference(await linesOf(pair.source), await linesOf(pair.target));
  await expect(`${spelled.join('\n')}\n`).toMatchFileSnapshot(
    `../cases/schema/spelling-${from}-${to}-${who}.txt`,
  );
  const { rows } = await pair.target.query(
    `select relname::text as name, relispopulated as filled from pg_class where relkind = 'm' order by 1`,
  );
  expect(rows).toEqual([
    { name: 'first_view', filled: true },
    { name: 'never_filled', filled: false },
    { name: 'second_view', filled: true },
  ]);
  await removeBookkeeping(scope);
  await scope.connections.closeAll();

  const again = await emptyTarget(to, connections.targetDb.user);
  const renamed = makeScope(
    { source: pair.source, target: again },
    {
      ...connections,
      targetDb: { ...connections.targetDb, dbname: again.dbname },
      options: optIns,
      tableSuffix: '_Neu 1',
    },
  );
  await migrate(renamed);
  expect(await compareSchema(renamed)).toMatchObject({ error: null, differences: [], equal: true });
  await removeBookkeeping(renamed);
  await renamed.connections.closeAll();
});
