// Called by `init` and by POST /preflight: every check, both sides at once. Answers findings for whatever would fail
// later; throws only when it was stopped. A side that cannot be reached does not hide what the other side has to say.
import type { Finding } from '../model/finding.ts';
import { relationKey } from '../model/relation.ts';
import type { Role } from '../model/endpoint.ts';
import { readSelection, type CatalogTable, type TableSelection } from '../postgres/catalog.ts';
import { defaultCopyJobs, readHost, unknownHost } from '../postgres/host.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { oldestSnapshot } from '../postgres/old-snapshots.ts';
import { rolesPastReadOnly } from '../postgres/read-only-roles.ts';
import { taskObjectName } from '../postgres/sql.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import { assessActivity, assessOldSnapshot, readActivity } from './activity.ts';
import { askOn, type Ask } from './ask.ts';
import {
  assessConnections,
  assessEncodings,
  assessExtensions,
  assessLockTable,
  countIndexes,
  readConnectionLimits,
  readEncoding,
  readLockTable,
  readMissingExtensions,
  readNeededExtensions,
} from './capacity.ts';
import { assessConnection } from './connection.ts';
import { assessDatabasePrivileges, readDatabasePrivileges } from './database-privileges.ts';
import { checkHookCommands } from './hook-commands.ts';
import { assessReadOnly, assessRolesPast, readReadOnly } from './read-only.ts';
import { assessReplicationConnection, readOurAddress, tryReplication } from './replication-connection.ts';
import { assessReplicationRole, readRole } from './replication-role.ts';
import { checkWayBackOnSource, checkWayBackOnTarget } from './reverse.ts';
import { assessRowSecurity, readRestrictedTables } from './row-security.ts';
import { assessSlots, readSlots } from './slots.ts';
import { checkStandbyLag } from './standby-lag.ts';
import { assessTablePrivileges, readTablePrivileges } from './table-privileges.ts';
import { assessSelection } from './tables.ts';
import { assessTargetNames, readTargetNames, targetNames } from './target-names.ts';
import { checkExistingWayBack } from './existing-reverse.ts';
import { assessExisting, readExisting } from './existing-tables.ts';
import { checkTableOptions } from './row-filters.ts';
import { assessMajor, assessMajorOrder, readMajor } from './versions.ts';
import { assessWalLevel, readWalLevel } from './wal-level.ts';
import { assessWalsenders, readWalsenders } from './walsenders.ts';

interface SourceFacts {
  readonly major: number;
  readonly encoding: string;
  readonly selection: TableSelection;
  readonly extensions: readonly string[];
  /** Selected tables, partitions and their indexes. */
  readonly relations: number;
}

interface TargetFacts {
  readonly major: number;
  readonly encoding: string;
}

/**
 * Findings in the order source, target, both. `beside`: `relationKey` of source tables that a running task has already,
 * of which nothing is to be said. Throws `aborted`.
 */
export async function runPreflight(
  scope: TaskScope,
  beside: ReadonlySet<string> = new Set(),
): Promise<Finding[]> {
  const findings: Record<Role | 'both', Finding[]> = { source: [], target: [], both: [] };
  const [source, target] = await Promise.all([
    onSide(scope, 'source', findings.source, (ask) => checkSource(scope, ask, findings.source, beside)),
    onSide(scope, 'target', findings.target, (ask) => checkTarget(scope, ask, findings.target)),
  ]);
  if (source && target) {
    findings.both.push(
      ...assessMajorOrder(source.major, target.major),
      ...assessEncodings(source.encoding, target.encoding),
    );
    await onSide(scope, 'target', findings.both, (ask) =>
      checkTables(scope, ask, source, target.major, findings.both),
    );
  }
  return [...findings.source, ...findings.target, ...findings.both, ...(await checkHookCommands(scope))];
}

/** Runs checks on a session of their own; an error becomes a finding, and null is answered. */
async function onSide<T>(
  scope: TaskScope,
  role: Role,
  findings: Finding[],
  work: (ask: Ask) => Promise<T>,
): Promise<T | null> {
  try {
    const session = await scope[role].session({ purpose: 'preflight', signal: scope.signal, pipeline: true });
    try {
      return await work(askOn(session, role));
    } finally {
      await session.close();
    }
  } catch (error) {
    scope.signal.throwIfAborted();
    findings.push(assessConnection(role, scope[role].endpoint, fromPostgres(error, { role })));
    return null;
  }
}

