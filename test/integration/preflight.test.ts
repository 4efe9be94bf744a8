// Preflight against real servers: roles with exactly the rights of README's list pass it; whatever is taken away from
// them, or lies in the way, is one finding, and the statement of its remedy, run as it stands, removes it.
import { chownSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import type { EmbeddedServer } from '../../src/cli/embedded-postgres.ts';
import { type Finding, type FindingSeverity } from '../../src/model/finding.ts';
import type { TaskRequest } from '../../src/model/request.ts';
import type { Role } from '../../src/model/endpoint.ts';
import { ensureBookkeeping, removeBookkeeping } from '../../src/postgres/bookkeeping.ts';
import { dropPublication, ensurePublication } from '../../src/postgres/publication.ts';
import { dropSlot } from '../../src/postgres/slot-removal.ts';
import { ensureSlot } from '../../src/postgres/slot.ts';
import { runStatement } from '../../src/postgres/statement-journal.ts';
import { runPreflight } from '../../src/preflight/run.ts';
import { planFromCatalog } from '../support/cutover-plan.ts';
import { makePair, waitFor, type DatabasePair, type TestDatabase } from '../support/databases.ts';
import { makeScope } from '../support/scope.ts';
import { startServer } from '../support/servers.ts';

const PASSWORD = 'secret';

/** A pair with table `t`, and on each side a role that has what README asks for and nothing more. */
interface Stage extends DatabasePair {
  /** Name of the roles. */
  readonly role: string;
  /** Connections as these roles. */
  readonly request: Partial<TaskRequest>;
}

async function addRole(database: TestDatabase, name: string, attributes = 'login'): Promise<void> {
  await database.query(`create role ${name} ${attributes} password '${PASSWORD}'`);
  onTestFinished(async () => {
    await database.query(`reassign owned by ${name} to postgres; drop owned by ${name}; drop role ${name}`);
  });
}

async function makeStage(majors: Parameters<typeof makePair>[0]): Promise<Stage> {
  const pair = await makePair(majors);
  const { source, target } = pair;
  const role = `role_${source.dbname}`;
  await addRole(source, role, 'login replication');
  await source.query(`grant create on database ${source.dbname} to ${role};
    create table t (id int primary key, note text); alter table t owner to ${role}`);
  await addRole(target, role);
  await target.query(`grant create on database ${target.dbname} to ${role};
    grant usage, create on schema public to ${role}`);
  const as = { user: role, password: PASSWORD };
  return {
    ...pair,
    role,
    request: { sourceDb: { ...source.connection, ...as }, targetDb: { ...target.connection, ...as } },
  };
}

/** What preflight says, over connections of its own. */
async function preflight(pair: DatabasePair, request: Partial<TaskRequest> = {}): Promise<Finding[]> {
  const scope = makeScope(pair, request);
  const findings = await runPreflight(scope);
  expect(await scope.connections.closeAll()).toEqual([]);
  return findings;
}

const blockers = (findings: readonly Finding[]): Finding[] =>
  findings.filter(({ severity }) => severity === 'blocking');
const codes = (findings: readonly Finding[]): string[] => findings.map(({ code }) => code);

/** Runs a statement as a fresh session of a superuser, as somebody does who reads a remedy. */
async function execute(database: TestDatabase, sql: string): Promise<void> {
  const client = await database.connect();
  await client.query(sql);
  await client.end();
}

/** A port on which nobody listens. */
async function closedPort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (address === null || typeof address === 'string') throw new Error('no port');
  return address.port;
}

interface Obstacle {
  readonly code: string;
  /** Run on the side of the list, as the remedy is. */
  readonly spoil: string;
  readonly severity?: FindingSeverity;
  readonly object: string;
  readonly remedy: string;
  /** The remedy's statement, where the remedy has other words or statements too. */
  readonly statement?: string;
  readonly request?: Partial<TaskRequest>;
  /** Takes away what the teardown would take for a leak. */
  readonly undo?: string;
}

type ObstacleOf = readonly [name: string, (stage: Stage) => Obstacle];

