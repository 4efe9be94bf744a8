// What each check says about the facts that it was given: the finding with its exact remedy, and nothing when all is
// well. The facts themselves are read in test/integration/preflight.test.ts.
import { DatabaseError } from 'pg';
import { describe, expect, test } from 'vitest';
import { MigrationError } from '../../src/model/errors.ts';
import { isBlocked, type Finding } from '../../src/model/finding.ts';
import type { Endpoint } from '../../src/model/endpoint.ts';
import type { CatalogTable, TableSelection } from '../../src/postgres/catalog.ts';
import { fromPostgres } from '../../src/postgres/errors.ts';
import { assessActivity, assessOldSnapshot, type Activity } from '../../src/preflight/activity.ts';
import {
  assessConnections,
  assessEncodings,
  assessExtensions,
  assessLockTable,
  type ConnectionLimit,
} from '../../src/preflight/capacity.ts';
import { assessConnection, hbaLine } from '../../src/preflight/connection.ts';
import {
  assessDatabasePrivileges,
  type DatabasePrivileges,
} from '../../src/preflight/database-privileges.ts';
import { nameSome } from '../../src/preflight/name-list.ts';
import { assessReadOnly, type ReadOnlyFacts } from '../../src/preflight/read-only.ts';
import { assessReplicationConnection } from '../../src/preflight/replication-connection.ts';
import { assessReplicationRole, type RoleFacts } from '../../src/preflight/replication-role.ts';
import { assessRowSecurity } from '../../src/preflight/row-security.ts';
import { assessSlots, type SlotFacts, type SlotOwnership } from '../../src/preflight/slots.ts';
import { assessTablePrivileges, type TablePrivileges } from '../../src/preflight/table-privileges.ts';
import { assessSelection } from '../../src/preflight/tables.ts';
import { assessTargetNames, targetNames, type TargetNames } from '../../src/preflight/target-names.ts';
import { assessMajor, assessMajorOrder } from '../../src/preflight/versions.ts';
import { assessWalLevel } from '../../src/preflight/wal-level.ts';
import { assessWalsenders } from '../../src/preflight/walsenders.ts';

type Expected = readonly [
  code: string,
  severity: Finding['severity'],
  object: string,
  remedy: string | null,
  says: string,
];

/** Facts as they should be, and for each fault the finding. */
function describeCheck(
  name: string,
  well: readonly (readonly [name: string, found: Finding[]])[],
  faults: readonly (readonly [name: string, found: Finding[], ...expected: Expected[]])[],
): void {
  describe(name, () => {
    test.each(well)('%s: nothing to say', (_name, found) => {
      expect(found).toEqual([]);
    });
    for (const [fault, found, ...expected] of faults)
      test(fault, () => {
        expect(found).toEqual(
          expected.map(([code, severity, object, remedy, says]) => ({
            code,
            severity,
            object,
            remedy,
            message: expect.stringContaining(says) as string,
          })),
        );
      });
  });
}

// names that need their quotes
const user = 'Some "One"';
const quotedUser = '"Some ""One"""';

const activity = (over: Partial<Activity> = {}): Finding[] =>
  assessActivity({ transactions: [], prepared: [], keepSize: '-1', subscriptions: [], ...over });
const transaction = { pid: 42, user: 'app', seconds: 31, query: 'update t' };

describeCheck(
  'activity',
  [['a quiet source', activity()]],
  [
    [
      'a long transaction',
      activity({ transactions: [transaction] }),
      [
        'long_transaction',
        'warning',
        'pid 42',
        'end it, or: select pg_terminate_backend(42)',
        'of app has run for 31 s (update t)',
      ],
    ],
    [
      'a long transaction of nobody',
      activity({ transactions: [{ ...transaction, user: null }] }),
      [
        'long_transaction',
        'warning',
        'pid 42',
        'end it, or: select pg_terminate_backend(42)',
        'of an internal process has run',
      ],
    ],
    [
      'a prepared transaction',
      activity({ prepared: [{ gid: `it's`, database: 'other', seconds: 7 }] }),
      [
        'prepared_transaction',
        'warning',
        `it's`,
        `commit prepared 'it''s', or: rollback prepared 'it''s'`,
        `it's in database other has waited for 7 s`,
      ],
    ],
    [
      'a limit of the WAL',
      activity({ keepSize: '1GB' }),
      [
        'slot_wal_limited',
        'warning',
        'max_slot_wal_keep_size',
        'keep pauses short, or: alter system set max_slot_wal_keep_size = -1; select pg_reload_conf()',
        'max_slot_wal_keep_size is 1GB',
      ],
    ],
    [
      'a subscription',
      activity({ subscriptions: ['Feed'] }),
      [
        'subscription_writes_tables',
        'warning',
        'Feed',
        'before the cutover: alter subscription "Feed" disable',
        'the subscription Feed',
      ],
    ],
  ],
);

