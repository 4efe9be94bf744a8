// Schemas as people have them, in the shapes of Pagila, Northwind and Chinook, together in one database, through the running
// service while the source is written to.
import { readFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { contentOf } from '../support/copy-plan.ts';
import { makePair, type DatabasePair, type TestDatabase } from '../support/databases.ts';
import { lineDifference, linesOf } from '../support/dump-lines.ts';
import { cutOver, makeDataDir, migrationBody, startService } from '../support/service-process.ts';

const schemas = await Promise.all(
  ['films', 'trade', 'music'].map((name) =>
    readFile(new URL(`../cases/schema/${name}.sql`, import.meta.url), 'utf8'),
  ),
);

const lateWrites = `
  update films.film set title = 'CHAMBER of ' || film_id, description = 'robots no more' where film_id % 10 = 0;
  insert into films.payment (customer_id, staff_id, rental_id, amount, payment_date) values (1, 1, 1, 9.99, '2022-02-03Z');
  update films.payment set payment_date = payment_date - interval '1 month' where payment_id % 100 = 0 and payment_date > '2022-03-01Z';
  delete from films.film_actor where actor_id = 7;
  delete from trade.orders where order_id % 50 = 0;
  update trade.customers set region = 'NRW' where customer_id > 'CU080';
  update "Music"."Track" set "TrackId" = 900 + "TrackId", "Name" = 'Renumbered' where "TrackId" not in
    (select "TrackId" from "Music"."InvoiceLine" union select "TrackId" from "Music"."PlaylistTrack");
  insert into "Music"."InvoiceLine" ("InvoiceId", "TrackId", "UnitPrice", "Quantity") values (1, 2, 1.99, 3);`;

/** Count and digest of every relation with rows: tables, partitions, views, materialized views. */
async function contents(
  database: TestDatabase,
  tables: readonly { name: string; isTable: boolean }[],
  suffix: string,
): Promise<Record<string, unknown>> {
  const found: Record<string, unknown> = {};
  for (const { name, isTable } of tables) {
    const relation = isTable && suffix !== '' ? name.replace(/"$/, `${suffix}"`) : name;
    found[name] = await contentOf(database, relation);
  }
  return found;
}

async function relationsOf(database: TestDatabase): Promise<{ name: string; isTable: boolean }[]> {
  const { rows } = await database.query<{ name: string; isTable: boolean }>(
    `select '"' || nspname || '"."' || relname || '"' as name, relkind in ('r', 'p') as "isTable"
       from pg_class c join pg_namespace n on n.oid = relnamespace
      where nspname in ('films', 'trade', 'Music') and relkind in ('r', 'p', 'v', 'm') order by 1`,
  );
  return rows;
}

async function migrate(pair: DatabasePair, suffix: string): Promise<Record<string, unknown>> {
  await pair.source.query(schemas.join('\n'));
  const service = await startService({ dataDir: makeDataDir() });
  const id = 'real';
  const options = { keep_fence: false };
  const body = migrationBody(pair, { id, tables: ['*'], table_suffix: suffix, options });
  expect((await service.call('POST', '/migrations', body)).status).toBe(201);
  await service.call('POST', `/migrations/${id}/start`);
  await service.reaches(id, 'syncingWal');
  await pair.source.query(lateWrites);
  await cutOver(service, id);
  await service.reaches(id, 'completed');
  const { body: task } = await service.call('GET', `/migrations/${id}`);
  expect((await service.call('DELETE', `/migrations/${id}`)).status).toBe(204);
  return task;
}

const equal = {
  equal: true,
  schema: { equal: true, error: null, differences: [] },
};

test('three real-world schemas arrive with the same dump and the same rows', async () => {
  const pair = await makePair({ source: 18, target: 18 });
  const task = await migrate(pair, '');
  expect(task).toMatchObject({ certificate: equal });
  expect(task['findings']).toEqual([]);
  expect(lineDifference(await linesOf(pair.source), await linesOf(pair.target))).toEqual([]);
  const relations = await relationsOf(pair.source);
  expect(relations).toHaveLength(58);
  // what the materialized view counts is of the write stop
  await pair.source.query('refresh materialized view films.rental_by_category');
  expect(await contents(pair.target, relations, '')).toEqual(await contents(pair.source, relations, ''));
});

test('with a suffix they differ in names only, and views show the rows of the renamed tables', async () => {
  const pair = await makePair({ source: 16, target: 16 });
  const task = await migrate(pair, '_New');
  expect(task).toMatchObject({ certificate: equal });
  const findings = task['findings'] as { code: string; object: string }[];
  expect(findings.map(({ code, object }) => `${code} ${object}`).sort()).toEqual([
    'function_mentions_renamed_table FUNCTION films.film_in_stock(integer, integer)',
    'function_mentions_renamed_table FUNCTION films.inventory_in_stock(integer)',
    'function_mentions_renamed_table FUNCTION films.rewards_report(integer, numeric)',
  ]);
  await pair.source.query('refresh materialized view films.rental_by_category');
  const relations = await relationsOf(pair.source);
  expect(await contents(pair.target, relations, '_New')).toEqual(await contents(pair.source, relations, ''));
  // a name with capitals is quoted, and a query calls a renamed table by its old name
  const bare = async (database: TestDatabase): Promise<string[]> =>
    (await linesOf(database)).map((line) =>
      line
        .replaceAll('"', '')
        .replaceAll(/(\w+)_New \1\b/g, '$1')
        .replaceAll('_New', ''),
    );
  expect(lineDifference(await bare(pair.source), await bare(pair.target))).toEqual([]);
});
