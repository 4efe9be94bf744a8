// Large objects of a whole database: copied with their OIDs, compared one by one; nobody else's are touched.
import { randomBytes } from 'node:crypto';
import { expect, onTestFinished, test } from 'vitest';
import { copyLargeObjects } from '../../src/copy/large-objects.ts';
import { dropTargetTables } from '../../src/cutover/drop-target.ts';
import type { TaskRequest } from '../../src/model/request.ts';
import { removeBookkeeping } from '../../src/postgres/bookkeeping.ts';
import { schemaPlanOf } from '../../src/postgres/task-scope.ts';
import { createTables } from '../../src/schema/create-tables.ts';
import { planSchema } from '../../src/schema/plan.ts';
import { checkLargeObjects, compareLargeObjects } from '../../src/validate/large-objects.ts';
import { closePair, openPair } from '../../src/validate/sessions.ts';
import { makePair, makeRole, type DatabasePair, type TestDatabase } from '../support/databases.ts';
import { makeScope, type TestScope } from '../support/scope.ts';

/** 0 bytes, 1 byte, 3 MB that ends on no chunk, one as long as the first read, one with a hole, and two batches of small ones. */
const fill = `create table files (id int primary key, body oid);
  select lo_create(70001), lo_from_bytea(70002, '\\x00'), lo_from_bytea(70004, convert_to(repeat('k', 65536), 'UTF8')),
    lo_from_bytea(70005, '\\x01'), lo_put(70005, 200000, '\\x02');
  select lo_from_bytea(70003, string_agg(sha256(i::text::bytea), '')) from generate_series(1, 98304 + 5) i;
  select lo_from_bytea((80000 + i)::oid, convert_to('object ' || i, 'UTF8')) from generate_series(1, 100) i;
  insert into files select n, 70000 + n from generate_series(1, 5) n`;

async function contents(database: TestDatabase): Promise<{ oid: string; length: number; md5: string }[]> {
  const { rows } = await database.query<{ oid: string; length: number; md5: string }>(
    `select oid::text, length(lo_get(oid)) as length, md5(lo_get(oid)) as md5 from pg_largeobject_metadata order by oid`,
  );
  return rows;
}

async function planned(pair: DatabasePair, over: Partial<TaskRequest> = {}): Promise<TestScope> {
  const scope = makeScope(pair, over);
  await createTables(scope);
  onTestFinished(() => removeBookkeeping(scope));
  return scope;
}

async function findingsOf(pair: DatabasePair, over: Partial<TaskRequest> = {}) {
  const { findings, largeObjects } = await planSchema(makeScope(pair, over));
  return {
    largeObjects,
    findings: findings
      .filter(({ code }) => code.startsWith('large_object'))
      .map(({ code, severity, remedy }) => ({ code, severity, remedy })),
  };
}

test('all arrive with their OIDs and bytes; again after changes; what changes after the copy is found', async () => {
  const pair = await makePair({ source: 16, target: 18 });
  await pair.source.query(fill);
  const scope = await planned(pair);
  expect(schemaPlanOf(scope).largeObjects).toBe(true);
  await copyLargeObjects(scope);
  const first = await contents(pair.source);
  expect(first.map(({ length }) => length).slice(0, 5)).toEqual([0, 1, 98_309 * 32, 65_536, 200_001]);
  expect(await contents(pair.target)).toEqual(first);
  const verdict = await compareLargeObjects(scope, Date.now() + 60_000);
  if (!verdict) throw new Error('no verdict');
  const sessions = await openPair(scope, scope.signal);
  onTestFinished(() => closePair(sessions));
  const check = () => checkLargeObjects(sessions, verdict);
  await pair.target.query(`select lo_create(99999)`); // the target's own
  expect(await check()).toEqual({ count: 105, sourceUnchanged: true, differing: [] });
  await pair.target.query(`begin; select lo_put(70003, 5, '\\x00'), lo_unlink(80007); commit`);
  expect(await check()).toEqual({ count: 105, sourceUnchanged: true, differing: ['70003', '80007'] });
  await pair.source.query(`select lo_put(70002, 0, '\\x07')`);
  expect(await check()).toMatchObject({ sourceUnchanged: false, differing: ['70002', '70003', '80007'] });
  await pair.source.query(`select lo_put(70002, 0, '\\x00')`);
  await pair.target.query(`select lo_unlink(99999)`);
  await copyLargeObjects(scope);
  expect(await contents(pair.target)).toEqual(first);
  expect(verdict).toMatchObject({
    count: 105,
    bytes: String(first.reduce((sum, { length }) => sum + length, 0)),
  });

  // one byte within, one gone, one new: each is seen
  await pair.source.query(`select lo_put(70003, 2000000, '\\xff'), lo_unlink(80050), lo_create(90000)`);
  await expect(compareLargeObjects(scope, Date.now() + 60_000)).rejects.toMatchObject({
    code: 'validation_failed',
    details: { oids: ['70003', '90000', '80050'] },
  });
  await copyLargeObjects(scope);
  expect(await contents(pair.target)).toEqual(await contents(pair.source));
  expect((await compareLargeObjects(scope, Date.now() + 60_000))?.digest).not.toBe(verdict?.digest);

  // a byte of the same length on the target, one lost there
  await pair.target.query(`select lo_put(70002, 0, '\\x07'), lo_unlink(70001)`);
  await expect(compareLargeObjects(scope, Date.now() + 60_000)).rejects.toMatchObject({
    details: { oids: ['70001', '70002'] },
  });
});