const onSource: readonly ObstacleOf[] = [
  [
    'a role that does not see the lag of standbys which the copy is to wait for',
    ({ role }) => ({
      code: 'standby_lag_hidden',
      spoil: 'select',
      severity: 'warning',
      object: role,
      remedy: `grant pg_read_all_stats to "${role}"`,
      request: { options: { maxSourceLagBytes: 2_000_000 } },
      undo: `revoke pg_read_all_stats from ${role}`,
    }),
  ],
  [
    'a function to catch up with that was revoked',
    ({ role }) => ({
      code: 'catch_up_not_permitted',
      spoil: 'revoke execute on function pg_copy_logical_replication_slot(name, name, boolean) from public',
      severity: 'info',
      object: role,
      remedy: `grant execute on function pg_catalog.pg_copy_logical_replication_slot(name, name, boolean) to "${role}"`,
    }),
  ],
  [
    'a role without REPLICATION',
    ({ role }) => ({
      code: 'role_lacks_replication',
      spoil: `alter role ${role} noreplication`,
      object: role,
      remedy: `alter role "${role}" replication`,
    }),
  ],
  [
    'a table without key',
    ({ role }) => ({
      code: 'table_without_key',
      spoil: `create table "No Key" (a int); alter table "No Key" owner to ${role}`,
      object: 'public.No Key',
      remedy: `alter table "public"."No Key" add primary key (…); or: alter table "public"."No Key" replica identity full; or, until the task ends, options.replica_identity: full`,
      statement: `alter table "public"."No Key" replica identity full`,
    }),
  ],
  [
    'a primary key that is not the replica identity',
    () => ({
      code: 'table_without_key',
      spoil: 'alter table t replica identity nothing',
      object: 'public.t',
      remedy: `alter table "public"."t" replica identity default; or: alter table "public"."t" replica identity full; or, until the task ends, options.replica_identity: full`,
      statement: `alter table "public"."t" replica identity default`,
    }),
  ],
  [
    'a replica identity whose index was dropped',
    () => ({
      code: 'table_without_key',
      spoil: `alter table t alter note set not null; create unique index u on t (note);
        alter table t replica identity using index u; drop index u`,
      object: 'public.t',
      remedy: `alter table "public"."t" replica identity default; or: alter table "public"."t" replica identity full; or, until the task ends, options.replica_identity: full`,
      statement: `alter table "public"."t" replica identity default`,
    }),
  ],
  [
    'a deferrable primary key',
    () => ({
      code: 'table_without_key',
      spoil: 'alter table t drop constraint t_pkey, add primary key (id) deferrable',
      object: 'public.t',
      remedy: `alter table "public"."t" replica identity full; or, until the task ends, options.replica_identity: full`,
      statement: `alter table "public"."t" replica identity full`,
    }),
  ],
  [
    'an unlogged table',
    () => ({
      code: 'table_unlogged',
      severity: 'warning',
      spoil: 'alter table t set unlogged',
      object: 'public.t',
      remedy: `leave it out, or: alter table "public"."t" set logged`,
      statement: `alter table "public"."t" set logged`,
    }),
  ],
  [
    'a table of another owner',
    ({ role }) => ({
      code: 'table_not_owned',
      spoil: `alter table t owner to ${role}_other; grant select on t to ${role}`,
      object: 'public.t',
      remedy: `grant "${role}_other" to "${role}"`,
    }),
  ],
  [
    'a table that its owner may not read',
    ({ role }) => ({
      code: 'table_select_denied',
      spoil: `revoke select on t from ${role}`,
      object: 'public.t',
      remedy: `grant select on "public"."t" to "${role}"`,
    }),
  ],
  [
    'a schema that may not be used',
    ({ role }) => ({
      code: 'schema_usage_denied',
      spoil: `create schema "App"; create table "App".a (id int primary key); alter table "App".a owner to ${role}`,
      object: 'App',
      remedy: `grant usage on schema "App" to "${role}"`,
    }),
  ],
  [
    'row-level security that applies to the role',
    ({ role }) => ({
      code: 'row_security_active',
      spoil: 'alter table t enable row level security, force row level security',
      object: 'public.t',
      remedy: `alter role "${role}" bypassrls`,
    }),
  ],
  [
    'no CREATE on the source database',
    ({ role, source }) => ({
      code: 'source_create_denied',
      spoil: `revoke create on database ${source.dbname} from ${role}`,
      object: source.dbname,
      remedy: `grant create on database "${source.dbname}" to "${role}"`,
    }),
  ],
  [
    "somebody else's schema dts on the source",
    ({ role }) => ({
      code: 'source_dts_schema_denied',
      spoil: 'create schema dts',
      object: 'dts',
      remedy: `grant usage, create on schema "dts" to "${role}"`,
      undo: 'drop schema dts',
    }),
  ],
  [
    'a slot of our name',
    ({ source }) => ({
      code: 'slot_name_taken',
      spoil: `select pg_create_logical_replication_slot('dts_${source.dbname}', 'pgoutput')`,
      request: { id: source.dbname },
      object: `dts_${source.dbname}`,
      remedy: `choose another id, or, if nobody uses that slot: select pg_drop_replication_slot('dts_${source.dbname}')`,
      statement: `select pg_drop_replication_slot('dts_${source.dbname}')`,
    }),
  ],
  [
    'a publication of our name',
    ({ source }) => ({
      code: 'publication_name_taken',
      spoil: `create publication dts_${source.dbname}`,
      request: { id: source.dbname },
      object: `dts_${source.dbname}`,
      remedy: `choose another id, or, if nobody uses that publication: drop publication "dts_${source.dbname}"`,
      statement: `drop publication "dts_${source.dbname}"`,
    }),
  ],
  [
    'a role with too few connections',
    ({ role }) => ({
      code: 'source_connections_scarce',
      severity: 'warning',
      spoil: `alter role ${role} connection limit 15`,
      object: role,
      remedy: `lower options.copy_jobs, or: alter role "${role}" connection limit 16`,
      statement: `alter role "${role}" connection limit 16`,
    }),
  ],
];

