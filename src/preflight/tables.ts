// Check of run.ts: the selection itself. Every table exists, can be identified in the stream, and has its rows in the WAL.
import type { Finding } from '../model/finding.ts';
import { relationKey } from '../model/relation.ts';
import type { TaskOptions } from '../model/task-options.ts';
import type { CatalogTable, TableSelection } from '../postgres/catalog.ts';
import { becomesFull, isKeyless } from '../postgres/replica-identity.ts';
import { identRelation } from '../postgres/sql.ts';
import { nameSome } from './name-list.ts';

/** Types whose values are numbers of catalog rows, which mean nothing on another server. */
const oidAliases =
  /^(oid|reg(class|proc|procedure|oper|operator|type|role|namespace|config|dictionary|collation))(\[\])?$/;

export function assessSelection(
  selection: TableSelection,
  options: Pick<TaskOptions, 'replicaIdentity'>,
): Finding[] {
  const findings: Finding[] = selection.unusable.map(({ requested, reason }) => ({
    code: 'table_unusable',
    severity: 'blocking',
    object: requested,
    message: `source: ${requested} ${reason}`,
    remedy: 'correct tables in the request',
  }));
  if (selection.tables.length === 0 && selection.unusable.length === 0)
    findings.push({
      code: 'no_tables',
      severity: 'blocking',
      object: 'tables',
      message: 'source: the database has no user table',
      remedy: 'check dbname of source_db',
    });
  return [...findings, ...selection.tables.flatMap((table) => assessTable(table, options))];
}

function assessTable(table: CatalogTable, options: Pick<TaskOptions, 'replicaIdentity'>): Finding[] {
  const object = relationKey(table.relation);
  const name = identRelation(table.relation);
  const findings: Finding[] = [];
  // The publication names leaves and plain tables; a partitioned parent publishes nothing of its own.
  if (table.kind !== 'partitioned' && table.persistence === 'unlogged')
    findings.push({
      code: 'table_unlogged',
      severity: 'warning',
      object,
      message: `source: ${object} is unlogged: its changes are not in the WAL, so it is copied whole under the write stop`,
      remedy: `leave it out, or: alter table ${name} set logged`,
    });
  else if (table.kind !== 'partitioned') {
    const becomes = becomesFull(table, options);
    if (isKeyless(table) && !becomes)
      findings.push({
        code: 'table_without_key',
        severity: 'blocking',
        object,
        message: `source: ${object} has no replica identity (a primary key, for one); publishing it would make UPDATE and DELETE fail on the source`,
        remedy: keyRemedy(table),
      });
    if (becomes)
      findings.push({
        code: 'replica_identity_set',
        severity: 'warning',
        object,
        message: `source: ${object} gets replica identity full until the task ends, which writes more WAL; every changed row is looked up by all its columns, which is slow on a large table`,
        remedy: `${alterOf(table)} add primary key (…)`,
      });
    if (table.replicaIdentity === 'full' && !table.hasPrimaryKey)
      findings.push({
        code: 'replica_identity_full',
        severity: 'warning',
        object,
        message: `source: ${object} has no key: every changed row is looked up by all its columns, which is slow on a large table`,
        remedy: `alter table ${name} add primary key (…)`,
      });
  }
  const aliases = table.columns.filter((column) => oidAliases.test(column.type));
  if (aliases.length > 0)
    findings.push({
      code: 'oid_columns',
      severity: 'warning',
      object,
      message: `source: ${object} holds object identifiers (${nameSome(aliases.map((column) => `${column.name} ${column.type}`))}), which may name other objects on the target`,
      remedy: null,
    });
  return findings;
}

const alterOf = ({ relation }: Pick<CatalogTable, 'relation'>): string =>
  `alter table ${identRelation(relation)}`;

/**
 * What gives a table its replica identity:
 *
 *   primary key   relreplident     remedy
 *   1 none        any              a primary key, or `full`
 *   2 present     nothing, index   `default`, or `full` (`index` without one: it was dropped, which means `nothing`)
 *   3 present     default          `full`: the primary key is deferrable or invalid and identifies nothing
 */
function keyRemedy({ relation, hasPrimaryKey, replicaIdentity }: CatalogTable): string {
  const alter = alterOf({ relation });
  const full = `${alter} replica identity full; or, until the task ends, options.replica_identity: full`;
  if (!hasPrimaryKey) return `${alter} add primary key (…); or: ${full}`;
  return replicaIdentity === 'default' ? full : `${alter} replica identity default; or: ${full}`;
}