async function checkSource(
  scope: TaskScope,
  ask: Ask,
  findings: Finding[],
  beside: ReadonlySet<string>,
): Promise<SourceFacts> {
  const name = taskObjectName(scope.taskId);
  const [major, readOnly, role, walLevel, slots, walsenders, privileges, address, limits, encoding] =
    await Promise.all([
      readMajor(ask),
      readReadOnly(ask),
      readRole(ask),
      readWalLevel(ask),
      readSlots(ask, name),
      readWalsenders(ask, scope.taskId),
      readDatabasePrivileges(ask),
      readOurAddress(ask),
      readConnectionLimits(ask, scope.taskId),
      readEncoding(ask),
    ]);
  const made = (key: string): boolean => scope.checkpoints.get(key) !== undefined;
  findings.push(
    ...assessMajor('source', major),
    ...assessReadOnly('source', readOnly),
    ...assessReplicationRole(role),
    ...assessReplicationConnection(
      await tryReplication(scope.source, scope.signal),
      scope.source.endpoint,
      address,
      role,
      walsenders,
    ),
    ...assessWalLevel(walLevel),
    ...assessSlots(slots, {
      name,
      slotIsOurs: made('slot') || made('slotIntent'),
      publicationIsOurs: made('publication'),
    }),
    ...assessWalsenders(walsenders),
    ...assessDatabasePrivileges('source', privileges),
    ...assessConnections('source', limits, await mostCopyJobs(scope, 'source')),
  );
  const selected = await readSelection(scope.source, scope.spec.tables, scope.spec.options);
  const isNew = ({ relation }: CatalogTable): boolean => !beside.has(relationKey(relation));
  const selection = { ...selected, tables: selected.tables.filter(isNew) };
  const oids = selection.tables.map((table) => table.oid);
  const [tables, restricted, activity, extensions, locks, indexes] = await Promise.all([
    readTablePrivileges(ask, oids),
    readRestrictedTables(ask, oids),
    readActivity(ask, oids),
    readNeededExtensions(ask, oids),
    readLockTable(ask),
    countIndexes(ask, oids),
  ]);
  const relations = oids.length + indexes;
  findings.push(
    ...assessSelection(selection, scope.spec.options),
    ...(await checkTableOptions(scope, selection, major)),
    ...assessTablePrivileges(tables, role.name),
    ...assessRowSecurity(restricted, role.name),
    ...assessActivity(activity, scope.spec.options.fence),
    ...assessLockTable('source', locks, relations),
    ...(await checkStandbyLag(ask, scope.spec.options.maxSourceLagBytes, role.name)),
    ...(scope.spec.options.fence === 'database-read-only'
      ? assessRolesPast(await rolesPastReadOnly(scope.source))
      : []),
    ...(await checkWayBackOnSource(scope, ask, selection.tables, role.name, major)),
  );
  return { major, encoding, selection, extensions, relations };
}

async function checkTarget(scope: TaskScope, ask: Ask, findings: Finding[]): Promise<TargetFacts> {
  const [major, readOnly, privileges, limits, encoding, oldest] = await Promise.all([
    readMajor(ask),
    readReadOnly(ask),
    readDatabasePrivileges(ask),
    readConnectionLimits(ask, scope.taskId),
    readEncoding(ask),
    oldestSnapshot(ask, scope.taskId),
  ]);
  findings.push(
    ...assessMajor('target', major),
    ...assessReadOnly('target', readOnly),
    ...assessDatabasePrivileges('target', privileges),
    ...assessConnections('target', limits, await mostCopyJobs(scope, 'target')),
    ...assessOldSnapshot(oldest),
    ...(await checkWayBackOnTarget(scope, ask)),
  );
  return { major, encoding };
}

/** As many as the other side's machine, which may be out of reach now, could bring it to. */
async function mostCopyJobs(scope: TaskScope, role: Role): Promise<number> {
  const { copyJobs } = scope.spec.options;
  if (copyJobs !== null) return copyJobs;
  const hosts = { source: unknownHost, target: unknownHost, [role]: await readHost(scope[role]) };
  return defaultCopyJobs(hosts.source, hosts.target);
}

/** What the target has to say about the selected tables. */
async function checkTables(
  scope: TaskScope,
  ask: Ask,
  source: SourceFacts,
  targetMajor: number,
  findings: Finding[],
): Promise<void> {
  const { tableSuffix, sourceDb, targetDb, options } = scope.spec;
  const wanted = targetNames(source.selection.tables, tableSuffix);
  const facts = await readTargetNames(ask, wanted, { id: scope.taskId, incarnation: scope.incarnation });
  const same =
    sourceDb.host === targetDb.host && sourceDb.port === targetDb.port && sourceDb.dbname === targetDb.dbname;
  const existing = options.schema === 'existing';
  // names that are taken are what is asked for then, and nothing is created
  const names = existing ? { ...facts, taken: [], denied: [] } : facts;
  const standing = existing
    ? await readExisting(scope, source.selection.tables, wanted, { user: facts.user, targetMajor })
    : null;
  findings.push(
    ...assessTargetNames(names, scope.taskId, tableSuffix, same),
    ...(standing ? assessExisting(standing) : []),
    ...(standing ? await checkExistingWayBack(scope, ask, standing) : []),
    ...assessExtensions(await readMissingExtensions(ask, source.extensions)),
    ...assessLockTable('target', await readLockTable(ask), source.relations),
  );
}