const onTarget: readonly ObstacleOf[] = [
  [
    'no CREATE on the target database',
    ({ role, target }) => ({
      code: 'target_create_denied',
      spoil: `revoke create on database ${target.dbname} from ${role}`,
      object: target.dbname,
      remedy: `grant create on database "${target.dbname}" to "${role}"`,
    }),
  ],
  [
    'no CREATE on a schema of the target',
    ({ role }) => ({
      code: 'target_schema_denied',
      spoil: `revoke create on schema public from ${role}`,
      object: 'public',
      remedy: `grant usage, create on schema "public" to "${role}"`,
    }),
  ],
  [
    'no USAGE on a schema of the target',
    ({ role }) => ({
      code: 'target_schema_denied',
      spoil: 'revoke usage on schema public from public; revoke usage on schema public from ' + role,
      object: 'public',
      remedy: `grant usage, create on schema "public" to "${role}"`,
    }),
  ],
  [
    "somebody else's schema dts on the target",
    ({ role }) => ({
      code: 'target_dts_schema_denied',
      spoil: 'create schema dts',
      object: 'dts',
      remedy: `grant usage, create on schema "dts" to "${role}"`,
      undo: 'drop schema dts',
    }),
  ],
  [
    "somebody else's tables in schema dts",
    ({ role }) => ({
      code: 'target_dts_tables_denied',
      spoil: `create schema dts; grant usage, create on schema dts to ${role};
        create table dts.task (task_id text, incarnation text);
        create table dts.statement (task_id text, creates_schema text, creates_name text)`,
      object: 'dts',
      remedy: `grant select, insert, update, delete on all tables in schema "dts" to "${role}"`,
      undo: 'drop schema dts cascade',
    }),
  ],
  ...(
    [
      ['table', 'create table public."t_new" ()'],
      ['view', 'create view public."t_new" as select 1'],
      ['materialized view', 'create materialized view public."t_new" as select 1'],
      ['sequence', 'create sequence public."t_new"'],
      ['type', 'create type public."t_new" as (a int)'],
      ['index', 'create table public.x (a int); create index "t_new" on public.x (a)'],
    ] as const
  ).map(
    ([kind, spoil]) =>
      [
        `a relation with the target's name (${kind})`,
        (): Obstacle => ({
          code: 'target_name_taken',
          spoil,
          request: { tableSuffix: '_new' },
          object: 'public.t_new',
          remedy: `set another table_suffix, or: drop ${kind} "public"."t_new"`,
          statement: `drop ${kind} "public"."t_new"`,
        }),
      ] as const,
  ),
  [
    'a target database that is read-only',
    ({ target }) => ({
      code: 'target_read_only',
      spoil: `alter database ${target.dbname} set default_transaction_read_only = on`,
      object: 'target',
      remedy: `begin read write; alter database "${target.dbname}" set default_transaction_read_only = off; commit`,
    }),
  ],
  [
    'a target role that is read-only, whatever its database says',
    ({ role, target }) => ({
      code: 'target_read_only',
      spoil: `alter database ${target.dbname} set default_transaction_read_only = off;
        alter role ${role} set default_transaction_read_only = yes`,
      object: 'target',
      remedy: `begin read write; alter role "${role}" in database "${target.dbname}" set default_transaction_read_only = off; commit`,
    }),
  ],
  [
    'a database with too few connections',
    ({ target }) => ({
      code: 'target_connections_scarce',
      spoil: `alter database ${target.dbname} connection limit 6`,
      object: target.dbname,
      // one is the test's own
      remedy: `lower options.copy_jobs, or: alter database "${target.dbname}" connection limit 17`,
      statement: `alter database "${target.dbname}" connection limit 17`,
    }),
  ],
];

/** The obstacle is the only one to be found, and gone when the remedy's statement was run as it stands. */
async function overcome(stage: Stage, on: Role, obstacle: Obstacle): Promise<void> {
  const { code, spoil, severity = 'blocking', object, remedy, statement = remedy, undo } = obstacle;
  const request = { ...stage.request, ...obstacle.request };
  if (undo !== undefined) onTestFinished(async () => void (await stage[on].query(undo)));
  await stage[on].query(spoil);
  const found = await preflight(stage, request);
  expect(found.filter((finding) => finding.code === code)).toEqual([
    { code, severity, object, message: expect.stringContaining(`${on}: `) as string, remedy },
  ]);
  expect(codes(blockers(found))).toEqual(severity === 'blocking' ? [code] : []);
  expect(remedy).toContain(statement);
  await execute(stage[on], statement);
  const left = await preflight(stage, request);
  expect(codes(left)).not.toContain(code);
  expect(blockers(left)).toEqual([]);
}