const limit = (of: ConnectionLimit['of'], free: number): ConnectionLimit => ({
  of,
  name: of === 'server' ? null : 'Shop',
  max: 20,
  free,
});

describeCheck(
  'connections',
  [
    ['no limit', assessConnections('source', [], 4)],
    ['as many as wanted', assessConnections('source', [limit('server', 16), limit('role', 16)], 4)],
    ['fewer jobs', assessConnections('target', [limit('database', 10)], 1)],
  ],
  [
    [
      'a full server',
      assessConnections('source', [limit('server', 5)], 4),
      [
        'source_connections_scarce',
        'blocking',
        'source',
        'lower options.copy_jobs, or: alter system set max_connections = 31; then restart the server',
        'source: 5 of the 20 connections that the server allows are free; with copy_jobs 4 the task may open 16',
      ],
    ],
    [
      'limits of database and role',
      assessConnections('target', [limit('server', 16), limit('database', 15), limit('role', 6)], 4),
      [
        'target_connections_scarce',
        'warning',
        'Shop',
        'lower options.copy_jobs, or: alter database "Shop" connection limit 21',
        'that database Shop allows',
      ],
      [
        'target_connections_scarce',
        'warning',
        'Shop',
        'lower options.copy_jobs, or: alter role "Shop" connection limit 30',
        'that role Shop allows',
      ],
    ],
  ],
);

const lockTable = { perTransaction: 64, holders: 100 };

describeCheck(
  'lock table',
  [['three quarters of it', assessLockTable('source', lockTable, 4_800)]],
  [
    [
      'more tables and indexes than it should hold',
      assessLockTable('target', lockTable, 4_801),
      [
        'target_lock_table_small',
        'warning',
        'max_locks_per_transaction',
        'alter system set max_locks_per_transaction = 97; then restart the server',
        'target: one transaction of the task locks up to 4801 tables and indexes',
      ],
    ],
  ],
);

describeCheck(
  'encodings',
  [
    ['the same', assessEncodings('LATIN1', 'LATIN1')],
    ['UTF8 holds everything', assessEncodings('LATIN1', 'UTF8')],
  ],
  [
    [
      'a narrower target',
      assessEncodings('UTF8', 'LATIN1'),
      [
        'encodings_differ',
        'blocking',
        'target',
        `create the target database with encoding 'UTF8'`,
        `is UTF8, the target's LATIN1`,
      ],
    ],
    [
      'another target',
      assessEncodings('LATIN2', 'LATIN1'),
      [
        'encodings_differ',
        'blocking',
        'target',
        `create the target database with encoding 'UTF8' or 'LATIN2'`,
        'is LATIN2',
      ],
    ],
  ],
);

describeCheck(
  'extensions',
  [['none is missing', assessExtensions([])]],
  [
    [
      'one is missing',
      assessExtensions(['uuid-ossp']),
      [
        'extension_unavailable',
        'blocking',
        'uuid-ossp',
        `install the extension's package on the target, so that this works: create extension "uuid-ossp"`,
        'types of the extension uuid-ossp',
      ],
    ],
  ],
);

const endpoint: Endpoint = {
  host: 'db.example',
  port: 5433,
  user,
  dbname: 'Shop',
  sslmode: 'prefer',
  password: { from: 'stored' },
};

