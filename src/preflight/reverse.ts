// Checks of run.ts for options.reverse: the target must be able to serve a stream as the source is, and the source to take
// one as the target is. What would only show after the cutover, or stop it, is said here.
import type { Finding } from '../model/finding.ts';
import { relationKey } from '../model/relation.ts';
import { nextLegId, reverseNotes } from '../model/reverse.ts';
import type { CatalogTable } from '../postgres/catalog.ts';
import { ident, identRelation, taskObjectName } from '../postgres/sql.ts';
import { maySilenceTriggers, readTableFacts, type TableFacts } from '../postgres/table-facts.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import type { Ask } from './ask.ts';
import { nameSome } from './name-list.ts';
import { assessReplicationConnection, readOurAddress, tryReplication } from './replication-connection.ts';
import { assessReplicationRole, readRole } from './replication-role.ts';
import { assessSlots, readSlots } from './slots.ts';
import { assessWalLevel, readWalLevel } from './wal-level.ts';
import { assessWalsenders, readWalsenders } from './walsenders.ts';

/** Codes of the source's checks with `target_` before them, so that a finding of either side is told from the other's. */
export async function checkWayBackOnTarget(scope: TaskScope, ask: Ask): Promise<Finding[]> {
  const { options, sourceDb, targetDb } = scope.spec;
  if (!options.reverse) return [];
  const name = taskObjectName(nextLegId(scope.taskId, scope.spec));
  const [role, walLevel, slots, walsenders, address] = await Promise.all([
    readRole(ask),
    readWalLevel(ask),
    readSlots(ask, name),
    readWalsenders(ask, scope.taskId),
    readOurAddress(ask),
  ]);
  const made = (key: string): boolean => scope.checkpoints.get(reverseNotes.prefix + key) !== undefined;
  // on one server both slots are there when the second one is made
  const sameServer = sourceDb.host === targetDb.host && sourceDb.port === targetDb.port;
  const used = slots.used + (sameServer ? 1 : 0);
  const ownership = {
    name,
    slotIsOurs: made('slot') || made('slotIntent'),
    publicationIsOurs: made('publication'),
  };
  const findings = [
    ...assessReplicationRole(role, 'target'),
    ...assessReplicationConnection(
      await tryReplication(scope.target, scope.signal),
      scope.target.endpoint,
      address,
      role,
      walsenders,
      'target',
    ),
    ...assessWalLevel(walLevel, 'target'),
    ...assessSlots({ ...slots, used }, ownership, 'target'),
    ...assessWalsenders(walsenders, 'target'),
  ];
  return findings.map((finding) => ({ ...finding, code: `target_${finding.code}` }));
}

export async function checkWayBackOnSource(
  scope: TaskScope,
  ask: Ask,
  tables: readonly CatalogTable[],
  user: string,
  major: number,
): Promise<Finding[]> {
  const { options, tables: requested } = scope.spec;
  if (!options.reverse) return [];
  const [facts, silenced, largeObjects] = await Promise.all([
    readTableFacts(
      scope.source,
      tables.map(({ relation }) => relation),
    ),
    maySilenceTriggers(scope.source),
    ask<{ oid: number }>('select oid::int8::float8 as oid from pg_largeobject_metadata limit 1'),
  ]);
  return assessWayBack({
    facts,
    silenced,
    user,
    major,
    fence: options.fence,
    leavesLargeObjects: options.largeObjects && requested.includes('*') && largeObjects.length > 0,
  });
}

interface WayBackFacts {
  /** Of the source's tables. */
  readonly facts: readonly TableFacts[];
  /** Triggers and foreign keys can be kept from firing. */
  readonly silenced: boolean;
  readonly user: string;
  readonly major: number;
  readonly fence: TaskScope['spec']['options']['fence'];
  readonly leavesLargeObjects: boolean;
}

function assessWayBack(facts: WayBackFacts): Finding[] {
  const { silenced, user, major } = facts;
  const findings: Finding[] = [];
  const tables = facts.facts.filter(({ kind }) => kind === 'r');
  for (const table of tables.filter(({ lacks }) => lacks.length > 0))
    findings.push({
      code: 'source_write_denied',
      severity: 'blocking',
      object: relationKey(table),
      message: `source: role ${user} lacks ${table.lacks.join(', ')} on ${relationKey(table)}, which the stream back needs`,
      remedy: `grant ${table.lacks.join(', ')} on ${identRelation(table)} to ${ident(user)}`,
    });
  // our own fence is on a resumed task's tables
  const firing = tables.flatMap((table) =>
    table.firing
      .filter(
        ({ name, enabled }) =>
          !/^dts_(row)?fence_/.test(name) && (enabled === 'O' ? !silenced : enabled === 'A' || silenced),
      )
      .map((each) => ({ ...each, table })),
  );
  const keys = new Set(
    silenced
      ? []
      : facts.facts.flatMap(({ foreignKeys }) =>
          foreignKeys.map(({ from, name }) => `${relationKey(from)}.${name}`),
        ),
  );
  const held = firing.filter(({ enabled }) => enabled === 'O');
  if (held.length > 0 || keys.size > 0)
    findings.push({
      code: 'source_triggers_fire',
      severity: 'blocking',
      object: user,
      message: `source: triggers, rules and foreign keys would fire for every row that is streamed back: ${nameSome([...keys, ...held.map(({ table, name }) => `${relationKey(table)}.${name}`)])}`,
      remedy:
        major >= 15
          ? `grant set on parameter session_replication_role to ${ident(user)}`
          : `alter role ${ident(user)} superuser`,
    });
  for (const { what, name, table } of firing.filter(({ enabled }) => enabled !== 'O'))
    findings.push({
      code: 'source_trigger_fires',
      severity: 'blocking',
      object: `${relationKey(table)}.${name}`,
      message: `source: the ${what} ${name} of ${relationKey(table)} fires for replicated rows, too, and would for every row that is streamed back`,
      remedy: `alter table ${identRelation(table)} enable ${what} ${ident(name)}`,
    });
  if (facts.fence === 'none')
    findings.push({
      code: 'reverse_without_fence',
      severity: 'warning',
      object: 'fence',
      message:
        'source: with fence none nothing keeps others from writing to it while it follows the target: the stream back stops at the first row that is not as expected',
      remedy: 'set options.fence to triggers',
    });
  if (facts.leavesLargeObjects)
    findings.push({
      code: 'reverse_without_large_objects',
      severity: 'warning',
      object: 'large objects',
      message: 'source: large objects that are changed after the cutover do not come back with a rollback',
      remedy: null,
    });
  return findings;
}