describe.each([13, 16] as const)('source %i', (major) => {
  test('roles with the documented rights are not blocked', async () => {
    const stage = await makeStage({ source: major });
    const findings = await preflight(stage, stage.request);
    expect(blockers(findings)).toEqual([]);
    expect(codes(findings).includes('drain_marker_table')).toBe(major === 13);
  });

  test('superusers are not blocked, nor held to the limits of others', async () => {
    const pair = await makePair({ source: major });
    await pair.source.query('create table t (id int primary key)');
    await pair.target.query(`alter database ${pair.target.dbname} connection limit 1`);
    const findings = await preflight(pair);
    expect(blockers(findings)).toEqual([]);
    expect(codes(findings)).not.toContain('target_connections_scarce');
  });

  test.each(onSource)('%s is found, and the remedy removes it', async (_name, obstacleOf) => {
    const stage = await makeStage({ source: major });
    await addRole(stage.source, `${stage.role}_other`);
    await overcome(stage, 'source', obstacleOf(stage));
  });

  test('a subscription that writes selected tables is found, and the remedy removes it', async () => {
    const stage = await makeStage({ source: major });
    const { port, dbname, password } = stage.target;
    await stage.target.query(
      'create table t (id int primary key, note text); create publication p for table t',
    );
    onTestFinished(async () => {
      await stage.source.query('drop subscription if exists "Feed"');
      await stage.target.query('drop publication p');
    });
    await overcome(stage, 'source', {
      code: 'subscription_writes_tables',
      spoil: `create subscription "Feed" connection 'host=127.0.0.1 port=${port} dbname=${dbname} user=postgres password=${password}'
        publication p with (copy_data = false, slot_name = 'feed_${dbname}')`,
      request: { tableSuffix: '_new', options: { fence: 'database-read-only' } },
      object: 'Feed',
      remedy: 'set options.fence to triggers, or: drop subscription "Feed"',
      statement: 'drop subscription "Feed"',
    });
  });

  test('what a task made itself is in the way of others only', async () => {
    const pair = await makePair({ source: major });
    await pair.source.query('create table t (id int primary key)');
    const scope = makeScope(pair);
    onTestFinished(async () => {
      const cleaner = makeScope(pair, {}, scope);
      await dropSlot(cleaner);
      await dropPublication(cleaner);
      await removeBookkeeping(cleaner);
      await cleaner.connections.closeAll();
    });
    await planFromCatalog(scope);
    await ensureBookkeeping(scope);
    const session = await scope.target.session({ purpose: 'test', signal: scope.signal });
    await runStatement(scope, session, {
      n: 0,
      phase: 'pre-data',
      sql: 'create table public.t (id int primary key)',
      object: 'table',
      table: null,
      creates: { schema: 'public', name: 't' },
    });
    await session.close();
    await ensurePublication(scope);
    await ensureSlot(scope);
    expect(blockers(await runPreflight(scope))).toEqual([]);
    const ofAnother = blockers(await preflight(pair, { id: scope.taskId }));
    expect(codes(ofAnother)).toEqual([
      'slot_name_taken',
      'publication_name_taken',
      'target_name_taken',
      'target_id_taken',
    ]);
    const remedy = `delete from dts.task where task_id = '${scope.taskId}'`;
    expect(ofAnother.at(-1)).toMatchObject({
      object: scope.taskId,
      remedy: `choose another id, or, if that migration is gone: ${remedy}`,
    });
    await execute(pair.target, remedy);
    expect(codes(await preflight(pair, { id: scope.taskId }))).not.toContain('target_id_taken');
  });
});

test.each(onTarget)('%s is found, and the remedy removes it', async (_name, obstacleOf) => {
  const stage = await makeStage({});
  await overcome(stage, 'target', obstacleOf(stage));
});

/** With options.reverse; the target's role may replicate, too. */
const onTheWayBack: readonly (readonly [Role, string, (stage: Stage) => Obstacle])[] = [
  [
    'target',
    'a target role without REPLICATION',
    ({ role }) => ({
      code: 'target_role_lacks_replication',
      spoil: `alter role ${role} noreplication`,
      object: role,
      remedy: `alter role "${role}" replication`,
    }),
  ],
  [
    'target',
    'a slot of the name that the reverse task needs',
    () => ({
      code: 'target_slot_name_taken',
      spoil: `select pg_create_logical_replication_slot('dts_way_reverse', 'pgoutput')`,
      object: 'dts_way_reverse',
      remedy: `choose another id, or, if nobody uses that slot: select pg_drop_replication_slot('dts_way_reverse')`,
      statement: `select pg_drop_replication_slot('dts_way_reverse')`,
    }),
  ],
  [
    'target',
    'a publication of the name that the reverse task needs',
    () => ({
      code: 'target_publication_name_taken',
      spoil: 'create publication dts_way_reverse',
      object: 'dts_way_reverse',
      remedy: `choose another id, or, if nobody uses that publication: drop publication "dts_way_reverse"`,
      statement: 'drop publication "dts_way_reverse"',
    }),
  ],
  [
    'source',
    'a source that its own role may not write',
    ({ role }) => ({
      code: 'source_write_denied',
      spoil: `revoke insert, update on t from ${role}`,
      object: 'public.t',
      remedy: `grant insert, update on "public"."t" to "${role}"`,
    }),
  ],
  [
    'source',
    'a foreign key of the source that would be checked for every row',
    ({ role }) => ({
      code: 'source_triggers_fire',
      spoil: `create table u (id int primary key references t); alter table u owner to ${role}`,
      object: role,
      remedy: `grant set on parameter session_replication_role to "${role}"`,
    }),
  ],
  [
    'source',
    'a trigger of the source that fires for replicated rows',
    ({ role }) => ({
      code: 'source_trigger_fires',
      spoil: `create function f() returns trigger language plpgsql as 'begin return new; end';
        create trigger always before insert on t for each row execute function f();
        alter table t enable always trigger always; grant set on parameter session_replication_role to ${role}`,
      object: 'public.t.always',
      remedy: 'alter table "public"."t" enable trigger "always"',
    }),
  ],
];