/** As `fromPostgres` classifies what a server answers. */
function refusal(code: string, routine: string): MigrationError {
  const error = Object.assign(new DatabaseError('refused', 0, 'error'), { code, routine });
  return fromPostgres(error, { role: 'source' });
}
const refused = Object.assign(new Error('connect ECONNREFUSED'), { code: 'ECONNREFUSED' });

const connection = (...facts: Parameters<typeof assessConnection>): Finding[] => [assessConnection(...facts)];

describeCheck(
  'connection',
  [],
  [
    [
      'nobody listens',
      connection('target', endpoint, fromPostgres(refused, { role: 'target' })),
      [
        'target_connection_failed',
        'blocking',
        'target',
        'check that PostgreSQL listens on db.example:5433 and that nothing between us blocks it',
        'target: connect ECONNREFUSED',
      ],
    ],
    [
      'a wrong password',
      connection('source', endpoint, refusal('28P01', 'auth_failed')),
      [
        'source_authentication_failed',
        'blocking',
        'source',
        `correct the password, or: alter role ${quotedUser} password '…'`,
        'source: refused',
      ],
    ],
    [
      'no line in pg_hba.conf',
      connection('source', endpoint, refusal('28000', 'ClientAuthentication')),
      [
        'source_authentication_failed',
        'blocking',
        'source',
        `add to pg_hba.conf and reload: host "Shop" ${quotedUser} <address of this service>/32 scram-sha-256`,
        'source: refused',
      ],
    ],
    [
      'a role that may not log in',
      connection('source', endpoint, refusal('28000', 'InitializeSessionUserId')),
      [
        'source_authentication_failed',
        'blocking',
        'source',
        `correct user, or: alter role ${quotedUser} login`,
        'source: refused',
      ],
    ],
    [
      'no such database',
      connection('source', endpoint, refusal('3D000', 'InitPostgres')),
      [
        'source_database_missing',
        'blocking',
        'source',
        'correct dbname, or: create database "Shop"',
        'source: refused',
      ],
    ],
    [
      'an error with a hint',
      connection('target', endpoint, new MigrationError('tls_failed', 'no TLS', { hint: 'check ssl' })),
      ['target_tls_failed', 'blocking', 'target', 'check ssl', 'target: no TLS'],
    ],
    [
      'an error without',
      connection('target', endpoint, new MigrationError('sql_failed', 'target: odd')),
      ['target_sql_failed', 'blocking', 'target', null, 'target: odd'],
    ],
  ],
);

test.each([
  [endpoint, '10.0.0.7', `host "Shop" ${quotedUser} 10.0.0.7/32 scram-sha-256`],
  [
    { ...endpoint, sslmode: 'disable' },
    'fe80::1',
    `hostnossl "Shop" ${quotedUser} fe80::1/128 scram-sha-256`,
  ],
  [{ ...endpoint, host: '/run/postgresql' }, null, `local "Shop" ${quotedUser} scram-sha-256`],
] as const)('the line of pg_hba.conf %#', (to, address, line) => {
  expect(hbaLine(to, address)).toBe(line);
});

const databasePrivileges = (role: 'source' | 'target', over: Partial<DatabasePrivileges> = {}): Finding[] =>
  assessDatabasePrivileges(role, {
    dbname: 'Shop',
    user,
    canCreate: true,
    canUseOurSchema: null,
    canWriteOurTables: null,
    ...over,
  });
const grantCreate = `grant create on database "Shop" to ${quotedUser}`;
const grantSchema = `grant usage, create on schema "dts" to ${quotedUser}`;

