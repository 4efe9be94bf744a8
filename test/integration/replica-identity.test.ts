// Replica identities are given back only where no publication needs them any more.
import { expect, test } from 'vitest';
import { dropPublication, ensurePublication } from '../../src/postgres/publication.ts';
import { makeIdentitiesFull, restoreIdentities } from '../../src/postgres/replica-identity.ts';
import { saveSchemaPlan, schemaPlanOf } from '../../src/postgres/task-scope.ts';
import { planFromCatalog } from '../support/cutover-plan.ts';
import { makePair } from '../support/databases.ts';
import { makeScope } from '../support/scope.ts';

test('a table that our own publication still has keeps its identity, for its updates would fail', async () => {
  const pair = await makePair({ source: 13 });
  await pair.source.query('create table bag (n int)');
  const scope = makeScope(pair, { options: { replicaIdentity: 'full' } });
  await planFromCatalog(scope);
  const plan = schemaPlanOf(scope);
  saveSchemaPlan(scope, {
    ...plan,
    tables: plan.tables.map((table) => ({ ...table, replicaIdentity: 'full' })),
  });
  const identity = async (): Promise<unknown> =>
    (await pair.source.query(`select relreplident as i from pg_class where relname = 'bag'`)).rows[0];
  await makeIdentitiesFull(scope);
  await ensurePublication(scope);
  await expect(restoreIdentities(scope)).rejects.toMatchObject({ code: 'replica_identity_in_use' });
  expect(await identity()).toEqual({ i: 'f' });
  await pair.source.query('update bag set n = 1'); // it is not refused
  await dropPublication(scope);
  await restoreIdentities(scope);
  expect(await identity()).toEqual({ i: 'd' });
});