describe('with a way back', () => {
  const request: Partial<TaskRequest> = { id: 'way', options: { reverse: true } };

  async function makeReversible(): Promise<Stage> {
    const stage = await makeStage({});
    await stage.target.query(`alter role ${stage.role} replication`);
    return { ...stage, request: { ...stage.request, ...request } };
  }

  test('roles with the documented rights are not blocked', async () => {
    const stage = await makeReversible();
    expect(blockers(await preflight(stage, stage.request))).toEqual([]);
  });

  test.each(onTheWayBack)('%s: %s is found, and the remedy removes it', async (on, _name, obstacleOf) => {
    const stage = await makeReversible();
    await overcome(stage, on, obstacleOf(stage));
  });

  test('what only warns is said: a source that nothing fences, large objects that stay', async () => {
    const stage = await makeReversible();
    await stage.source.query('select lo_create(0)');
    const found = await preflight(stage, { ...stage.request, options: { reverse: true, fence: 'none' } });
    expect(codes(found)).toEqual(
      expect.arrayContaining(['reverse_without_fence', 'reverse_without_large_objects']),
    );
  });
});

/** What the target's table takes and the source's would not: on both sides first, then on one, and the remedy of the finding. */
const intoStandingTables: readonly (readonly [
  code: string,
  source: string,
  target: string,
  remedyOn: Role,
  remedy: string,
])[] = [
  [
    'source_column_missing',
    'create table t (id int primary key)',
    'create table t (id int primary key, more text)',
    'target',
    'alter table "public"."t" drop column "more"',
  ],
  [
    'source_column_missing', // it is not in the stream, and the stream stops at what was not planned
    'create table t (id int primary key)',
    'create table t (id int primary key, twice int generated always as (id * 2) stored)',
    'target',
    'alter table "public"."t" drop column "twice"',
  ],
  [
    'target_relative_extra',
    `create table t (id int primary key) partition by range (id);
     create table t1 partition of t for values from (0) to (10)`,
    `create table t (id int primary key) partition by range (id);
     create table t1 partition of t for values from (0) to (10); create table t2 partition of t default`,
    'target',
    'detach it on the target',
  ],
  [
    'source_column_not_null',
    'create table t (id int primary key, n int not null)',
    'create table t (id int primary key, n int)',
    'target',
    'alter table "public"."t" alter column "n" set not null',
  ],
  [
    'source_enum_lacks_values',
    `create type mood as enum ('calm'); create table t (id int primary key, m mood)`,
    `create type mood as enum ('calm', 'wild'); create table t (id int primary key, m mood)`,
    'source',
    `alter type public.mood add value 'wild'`,
  ],
  [
    'source_identity_always',
    'create table t (id int generated always as identity primary key)',
    'create table t (id int generated by default as identity primary key)',
    'source',
    'alter table "public"."t" alter column "id" set generated by default',
  ],
  [
    'target_identity_differs',
    'create table t (id int primary key, n int not null)',
    'create table t (id int not null unique, n int primary key)',
    'target',
    'alter table "public"."t" replica identity using index "t_id_key"',
  ],
  [
    'target_identity_differs',
    'create table t (id int primary key, n int)',
    'create table t (id int primary key, n int); alter table t replica identity full',
    'target',
    'alter table "public"."t" replica identity using index "t_pkey"',
  ],
];

describe('with a way back from tables that stand', () => {
  const request: Partial<TaskRequest> = { options: { reverse: true, schema: 'existing' } };

  test.each(intoStandingTables)(
    '%s: source %s; target %s',
    async (code, source, target, remedyOn, remedy) => {
      const pair = await makePair();
      await pair.source.query(source);
      await pair.target.query(target);
      const found = blockers(await preflight(pair, request));
      expect(codes(found)).toEqual([code]);
      expect(found[0]?.remedy).toContain(remedy);
      const inWords = remedy.startsWith('detach');
      await execute(pair[remedyOn], inWords ? 'alter table t detach partition t2' : remedy);
      expect(blockers(await preflight(pair, request))).toEqual([]);
    },
  );

  test('equal tables pass, those without a key with replica_identity full', async () => {
    const pair = await makePair();
    for (const side of [pair.source, pair.target])
      await side.query('create table t (id int primary key); create table log (at timestamptz, what text)');
    expect(
      blockers(await preflight(pair, { options: { ...request.options, replicaIdentity: 'full' } })),
    ).toEqual([]);
  });

  test('a role on the target that does not own them is found, and the remedy removes it', async () => {
    const stage = await makeStage({});
    await stage.target.query(`alter role ${stage.role} replication; create table t (id int primary key, note text);
      grant all on t to ${stage.role}; grant set on parameter session_replication_role to ${stage.role}`);
    await stage.source.query(`alter role ${stage.role} superuser`);
    const wanted = { ...stage.request, ...request };
    const found = blockers(await preflight(stage, wanted));
    expect(codes(found)).toEqual(['target_table_not_owned']);
    expect(found[0]?.remedy).toBe(`grant "postgres" to "${stage.role}"`);
    await execute(stage.target, found[0]?.remedy ?? '');
    expect(blockers(await preflight(stage, wanted))).toEqual([]);
  });

  test('a unique index that the target lacks is a warning', async () => {
    const pair = await makePair();
    await pair.source.query('create table t (id int primary key, n int unique)');
    await pair.target.query('create table t (id int primary key, n int)');
    const found = await preflight(pair, request);
    expect(found.filter(({ code }) => code === 'source_unique_extra')).toMatchObject([
      { severity: 'warning', object: 'public.t.t_n_key' },
    ]);
    expect(blockers(found)).toEqual([]);
  });
});