describeCheck(
  'privileges on the database',
  [
    ['source', databasePrivileges('source')],
    ['target', databasePrivileges('target')],
    [
      'a schema dts that we may use',
      databasePrivileges('target', { canUseOurSchema: true, canWriteOurTables: true }),
    ],
    ['tables in dts on the source', databasePrivileges('source', { canWriteOurTables: false })],
  ],
  [
    [
      'source without CREATE',
      databasePrivileges('source', { canCreate: false }),
      ['source_create_denied', 'blocking', 'Shop', grantCreate, 'may not create the publication'],
    ],
    [
      'target without CREATE',
      databasePrivileges('target', { canCreate: false }),
      ['target_create_denied', 'blocking', 'Shop', grantCreate, 'may not create schemas'],
    ],
    [
      'a schema dts that we may not use',
      databasePrivileges('source', { canUseOurSchema: false }),
      ['source_dts_schema_denied', 'blocking', 'dts', grantSchema, 'made by another role'],
    ],
    [
      'tables in dts that we may not write',
      databasePrivileges('target', { canUseOurSchema: false, canWriteOurTables: false }),
      ['target_dts_schema_denied', 'blocking', 'dts', grantSchema, 'made by another role'],
      [
        'target_dts_tables_denied',
        'blocking',
        'dts',
        `grant select, insert, update, delete on all tables in schema "dts" to ${quotedUser}`,
        'may not write them',
      ],
    ],
  ],
);

const readOnly = (role: 'source' | 'target', over: Partial<ReadOnlyFacts> = {}): Finding[] =>
  assessReadOnly(role, {
    inRecovery: false,
    defaultReadOnly: false,
    setForRole: false,
    dbname: 'Shop',
    user,
    ...over,
  });

describeCheck(
  'read-only servers',
  [
    ['source', readOnly('source')],
    ['target', readOnly('target')],
    ['a source that is read-only by default', readOnly('source', { defaultReadOnly: true })],
    ['a role that is exempt', readOnly('target', { setForRole: true })],
  ],
  [
    ...(['source', 'target'] as const).map(
      (role) =>
        [
          `a standby as ${role}`,
          readOnly(role, { inRecovery: true, defaultReadOnly: true }),
          [
            `${role}_is_standby`,
            'blocking',
            role,
            `give the address of the primary server as the ${role}`,
            'is a standby',
          ],
        ] as [string, Finding[], Expected],
    ),
    [
      'a database',
      readOnly('target', { defaultReadOnly: true }),
      [
        'target_read_only',
        'blocking',
        'target',
        'begin read write; alter database "Shop" set default_transaction_read_only = off; commit',
        'default_transaction_read_only is on',
      ],
    ],
    [
      'a role',
      readOnly('target', { defaultReadOnly: true, setForRole: true }),
      [
        'target_read_only',
        'blocking',
        'target',
        `begin read write; alter role ${quotedUser} in database "Shop" set default_transaction_read_only = off; commit`,
        'default_transaction_read_only is on',
      ],
    ],
  ],
);

const role = (over: Partial<RoleFacts> = {}): RoleFacts => ({
  name: user,
  isSuperuser: false,
  hasReplication: false,
  inRdsReplication: null,
  ...over,
});

describeCheck(
  'the role',
  [
    ['REPLICATION', assessReplicationRole(role({ hasReplication: true }))],
    ['a superuser', assessReplicationRole(role({ isSuperuser: true }))],
    ['a member of rds_replication', assessReplicationRole(role({ inRdsReplication: true }))],
  ],
  [
    [
      'neither',
      assessReplicationRole(role()),
      [
        'role_lacks_replication',
        'blocking',
        user,
        `alter role ${quotedUser} replication`,
        'may not replicate',
      ],
    ],
    [
      'neither, on RDS',
      assessReplicationRole(role({ inRdsReplication: false })),
      [
        'role_lacks_replication',
        'blocking',
        user,
        `grant rds_replication to ${quotedUser}`,
        'may not replicate',
      ],
    ],
  ],
);

const replicationConnection = (
  code: MigrationError['code'] | null,
  over: { role?: RoleFacts; used?: number } = {},
): Finding[] =>
  assessReplicationConnection(
    code === null ? null : new MigrationError(code, 'no such luck'),
    endpoint,
    '10.0.0.7',
    over.role ?? role({ hasReplication: true }),
    { max: 10, used: over.used ?? 9 },
  );
const replicationRefused = (remedy: string): Expected => [
  'replication_connection_refused',
  'blocking',
  'source',
  remedy,
  '(no such luck)',
];

