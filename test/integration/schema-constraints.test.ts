// Keys and unique constraints of tables with several indexes: their indexes are statements of their own, and what stands in
// the end is what the source has.
import { expect, onTestFinished, test } from 'vitest';
import { planIndexes } from '../../src/copy/index-plan.ts';
import { relationKey } from '../../src/model/relation.ts';
import { removeBookkeeping } from '../../src/postgres/bookkeeping.ts';
import { runStatement, statementsDone } from '../../src/postgres/statement-journal.ts';
import { schemaPlanOf } from '../../src/postgres/task-scope.ts';
import { compareSchema } from '../../src/schema/compare.ts';
import { createTables } from '../../src/schema/create-tables.ts';
import { makePair } from '../support/databases.ts';
import { makeScope } from '../support/scope.ts';

test('the index of a constraint is built beside the others, and becomes what the source has', async () => {
  const pair = await makePair();
  await pair.source.query(`
    create table "Big, t" (id bigint not null, "Code (x)" text, u int, span int4range, filler text default repeat('x', 300));
    insert into "Big, t" select g, g::text, g, int4range(g, g + 1) from generate_series(1, 6000) g;
    alter table "Big, t"
      add constraint "Big ""key""" primary key (id) include ("Code (x)") with (fillfactor = 70),
      add constraint big_code unique ("Code (x)", u),
      add constraint big_later unique (u, id) deferrable initially deferred,
      add constraint big_nulls unique nulls not distinct (u),
      add constraint big_span exclude using gist (span with &&);
    create index big_u on "Big, t" (u, id);
    alter table "Big, t" cluster on "Big ""key""";
    create table part (id int, at int, filler text default repeat('x', 300), primary key (id, at)) partition by range (at);
    create table part_1 partition of part for values from (0) to (10000);
    create index on part (at);
    alter table part_1 add constraint part_1_at unique (at);
    create table old_parent (id int primary key, filler text default repeat('x', 300));
    create table old_child (primary key (id), constraint old_unique unique (filler, id)) inherits (old_parent);
    insert into old_child select g from generate_series(1, 6000) g;
    insert into part select g, g from generate_series(1, 6000) g;
    create table small (id int primary key, n int unique);
    create table alone (id int primary key, filler text default repeat('x', 300));
    insert into alone select g from generate_series(1, 6000) g`);
  const scope = makeScope(pair, { tableSuffix: '_new' });
  await createTables(scope);
  onTestFinished(() => removeBookkeeping(scope));
  const { statements, tables } = schemaPlanOf(scope);
  const apart = statements.filter(({ sql }) => sql.includes('USING INDEX'));
  expect(apart.map(({ object }) => object).sort()).toEqual([
    'CONSTRAINT public."Big ""key""_new"',
    'CONSTRAINT public.big_code_new',
    'CONSTRAINT public.big_nulls_new',
    'CONSTRAINT public.old_unique_new',
    'CONSTRAINT public.part_1_at_new',
  ]);

  // in the order in which they are run
  const leaves = new Set(tables.map(({ source }) => relationKey(source)));
  const { byTable, last } = planIndexes(statements, leaves, await statementsDone(scope));
  const session = await scope.target.session({ purpose: 'test', signal: scope.signal });
  onTestFinished(() => session.close());
  for (const statement of [...[...byTable.values()].flat(2), ...last])
    await runStatement(scope, session, statement, {});
  const done = await statementsDone(scope);
  for (const statement of statements)
    if (!done.has(statement.n)) await runStatement(scope, session, statement, {});
  expect(await compareSchema(scope)).toMatchObject({ error: null, differences: [], equal: true });
  const constraints = `
    select replace(conname, '_new', '') as name, contype, condeferrable, condeferred, i.indimmediate, i.indisclustered,
           replace(pg_get_constraintdef(c.oid), '_new', '') as definition, array_to_string(x.reloptions, ',') as options
      from pg_constraint c join pg_index i on i.indexrelid = c.conindid join pg_class x on x.oid = i.indexrelid
     where contype in ('p', 'u', 'x') and connamespace = 'public'::regnamespace order by 1`;
  const { rows } = await pair.source.query(constraints);
  expect(rows).toHaveLength(14);
  expect((await pair.target.query(constraints)).rows).toEqual(rows);
});