describe('selection', () => {
  test('names that are no tables are found, each with its reason', async () => {
    const { source, target } = await makePair();
    await source.query('create table "Users" (id int primary key); create view v as select 1');
    const found = await preflight(
      { source, target },
      { tables: ['Users', 'users', 'v', 'nowhere.t'], tableSuffix: '_new' },
    );
    expect(blockers(found)).toEqual(
      [
        ['users', 'does not exist; names are taken literally, and public.Users does'],
        ['v', 'is a view'],
        ['nowhere.t', 'does not exist: there is no schema nowhere'],
      ].map(([object, reason]) => ({
        code: 'table_unusable',
        severity: 'blocking',
        object,
        message: `source: ${object} ${reason}`,
        remedy: 'correct tables in the request',
      })),
    );
    expect(blockers(await preflight({ source, target }, { tables: ['Users'] }))).toEqual([]);
  });

  test('a database without tables is found', async () => {
    const pair = await makePair();
    expect(codes(blockers(await preflight(pair)))).toEqual(['no_tables']);
    await pair.source.query('create table t (id int primary key)');
    expect(blockers(await preflight(pair))).toEqual([]);
  });

  test('a type of an extension that the target does not have is found', async () => {
    const pair = await makePair({ source: 16, target: 18 }); // 17 dropped adminpack
    await pair.source.query(`create extension adminpack; create type mood as enum ('calm');
      alter extension adminpack add type mood; create table t (id int primary key, moods mood[])`);
    expect(blockers(await preflight(pair))).toMatchObject([
      {
        code: 'extension_unavailable',
        object: 'adminpack',
        remedy: `install the extension's package on the target, so that this works: create extension "adminpack"`,
      },
    ]);
    await pair.source.query('alter extension adminpack drop type mood');
    expect(blockers(await preflight(pair))).toEqual([]);
  });
});

describe('servers', () => {
  test.each([
    [16, 13],
    [18, 16],
  ] as const)('a source %i is not brought to a target %i', async (source, target) => {
    const pair = await makePair({ source, target });
    await pair.source.query('create table t (id int primary key)');
    expect(blockers(await preflight(pair))).toEqual([
      {
        code: 'target_version_older',
        severity: 'blocking',
        object: 'target',
        message: `the target is PostgreSQL ${target}, older than the source (${source}): its schema may not be accepted`,
        remedy: `use a target of version ${source} or later`,
      },
    ]);
  });

  test('a target whose encoding cannot hold the text is found', async () => {
    const pair = await makePair();
    const dbname = `${pair.target.dbname}_latin`;
    await pair.source.query('create table t (id int primary key)');
    await pair.target.query(`create database ${dbname} encoding 'LATIN1' locale 'C' template template0`);
    onTestFinished(async () => void (await pair.target.query(`drop database ${dbname}`)));
    const targetDb = { ...pair.target.connection, dbname };
    expect(blockers(await preflight(pair, { targetDb }))).toMatchObject([
      { code: 'encodings_differ', remedy: `create the target database with encoding 'UTF8'` },
    ]);
  });

  test('source and target in one database need a suffix', async () => {
    const { source } = await makePair();
    await source.query('create table t (id int primary key)');
    const pair = { source, target: source };
    expect(blockers(await preflight(pair))).toMatchObject([
      {
        code: 'target_name_taken',
        object: 'public.t',
        remedy: 'source and target are the same database: set table_suffix',
      },
    ]);
    expect(blockers(await preflight(pair, { tableSuffix: '_new' }))).toEqual([]);
  });
});

describe.each(['source', 'target'] as const)('a %s that cannot be reached', (side) => {
  const field = side === 'source' ? 'sourceDb' : 'targetDb';
  const makeHere = async (): Promise<Stage & { connection: TestDatabase['connection'] }> => {
    const stage = await makeStage({});
    return {
      ...stage,
      connection: { ...stage[side].connection, user: stage.role, password: PASSWORD },
    };
  };

  test('because nobody listens', async () => {
    const stage = await makeHere();
    const port = await closedPort();
    const request = { ...stage.request, [field]: { ...stage.connection, port } };
    expect(await preflight(stage, request)).toContainEqual({
      code: `${side}_connection_failed`,
      severity: 'blocking',
      object: side,
      message: expect.stringContaining(`${side}: connect ECONNREFUSED 127.0.0.1:${port}`) as string,
      remedy: `check that PostgreSQL listens on 127.0.0.1:${port} and that nothing between us blocks it`,
    });
  });

  test('because the password is wrong', async () => {
    const stage = await makeHere();
    const request = { ...stage.request, [field]: { ...stage.connection, password: 'other' } };
    expect(blockers(await preflight(stage, request))).toEqual([
      {
        code: `${side}_authentication_failed`,
        severity: 'blocking',
        object: side,
        message: `${side}: password authentication failed for user "${stage.role}"`,
        remedy: `correct the password, or: alter role "${stage.role}" password '…'`,
      },
    ]);
    await execute(stage[side], `alter role "${stage.role}" password 'other'`);
    expect(blockers(await preflight(stage, request))).toEqual([]);
  });

  test('because no password is given', async () => {
    const stage = await makeHere();
    const { password: _, ...rest } = stage.connection;
    expect(blockers(await preflight(stage, { ...stage.request, [field]: rest }))).toMatchObject([
      { code: `${side}_authentication_failed`, object: side, remedy: 'check the password' },
    ]);
  });

  test('because the role may not log in', async () => {
    const stage = await makeHere();
    await stage[side].query(`alter role ${stage.role} nologin`);
    const [found, ...others] = blockers(await preflight(stage, stage.request));
    expect(others).toEqual([]);
    expect(found).toMatchObject({ code: `${side}_authentication_failed`, object: side });
    const statement = `alter role "${stage.role}" login`;
    expect(found?.remedy).toBe(`correct user, or: ${statement}`);
    await execute(stage[side], statement);
    expect(blockers(await preflight(stage, stage.request))).toEqual([]);
  });

  test('because its database is missing', async () => {
    const stage = await makeHere();
    const dbname = `${stage[side].dbname}_missing`;
    const request = { ...stage.request, [field]: { ...stage.connection, dbname } };
    const statement = `create database "${dbname}"`;
    expect(blockers(await preflight(stage, request))).toEqual([
      {
        code: `${side}_database_missing`,
        severity: 'blocking',
        object: side,
        message: `${side}: database "${dbname}" does not exist`,
        remedy: `correct dbname, or: ${statement}`,
      },
    ]);
    await execute(stage[side], statement);
    onTestFinished(async () => void (await stage[side].query(`drop database ${dbname}`)));
    expect(codes(await preflight(stage, request))).not.toContain(`${side}_database_missing`);
  });

  test('does not hide what the other has to say', async () => {
    const stage = await makeHere();
    const other = side === 'source' ? 'target' : 'source';
    await stage[other].query(`revoke create on database ${stage[other].dbname} from ${stage.role}`);
    const request = { ...stage.request, [field]: { ...stage.connection, port: await closedPort() } };
    expect(codes(blockers(await preflight(stage, request))).sort()).toEqual(
      [`${side}_connection_failed`, `${other}_create_denied`].sort(),
    );
  });
});