describeCheck(
  'a connection for replication',
  [
    ['accepted', replicationConnection(null)],
    ['said by the role', replicationConnection('insufficient_privilege', { role: role() })],
    ['said by the walsenders', replicationConnection('too_many_connections', { used: 10 })],
  ],
  [
    [
      'pg_hba.conf',
      replicationConnection('authentication_failed', { role: role() }),
      replicationRefused(
        `add to pg_hba.conf and reload: host "Shop" ${quotedUser} 10.0.0.7/32 scram-sha-256`,
      ),
    ],
    [
      'a right',
      replicationConnection('insufficient_privilege'),
      replicationRefused('give the role the right to replicate'),
    ],
    [
      'a limit',
      replicationConnection('too_many_connections'),
      replicationRefused('raise the connection limit of the role or of the database'),
    ],
    [
      'a pooler',
      replicationConnection('connection_failed'),
      replicationRefused(
        `give the server's own address: a connection pooler does not pass the replication protocol on`,
      ),
    ],
  ],
);

const named = (name: string): { schema: string; name: string } => ({ schema: 'public', name });

describeCheck(
  'row-level security',
  [['applies to nothing', assessRowSecurity([], user)]],
  [
    [
      'one table',
      assessRowSecurity([named('T')], user),
      [
        'row_security_active',
        'blocking',
        'public.T',
        `alter role ${quotedUser} bypassrls`,
        'hides rows of public.T',
      ],
    ],
    [
      'two tables are one finding',
      assessRowSecurity([named('a'), named('b')], user),
      [
        'row_security_active',
        'blocking',
        'source',
        `alter role ${quotedUser} bypassrls`,
        'public.a, public.b',
      ],
    ],
  ],
);

describeCheck(
  'transactions on the target',
  [['none is old', assessOldSnapshot(null)]],
  [
    [
      'one is',
      assessOldSnapshot(transaction),
      [
        'target_long_transaction',
        'warning',
        'pid 42',
        'end it, or: select pg_terminate_backend(42)',
        'of app has been open for 31 s (update t)',
      ],
    ],
  ],
);

const slots = (facts: Partial<SlotFacts> = {}, ownership: Partial<SlotOwnership> = {}): Finding[] =>
  assessSlots(
    {
      max: 10,
      used: 8,
      user,
      refused: [],
      slotExists: false,
      publicationExists: false,
      idleTimeout: '0',
      physicalSlots: [],
      standbys: 0,
      synchronizedStandbys: '',
      ...facts,
    },
    { name: 'dts_t', slotIsOurs: false, publicationIsOurs: false, ...ownership },
  );

describeCheck(
  'slots',
  [
    ['two are free', slots()],
    ['all are taken, one by us', slots({ used: 10, slotExists: true }, { slotIsOurs: true })],
    ['our publication', slots({ publicationExists: true }, { publicationIsOurs: true })],
  ],
  [
    [
      'a standby that gets no copy of the slot',
      slots({ physicalSlots: ['a', 'b'], standbys: 2 }),
      [
        'slot_without_failover',
        'info',
        'synchronized_standby_slots',
        `alter system set synchronized_standby_slots = 'a, b'; select pg_reload_conf(); and on the standbys sync_replication_slots = on, hot_standby_feedback = on and a dbname in primary_conninfo`,
        'after a failover every table must be copied again',
      ],
    ],
    [
      'a standby of a version that cannot have one',
      slots({ standbys: 1, synchronizedStandbys: null }),
      ['slot_without_failover', 'info', 'synchronized_standby_slots', null, 'must be copied again'],
    ],
    [
      'standbys that get a copy',
      slots({ physicalSlots: ['a'], standbys: 1, synchronizedStandbys: 'a' }),
      [
        'failover_slot',
        'info',
        'synchronized_standby_slots',
        null,
        'The stream waits for a: one of them that is down holds it up. What it reads comes from the walsender alone',
      ],
    ],
    [
      'all are taken',
      slots({ used: 10 }),
      [
        'replication_slots_exhausted',
        'blocking',
        'max_replication_slots',
        'alter system set max_replication_slots = 11; then restart the server (or drop a slot that nobody uses)',
        'all 10 replication slots are in use',
      ],
    ],
    [
      'none is left to catch up with',
      slots({ used: 9 }),
      [
        'catch_up_slot_missing',
        'info',
        'max_replication_slots',
        'alter system set max_replication_slots = 11; then restart the server',
        'one replication slot is free',
      ],
    ],
    [
      'functions to catch up with that were revoked',
      slots({ refused: ['f(name)', 'g(name, pg_lsn)'] }),
      [
        'catch_up_not_permitted',
        'info',
        user,
        `grant execute on function pg_catalog.f(name) to ${quotedUser}; grant execute on function pg_catalog.g(name, pg_lsn) to ${quotedUser}`,
        'may not execute f(name), g(name, pg_lsn)',
      ],
    ],
    [
      'slots that nobody reads from are invalidated',
      slots({ idleTimeout: '1h' }),
      [
        'slot_idle_limited',
        'warning',
        'idle_replication_slot_timeout',
        'alter system set idle_replication_slot_timeout = 0; select pg_reload_conf()',
        'idle_replication_slot_timeout is 1h',
      ],
    ],
    [
      'names that are taken',
      slots({ slotExists: true, publicationExists: true }),
      [
        'slot_name_taken',
        'blocking',
        'dts_t',
        `choose another id, or, if nobody uses that slot: select pg_drop_replication_slot('dts_t')`,
        'that this task did not make',
      ],
      [
        'publication_name_taken',
        'blocking',
        'dts_t',
        `choose another id, or, if nobody uses that publication: drop publication "dts_t"`,
        'that this task did not make',
      ],
    ],
  ],
);

