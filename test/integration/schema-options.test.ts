// Owners, privileges, roles, extensions and tablespaces: by default nothing of them, else as the options say.
import { randomBytes } from 'node:crypto';
import { expect, onTestFinished, test } from 'vitest';
import { parseRequest } from '../../src/model/request.ts';
import { toCamel, toSnake } from '../../src/model/case.ts';
import { removeBookkeeping } from '../../src/postgres/bookkeeping.ts';
import { runStatement, statementsDone } from '../../src/postgres/statement-journal.ts';
import { schemaPlanOf } from '../../src/postgres/task-scope.ts';
import { compareSchema } from '../../src/schema/compare.ts';
import { createTables } from '../../src/schema/create-tables.ts';
import { planSchema } from '../../src/schema/plan.ts';
import { makePair, type DatabasePair, type TestDatabase } from '../support/databases.ts';
import { makeScope, type TestScope } from '../support/scope.ts';

const tag = randomBytes(4).toString('hex');
const names = {
  owner: `Owner ${tag}`,
  reader: `reader_${tag}`,
  renamed: `renamed_${tag}`,
  space: `space_${tag}`,
};

async function server(database: TestDatabase, roles: readonly string[]): Promise<void> {
  const client = await database.connect();
  for (const role of roles) await client.query(`create role "${role}"`);
  await client.query('set allow_in_place_tablespaces = on');
  await client.query(`create tablespace ${names.space} location ''`);
}

/** Roles and tablespaces outlive databases: they go last. */
async function pairWithRoles(): Promise<DatabasePair> {
  const admin = await makePair({ checkLeaks: false });
  onTestFinished(async () => {
    for (const database of [admin.source, admin.target]) {
      await database.query(`drop tablespace ${names.space}`);
      for (const role of [names.owner, names.reader, names.renamed])
        await database.query(`drop role if exists "${role}"`);
    }
  });
  await server(admin.source, [names.owner, names.reader]);
  await server(admin.target, [names.renamed]);
  const pair = await makePair();
  await pair.source.query(`
    create table plain (id serial primary key, secret text) tablespace ${names.space};
    create index plain_secret on plain (secret);
    create view seen as select id from plain;
    create function f() returns int language sql as 'select 1';
    alter table plain owner to "${names.owner}"; alter view seen owner to "${names.owner}";
    grant select (id), update (secret) on plain to ${names.reader}; grant select on seen to public;
    revoke execute on function f() from public; grant execute on function f() to ${names.reader};
    alter default privileges for role "${names.owner}" in schema public grant select on tables to ${names.reader};
    create policy readers on plain for select to ${names.reader} using (true);
    create extension citext; create extension hstore`);
  return pair;
}

async function finish(scope: TestScope): Promise<void> {
  await createTables(scope);
  onTestFinished(() => removeBookkeeping(scope));
  const done = await statementsDone(scope);
  const session = await scope.target.session({ purpose: 'test', signal: scope.signal });
  for (const statement of schemaPlanOf(scope).statements)
    if (!done.has(statement.n)) await runStatement(scope, session, statement);
  await session.close();
}

test('owners, grants, roles, extensions and tablespaces arrive as the options say', async () => {
  const pair = await pairWithRoles();
  const bare = await planSchema(makeScope(pair));
  expect(bare.findings.map(({ code, severity, object }) => `${code} ${severity} ${object}`)).toEqual([
    `role_missing blocking ${names.reader}`, // the policy names it, whatever the options say
  ]);
  expect(bare.statements.filter(({ sql }) => /OWNER TO|GRANT|tablespace/i.test(sql))).toEqual([]);

  const scope = makeScope(pair, {
    options: {
      owners: { [names.owner]: names.renamed },
      privileges: true,
      roles: 'create',
      extensions: { hstore: 'skip', citext: '1.6' },
      tablespaces: 'same',
    },
  });
  await finish(scope);
  expect(schemaPlanOf(scope).findings.map(({ code, object }) => `${code} ${object}`)).toEqual([
    'extension_skipped hstore',
    `role_created ${names.reader}`,
  ]);
  const { rows } = await pair.target.query(
    `select (select string_agg(relname || ' ' || pg_get_userbyid(relowner), ', ' order by relname) from pg_class
         where relname in ('plain', 'plain_id_seq', 'seen')) as owners,
       has_column_privilege('${names.reader}', 'plain', 'id', 'select') as id,
       has_column_privilege('${names.reader}', 'plain', 'secret', 'select') as secret,
       has_function_privilege('${names.reader}', 'f()', 'execute') as f,
       (select count(*)::int from pg_default_acl) as defaults,
       (select rolcanlogin from pg_roles where rolname = '${names.reader}') as login,
       (select string_agg(extname || ' ' || extversion, ', ') from pg_extension where extname <> 'plpgsql') as extensions,
       (select string_agg(relname, ', ' order by relname) from pg_class c join pg_tablespace t on t.oid = c.reltablespace
         where spcname = '${names.space}' and relkind in ('r', 'i') and relname !~ '^pg_toast') as placed`,
  );
  expect(rows).toEqual([
    {
      owners: ['plain', 'plain_id_seq', 'seen'].map((name) => `${name} ${names.renamed}`).join(', '),
      id: true,
      secret: false,
      f: true,
      defaults: 1,
      login: false,
      extensions: 'citext 1.6',
      placed: 'plain',
    },
  ]);
  expect(await compareSchema(scope)).toMatchObject({ error: null, differences: [], equal: true });
});

test('names of roles, extensions and tablespaces keep their spelling on the wire, and faults name their field', () => {
  const connection = { host: 'h', user: 'u', dbname: 'd' };
  const wire = {
    source_db: connection,
    target_db: connection,
    options: { owners: { 'My_Role x': 'app_owner' }, tablespaces: { fast_disk: 'big' } },
  };
  const { value, unknownFields } = toCamel(wire);
  expect(unknownFields).toEqual([]);
  const { spec } = parseRequest(value);
  expect(spec.options.owners).toEqual({ 'My_Role x': 'app_owner' });
  expect(toSnake(spec.options)).toMatchObject(wire.options);
  const faults = (options: object): unknown => {
    try {
      parseRequest({ sourceDb: connection, targetDb: connection, options });
      return null;
    } catch (error) {
      return (error as { details: { fields: { field: string }[] } }).details.fields.map(({ field }) => field);
    }
  };
  expect(faults({ owners: 'all' })).toEqual(['options.owners']);
  expect(faults({ owners: { a: '' } })).toEqual(['options.owners.a']);
  expect(faults({ roles: true })).toEqual(['options.roles']);
  expect(faults({ extensions: { citext: 1 } })).toEqual(['options.extensions']);
  expect(faults({ exclude: ['*'] })).toEqual(['options.exclude.0']);
});