test('preflight that is stopped throws and leaves no connection', async () => {
  const pair = await makePair();
  await pair.source.query('create table t (id int primary key)');
  const blocker = await pair.source.connect();
  await blocker.query('begin; lock table pg_catalog.pg_inherits in access exclusive mode');
  const scope = makeScope(pair);
  const run = expect(runPreflight(scope)).rejects.toThrow(/abort|stopped/);
  await waitFor(
    async () =>
      (
        await pair.source.query(
          `select from pg_locks where not granted and relation = 'pg_catalog.pg_inherits'::regclass`,
        )
      ).rowCount === 1,
  );
  scope.controller.abort();
  await scope.connections.closeAll();
  await run;
  expect(scope.connections.connectionCount).toBe(0);
});

describe('a source with little room', () => {
  let server: EmbeddedServer;
  let admin: pg.Client;

  beforeAll(async () => {
    server = await startServer({
      major: 16,
      settings: {
        wal_level: 'replica',
        max_replication_slots: '1',
        max_wal_senders: '2',
        max_prepared_transactions: '1',
        max_connections: '20',
        max_locks_per_transaction: '10',
      },
    });
    admin = await connect();
    await admin.query('create table t (id int primary key)');
  });

  afterAll(async () => {
    await admin?.end();
    await server?.stop();
  });

  async function connect(replication?: 'database'): Promise<pg.Client> {
    const client = new pg.Client({
      connectionString: server.url('postgres'),
      ssl: false,
      ...(replication === undefined ? {} : ({ replication } as object)),
    });
    client.on('error', () => undefined);
    await client.connect();
    return client;
  }

  type Check = (over?: Partial<TaskRequest>) => Promise<Finding[]>;

  /** Preflight with this server as the source; its wal_level is always in the way. */
  async function makeHere(): Promise<Check> {
    const { target } = await makePair();
    const { host, port, user, password } = server;
    const sourceDb = { host, port, user, password, dbname: 'postgres', sslmode: 'disable' } as const;
    return (over) => preflight({ source: target, target }, { sourceDb, ...over });
  }

  test('wal_level is found, and the remedy is what configures it', async () => {
    const check = await makeHere();
    const [found, ...others] = blockers(await check());
    expect(others).toEqual([]);
    expect(found).toMatchObject({ code: 'wal_level_not_logical', object: 'wal_level' });
    const statement = `alter system set wal_level = 'logical'`;
    expect(found?.remedy).toContain(`${statement}; then restart the server`);
    await admin.query(statement);
    expect(
      (
        await admin.query(
          `select name, setting from pg_file_settings where name = 'wal_level' and sourcefile like '%auto.conf'`,
        )
      ).rows,
    ).toEqual([{ name: 'wal_level', setting: 'logical' }]);
  });

  test('a slot that is taken leaves none', async () => {
    const check = await makeHere();
    await admin.query(`select pg_create_physical_replication_slot('standby')`);
    const found = await check();
    await admin.query(`select pg_drop_replication_slot('standby')`);
    expect(found).toContainEqual({
      code: 'replication_slots_exhausted',
      severity: 'blocking',
      object: 'max_replication_slots',
      message: 'source: all 1 replication slots are in use; this task needs one',
      remedy:
        'alter system set max_replication_slots = 2; then restart the server (or drop a slot that nobody uses)',
    });
    expect(codes(await check())).not.toContain('replication_slots_exhausted');
  });

  test('walsenders that are taken leave none, those of other migrations too', async () => {
    const check = await makeHere();
    const taken = [await connect('database'), await connect('database')];
    await taken[0]?.query(`set application_name = 'dts/other/source/stream'`);
    const found = blockers(await check());
    await Promise.all(taken.map((client) => client.end()));
    expect(codes(found)).toEqual(['wal_level_not_logical', 'walsenders_exhausted']);
    expect(found[1]).toMatchObject({
      object: 'max_wal_senders',
      remedy: 'alter system set max_wal_senders = 3; then restart the server',
    });
    expect(codes(blockers(await check()))).toEqual(['wal_level_not_logical']);
  });

  test('tables and indexes that would fill the lock table are found', async () => {
    const check = await makeHere();
    await admin.query('create schema many');
    for (let n = 0; n < 78; n++) await admin.query(`create table many.t${n} (id int primary key)`);
    const request = { tables: ['many.*'] };
    expect(codes(await check(request))).not.toContain('source_lock_table_small'); // 156 of 210
    await admin.query('create index on many.t0 (id); create index on many.t0 (id)');
    const found = (await check(request)).filter(({ code }) => code === 'source_lock_table_small');
    for (let n = 0; n < 78; n++) await admin.query(`drop table many.t${n}`);
    await admin.query('drop schema many');
    expect(found).toMatchObject([
      {
        severity: 'warning',
        remedy: 'alter system set max_locks_per_transaction = 16; then restart the server',
      },
    ]);
  });

  test('as a target it cannot serve a way back', async () => {
    const { source } = await makePair();
    const { host, port, user, password } = server;
    const targetDb = { host, port, user, password, dbname: 'postgres', sslmode: 'disable' } as const;
    await source.query('create table v (id int primary key)');
    await admin.query(`select pg_create_physical_replication_slot('standby')`);
    const found = await preflight({ source, target: source }, { targetDb, options: { reverse: true } });
    await admin.query(`select pg_drop_replication_slot('standby')`);
    expect(codes(blockers(found))).toEqual([
      'target_wal_level_not_logical',
      'target_replication_slots_exhausted',
    ]);
    expect(blockers(found).every(({ message }) => message.startsWith('target: '))).toBe(true);
    expect(blockers(await preflight({ source, target: source }, { targetDb }))).toEqual([]);
  });

  test('a prepared transaction is found in whatever database it is', async () => {
    const check = await makeHere();
    await admin.query('create database elsewhere');
    const elsewhere = new pg.Client({ connectionString: server.url('elsewhere'), ssl: false });
    await elsewhere.connect();
    await elsewhere.query(`begin; create table x (); prepare transaction 'it''s'`);
    const found = await check();
    expect(found.filter(({ code }) => code === 'prepared_transaction')).toEqual([
      {
        code: 'prepared_transaction',
        severity: 'warning',
        object: `it's`,
        message: expect.stringContaining('in database elsewhere') as string,
        remedy: `commit prepared 'it''s', or: rollback prepared 'it''s'`,
      },
    ]);
    await elsewhere.query(`rollback prepared 'it''s'`);
    await elsewhere.end();
    expect(codes(await check())).not.toContain('prepared_transaction');
  });

  test('a limit of the WAL that slots keep is found, and the remedy removes it', async () => {
    const check = await makeHere();
    const isLimited = async (): Promise<boolean> => codes(await check()).includes('slot_wal_limited');
    expect(await isLimited()).toBe(false);
    await admin.query(`alter system set max_slot_wal_keep_size = '1GB'`);
    await admin.query('select pg_reload_conf()');
    await waitFor(isLimited);
    const found = (await check()).find(({ code }) => code === 'slot_wal_limited');
    expect(found).toMatchObject({
      severity: 'warning',
      object: 'max_slot_wal_keep_size',
      remedy: 'keep pauses short, or: alter system set max_slot_wal_keep_size = -1; select pg_reload_conf()',
    });
    await admin.query('alter system set max_slot_wal_keep_size = -1');
    await admin.query('select pg_reload_conf()');
    await waitFor(async () => !(await isLimited()));
  });

  test('pg_hba.conf without a line for us is found, and the line of the remedy admits us', async () => {
    const check = await makeHere();
    await admin.query(`create role "Some One" login password '${PASSWORD}'`);
    const hba = join(server.directory, 'data', 'pg_hba.conf');
    const { uid, gid } = statSync(hba);
    const lines = 'host all postgres 127.0.0.1/32 scram-sha-256\n';
    const write = async (text: string): Promise<void> => {
      writeFileSync(hba, text);
      chownSync(hba, uid, gid);
      await admin.query('select pg_reload_conf()');
    };
    const someone = { user: 'Some One', password: PASSWORD, dbname: 'postgres', sslmode: 'disable' } as const;
    const refusal = async (): Promise<Finding | undefined> =>
      (await check({ sourceDb: { host: server.host, port: server.port, ...someone } })).find(
        ({ code }) => code === 'source_authentication_failed',
      );
    expect(await refusal()).toBeUndefined();
    await write(lines);
    const found = await waitFor(refusal);
    expect(found).toMatchObject({ severity: 'blocking', object: 'source' });
    const [, line = ''] = found.remedy?.split('add to pg_hba.conf and reload: ') ?? [];
    expect(line).toBe(`hostnossl "postgres" "Some One" <address of this service>/32 scram-sha-256`);
    await write(`${lines}${line.replace('<address of this service>', '127.0.0.1')}\n`);
    await waitFor(async () => (await refusal()) === undefined);
  });
});