const privileges = (over: Partial<TablePrivileges> = {}): TablePrivileges => ({
  ...named('T'),
  owner: 'Owner',
  owns: true,
  canSelect: true,
  canUseSchema: true,
  ...over,
});
const tablePrivileges = (...tables: Partial<TablePrivileges>[]): Finding[] =>
  assessTablePrivileges(
    tables.map((table) => privileges(table)),
    user,
  );

describeCheck(
  'privileges on tables',
  [
    ['no table', tablePrivileges()],
    ['all rights', tablePrivileges({})],
  ],
  [
    [
      'a table of another owner, whose SELECT comes with membership',
      tablePrivileges({ owns: false, canSelect: false }),
      ['table_not_owned', 'blocking', 'public.T', `grant "Owner" to ${quotedUser}`, 'public.T'],
    ],
    [
      'tables of two other owners',
      tablePrivileges(
        { name: 'a', owns: false },
        { name: 'b', owns: false },
        { name: 'c', owns: false, owner: 'x' },
      ),
      ['table_not_owned', 'blocking', 'Owner', `grant "Owner" to ${quotedUser}`, 'public.a, public.b'],
      ['table_not_owned', 'blocking', 'public.c', `grant "x" to ${quotedUser}`, 'public.c'],
    ],
    [
      'one schema, named once',
      tablePrivileges({ name: 'a', canUseSchema: false }, { name: 'b', canUseSchema: false }),
      [
        'schema_usage_denied',
        'blocking',
        'public',
        `grant usage on schema "public" to ${quotedUser}`,
        'may not use schema public',
      ],
    ],
    [
      'a table without SELECT',
      tablePrivileges({ canSelect: false }),
      [
        'table_select_denied',
        'blocking',
        'public.T',
        `grant select on "public"."T" to ${quotedUser}`,
        'may not read public.T',
      ],
    ],
    [
      'tables without SELECT: one statement for all',
      tablePrivileges({ name: 'a', canSelect: false }, { name: 'b', canSelect: false }, {}),
      [
        'table_select_denied',
        'blocking',
        'source',
        `grant select on "public"."a", "public"."b" to ${quotedUser}`,
        'public.a, public.b',
      ],
    ],
  ],
);

const column = (name: string, type: string): CatalogTable['columns'][number] => ({
  name,
  type,
  generated: false,
  identityAlways: false,
  notNull: false,
});
const table = (over: Partial<CatalogTable> = {}): CatalogTable => ({
  relation: named('T'),
  oid: 1,
  kind: 'table',
  parent: null,
  persistence: 'permanent',
  owner: 'Owner',
  columns: [column('id', 'integer')],
  keyColumns: ['id'],
  hasPrimaryKey: true,
  replicaIdentity: 'default',
  rowsEstimated: 0,
  bytesEstimated: 0,
  ...over,
});
const selection = (
  tables: CatalogTable[],
  unusable: TableSelection['unusable'] = [],
  replicaIdentity: 'keep' | 'full' = 'keep',
): Finding[] => assessSelection({ tables, unusable, excluded: [], excludedNothing: [] }, { replicaIdentity });
const addKey = 'alter table "public"."T" add primary key (…)';
const beDefault = 'alter table "public"."T" replica identity default';
const beFull =
  'alter table "public"."T" replica identity full; or, until the task ends, options.replica_identity: full';