test('somebody else’s of the same OID stops the plan and the copy, and stays; drop_target removes ours only', async () => {
  const pair = await makePair();
  await pair.source.query(fill);
  const scope = await planned(pair);
  await pair.target.query(`select lo_from_bytea(80100, 'theirs'), lo_from_bytea(5, 'theirs, too')`);
  const theirs = await contents(pair.target);
  expect(await findingsOf(pair)).toMatchObject({
    findings: [
      { code: 'large_objects', severity: 'warning' },
      {
        code: 'large_object_conflict',
        severity: 'blocking',
        remedy: expect.stringContaining('lo_unlink(80100)') as unknown,
      },
    ],
  });
  await expect(copyLargeObjects(scope)).rejects.toMatchObject({
    code: 'target_conflict',
    details: { oids: ['80100'] },
  });
  expect((await contents(pair.target)).length).toBeGreaterThan(theirs.length); // the first batch
  await dropTargetTables(scope);
  expect(await contents(pair.target)).toEqual(theirs);
  expect((await pair.target.query(`select to_regclass('files') as t`)).rows).toEqual([{ t: null }]);
});

test('a list of tables and large_objects: false leave them, and say so', async () => {
  const pair = await makePair();
  await pair.source.query(`${fill}; create table plain (id int primary key)`);
  const left = (severity: string) => ({
    largeObjects: false,
    findings: [expect.objectContaining({ code: 'large_objects', severity }) as unknown],
  });
  expect(await findingsOf(pair, { tables: ['files'] })).toEqual(left('warning'));
  expect(await findingsOf(pair, { tables: ['plain'] })).toEqual(left('info'));
  expect(await findingsOf(pair, { options: { largeObjects: false } })).toEqual(left('warning'));
  const scope = await planned(pair, { options: { largeObjects: false } });
  await copyLargeObjects(scope);
  expect(await compareLargeObjects(scope, Date.now() + 60_000)).toBeNull();
  expect(await contents(pair.target)).toEqual([]);
});

test('objects that the role may not read are a finding, and its remedy is the remedy', async () => {
  const role = await makeRole(16);
  const pair = await makePair({ source: 16 });
  await pair.source.query(`${fill}; grant select on large object 70001 to ${role};
    grant select on large object 70002 to public`);
  const asRole: DatabasePair = {
    ...pair,
    source: { ...pair.source, connection: { ...pair.source.connection, user: role, password: 'secret' } },
  };
  await pair.source.query(`alter table files owner to ${role}`);
  const denied = (await findingsOf(asRole)).findings.find(
    ({ code }) => code === 'large_object_select_denied',
  );
  expect(denied).toMatchObject({ severity: 'blocking' });
  await pair.source.query(denied?.remedy ?? '');
  expect((await findingsOf(asRole)).findings.map(({ code }) => code)).toEqual(['large_objects']);
  await copyLargeObjects(await planned(asRole));
  expect(await contents(pair.target)).toEqual(await contents(pair.source));
});

test('owners, privileges and comments come along as the options say', async () => {
  const tag = randomBytes(4).toString('hex');
  const names = { owner: `Owner ${tag}`, reader: `reader_${tag}`, renamed: `renamed_${tag}` };
  const admin = await makePair({ checkLeaks: false });
  onTestFinished(async () => {
    for (const name of Object.values(names))
      for (const database of [admin.source, admin.target])
        await database.query(`drop role if exists "${name}"`);
  });
  await admin.source.query(`create role "${names.owner}"; create role ${names.reader}`);
  await admin.target.query(`create role ${names.renamed}; create role ${names.reader}`);
  const pair = await makePair();
  await pair.source.query(`create table t (id int primary key); select lo_create(1001), lo_create(1002);
    comment on large object 1001 is 'it''s \\ ours'; alter large object 1001 owner to "${names.owner}";
    grant select on large object 1001 to ${names.reader} with grant option;
    grant select, update on large object 1001 to public;
    alter large object 1002 owner to "${names.owner}"; revoke update on large object 1002 from "${names.owner}"`);
  const metadata = `select oid::int, pg_get_userbyid(lomowner)::text as owner, obj_description(oid, 'pg_largeobject') as comment,
    (select string_agg(a.grantee::regrole || ' ' || a.privilege_type || ' ' || a.is_grantable, ', '
       order by a.grantee::regrole::text, a.privilege_type) from aclexplode(lomacl) a) as grants
    from pg_largeobject_metadata order by oid`;
  const comment = `it's \\ ours`;

  const plain = await planned(pair);
  await copyLargeObjects(plain);
  expect((await pair.target.query(metadata)).rows).toEqual([
    { oid: 1001, owner: 'postgres', comment, grants: null },
    { oid: 1002, owner: 'postgres', comment: null, grants: null },
  ]);
  await dropTargetTables(plain);

  const options = { owners: { [names.owner]: names.renamed }, privileges: true };
  await copyLargeObjects(await planned(pair, { options }));
  const expected = (await pair.source.query<{ owner: string; grants: string }>(metadata)).rows.map((row) => ({
    ...row,
    owner: row.owner === names.owner ? names.renamed : row.owner,
    grants: row.grants.replaceAll(`"${names.owner}"`, names.renamed).split(', ').toSorted(),
  }));
  const found = (await pair.target.query<{ grants: string }>(metadata)).rows;
  expect(found.map((row) => ({ ...row, grants: row.grants.split(', ').toSorted() }))).toEqual(expected);
  expect((await findingsOf(pair, { options: { owners: 'same' } })).findings.length).toBeGreaterThan(0);
  const { findings } = await planSchema(makeScope(pair, { options: { owners: 'same' } }));
  expect(findings).toContainEqual(expect.objectContaining({ code: 'role_missing', object: names.owner }));
});