const keyless = (remedy: string): Expected => [
  'table_without_key',
  'blocking',
  'public.T',
  remedy,
  'UPDATE and DELETE fail on the source',
];

describeCheck(
  'the selection',
  [
    ['a primary key', selection([table()])],
    ['an index as replica identity', selection([table({ hasPrimaryKey: false, replicaIdentity: 'index' })])],
    ['everything, with a key', selection([table({ replicaIdentity: 'full', keyColumns: [] })])],
    [
      'a partitioned table publishes nothing of its own',
      selection([table({ kind: 'partitioned', keyColumns: [], hasPrimaryKey: false })]),
    ],
    [
      'types of names, not of numbers',
      selection([table({ columns: [column('a', 'name'), column('b', 'oidvector')] })]),
    ],
  ],
  [
    [
      'no user table',
      selection([]),
      ['no_tables', 'blocking', 'tables', 'check dbname of source_db', 'no user table'],
    ],
    [
      'a name that is no table, and no other finding',
      selection([], [{ requested: 'v', reason: 'is a view' }]),
      ['table_unusable', 'blocking', 'v', 'correct tables in the request', 'source: v is a view'],
    ],
    [
      'no key',
      selection([table({ keyColumns: [], hasPrimaryKey: false })]),
      keyless(`${addKey}; or: ${beFull}`),
    ],
    [
      'a leaf without key',
      selection([table({ kind: 'leaf', keyColumns: [], hasPrimaryKey: false })]),
      keyless(`${addKey}; or: ${beFull}`),
    ],
    [
      'a key that the replica identity is not',
      selection([table({ keyColumns: [], replicaIdentity: 'nothing' })]),
      keyless(`${beDefault}; or: ${beFull}`),
    ],
    [
      'no key, and the option that helps',
      selection([table({ keyColumns: [], hasPrimaryKey: false })], [], 'full'),
      ['replica_identity_set', 'warning', 'public.T', addKey, 'until the task ends'],
    ],
    ['a deferrable key', selection([table({ keyColumns: [] })]), keyless(beFull)],
    [
      'everything, without a key',
      selection([table({ replicaIdentity: 'full', keyColumns: [], hasPrimaryKey: false })]),
      ['replica_identity_full', 'warning', 'public.T', addKey, 'looked up by all its columns'],
    ],
    [
      'an unlogged table',
      selection([table({ persistence: 'unlogged' })]),
      [
        'table_unlogged',
        'warning',
        'public.T',
        `leave it out, or: alter table "public"."T" set logged`,
        'its changes are not in the WAL',
      ],
    ],
    [
      'numbers of catalog rows',
      selection([table({ columns: [column('a', 'oid'), column('b', 'regclass[]'), column('c', 'text')] })]),
      ['oid_columns', 'warning', 'public.T', null, '(a oid, b regclass[])'],
    ],
  ],
);

const names = (over: Partial<TargetNames>, suffix = '_new', sameDatabase = false): Finding[] =>
  assessTargetNames(
    { taken: [], denied: [], user, strangerInBookkeeping: false, ...over },
    'shop',
    suffix,
    sameDatabase,
  );
const taken = (remedy: string, kind = 'table'): Expected => [
  'target_name_taken',
  'blocking',
  'public.T_new',
  remedy,
  `target: public.T_new exists already (${kind})`,
];
const takenName = (kind: string): TargetNames['taken'][number] => ({ ...named('T_new'), kind });

describeCheck(
  'names on the target',
  [['all are free', names({})]],
  [
    [
      'a table',
      names({ taken: [takenName('table')] }),
      taken('set another table_suffix, or: drop table "public"."T_new"'),
    ],
    [
      'a view',
      names({ taken: [takenName('view')] }),
      taken('set another table_suffix, or: drop view "public"."T_new"', 'view'),
    ],
    [
      'the source itself is never dropped',
      names({ taken: [takenName('table')] }, '', true),
      taken('source and target are the same database: set table_suffix'),
    ],
    [
      'the same database, with a suffix',
      names({ taken: [takenName('table')] }, '_new', true),
      taken('set another table_suffix, or: drop table "public"."T_new"'),
    ],
    [
      'a schema that is closed to us',
      names({ denied: ['App'] }),
      [
        'target_schema_denied',
        'blocking',
        'App',
        `grant usage, create on schema "App" to ${quotedUser}`,
        'may not create tables in schema App',
      ],
    ],
    [
      'an id that is taken',
      names({ strangerInBookkeeping: true }),
      [
        'target_id_taken',
        'blocking',
        'shop',
        `choose another id, or, if that migration is gone: delete from dts.task where task_id = 'shop'`,
        'another migration uses the id shop',
      ],
    ],
  ],
);

test('names on the target keep their schema and get the suffix', () => {
  expect(targetNames([table(), table({ relation: { schema: 'app', name: 'x' } })], '_new')).toEqual([
    named('T_new'),
    { schema: 'app', name: 'x_new' },
  ]);
});

const unsupported = (side: string, remedy: string | null, major: number): Expected => [
  `${side}_version_unsupported`,
  'blocking',
  side,
  remedy,
  `${side}: PostgreSQL ${major} is not supported; 13 to 18 are`,
];

describeCheck(
  'versions',
  [
    ...[14, 15, 16, 17, 18].map((major) => [`source ${major}`, assessMajor('source', major)] as const),
    ...[13, 18].map((major) => [`target ${major}`, assessMajor('target', major)] as const),
    ['a newer target', assessMajorOrder(13, 18)],
    ['the same major', assessMajorOrder(16, 16)],
  ],
  [
    ['source 13', assessMajor('source', 13), ['drain_marker_table', 'info', 'source', null, 'PostgreSQL 13']],
    ['source 12', assessMajor('source', 12), unsupported('source', 'upgrade the source to 13 or later', 12)],
    ['target 12', assessMajor('target', 12), unsupported('target', 'upgrade the target to 13 or later', 12)],
    ['target 19', assessMajor('target', 19), unsupported('target', null, 19)],
    [
      'an older target',
      assessMajorOrder(16, 15),
      [
        'target_version_older',
        'blocking',
        'target',
        'use a target of version 16 or later',
        'the target is PostgreSQL 15, older than the source (16)',
      ],
    ],
  ],
);

describeCheck(
  'wal_level',
  [['logical', assessWalLevel('logical')]],
  [
    [
      'replica',
      assessWalLevel('replica'),
      [
        'wal_level_not_logical',
        'blocking',
        'wal_level',
        `alter system set wal_level = 'logical'; then restart the server (managed services have a parameter for it, such as rds.logical_replication)`,
        'wal_level is replica',
      ],
    ],
  ],
);

describeCheck(
  'walsenders',
  [['one is free', assessWalsenders({ max: 10, used: 9 })]],
  [
    [
      'none is free',
      assessWalsenders({ max: 10, used: 10 }),
      [
        'walsenders_exhausted',
        'blocking',
        'max_wal_senders',
        'alter system set max_wal_senders = 11; then restart the server',
        'all 10 walsenders are in use',
      ],
    ],
  ],
);

test('a message names five and counts the rest', () => {
  expect(nameSome(['a', 'b', 'c', 'd', 'e'])).toBe('a, b, c, d, e');
  expect(nameSome(['a', 'b', 'c', 'd', 'e', 'f', 'g'])).toBe('a, b, c, d, e and 2 more');
});

test('only what is blocking blocks', () => {
  expect(isBlocked([...activity({ keepSize: '1GB' }), ...assessMajor('source', 13)])).toBe(false);
  expect(isBlocked([...assessMajor('source', 13), ...assessWalLevel('minimal')])).toBe(true);
});
