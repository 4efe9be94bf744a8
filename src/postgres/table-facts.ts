// What stands under given names on one side, as far as rows are written there: for comparing a source with tables that
// the target has already (`schema: existing`). Preflight assesses it; planning takes the unique constraints from it.
import type { RelationName } from '../model/relation.ts';
import type { Side } from './connections.ts';
import { fromPostgres } from './errors.ts';
import { identRelation } from './sql.ts';
import { ONE_SNAPSHOT, READ_ONLY } from './transaction-options.ts';

const LOCK_TIMEOUT = '10s';
/** Tables looked into by one statement. */
const BATCH = 200;

export interface ColumnFacts {
  readonly name: string;
  /** As `format_type`. */
  readonly type: string;
  readonly notNull: boolean;
  /** A default or an identity: an insert need not name it. */
  readonly fillsItself: boolean;
  /** Expression of a generated column. */
  readonly generated: string | null;
  readonly identityAlways: boolean;
  /** Of an enum, in order. */
  readonly labels: readonly string[] | null;
}

export interface UniqueFacts {
  readonly name: string;
  /** Sorted; null: on expressions or part of the rows, or an exclusion constraint. */
  readonly columns: readonly string[] | null;
  /** Valid and not deferrable: rows can be found by it. */
  readonly usable: boolean;
}

export interface FiringFacts {
  readonly what: 'trigger' | 'rule';
  readonly name: string;
  /** As tgenabled: O origin, R replica, A always; those that are disabled are not listed. */
  readonly enabled: 'O' | 'R' | 'A';
}

export interface ForeignKeyFacts {
  readonly name: string;
  readonly from: RelationName;
  readonly to: RelationName;
  readonly columns: readonly string[];
  readonly references: readonly string[];
  readonly validated: boolean;
  readonly definition: string;
}

export interface TableFacts extends RelationName {
  readonly oid: number;
  /** relkind. */
  readonly kind: string;
  readonly unlogged: boolean;
  readonly parent: RelationName | null;
  /** As PostgreSQL prints them; null: none. */
  readonly bounds: string | null;
  readonly partitionKey: string | null;
  /** Policies that apply to us. */
  readonly rowSecurity: boolean;
  readonly mayUseSchema: boolean;
  /** Of those that we need. */
  readonly lacks: readonly string[];
  readonly columns: readonly ColumnFacts[];
  readonly uniques: readonly UniqueFacts[];
  /** Those of foreign keys and deferrable constraints only where they were told to fire under a replica, too. */
  readonly firing: readonly FiringFacts[];
  /** From it and to it; those of partitions that belong to their parent's are not listed. */
  readonly foreignKeys: readonly ForeignKeyFacts[];
}

const factsSql = `
  select c.oid::int8::float8 as oid, n.nspname::text as schema, c.relname::text as name, c.relkind::text as kind,
    c.relpersistence = 'u' as unlogged,
    (select json_build_object('schema', pn.nspname, 'name', p.relname) from pg_inherits i join pg_class p on p.oid = i.inhparent
       join pg_namespace pn on pn.oid = p.relnamespace where i.inhrelid = c.oid and c.relispartition) as parent,
    pg_get_expr(c.relpartbound, c.oid) as bounds,
    case c.relkind when 'p' then pg_get_partkeydef(c.oid) end as "partitionKey",
    c.relrowsecurity and row_security_active(c.oid) as "rowSecurity",
    has_schema_privilege(n.oid, 'usage') as "mayUseSchema",
    array(select p from unnest(array['select', 'insert', 'update', 'delete']) as p
          where not has_table_privilege(c.oid, p)) as lacks,
    (select coalesce(json_agg(json_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
        'notNull', a.attnotnull, 'fillsItself', a.attgenerated <> '' or a.attidentity <> '' or a.atthasdef,
        'generated', case when a.attgenerated <> '' then pg_get_expr(d.adbin, d.adrelid) end,
        -- up to 16 only the partitioned table itself has the identity, from 17 on its leaves, too
        'identityAlways', a.attidentity = 'a' or exists (select from pg_attribute root
          where root.attrelid = pg_partition_root(c.oid) and root.attname = a.attname and root.attidentity = 'a'),
        'labels', (select json_agg(e.enumlabel order by e.enumsortorder) from pg_enum e where e.enumtypid = a.atttypid))
        order by a.attnum), '[]')
     from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
     where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
    (select coalesce(json_agg(json_build_object('name', ic.relname, 'usable', x.indisvalid and x.indimmediate,
        'columns', case when x.indisunique and x.indpred is null and x.indexprs is null then
          (select json_agg(a.attname order by a.attname collate "C") from unnest(x.indkey::int2[]) with ordinality as k(attnum, n)
             join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum where k.n <= x.indnkeyatts) end)
        order by ic.relname), '[]')
     from pg_index x join pg_class ic on ic.oid = x.indexrelid
     where x.indrelid = c.oid and (x.indisunique or x.indisexclusion)) as uniques,
    (select coalesce(json_agg(f order by f.name), '[]') from (
       select 'trigger' as what, tgname::text as name, tgenabled::text as enabled from pg_trigger
         where tgrelid = c.oid and tgenabled <> 'D' and (tgenabled <> 'O' or tgconstraint = 0
           or exists (select from pg_constraint where oid = tgconstraint and contype = 't'))
       union all select 'rule', rulename::text, ev_enabled::text from pg_rewrite
         where ev_class = c.oid and ev_enabled <> 'D' and ev_type <> '1') as f) as firing,
    (select coalesce(json_agg(json_build_object('name', k.conname,
        'from', json_build_object('schema', fn.nspname, 'name', f.relname),
        'to', json_build_object('schema', tn.nspname, 'name', t.relname),
        'columns', (select json_agg(a.attname order by u.n) from unnest(k.conkey) with ordinality as u(attnum, n)
                    join pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.attnum),
        'references', (select json_agg(a.attname order by u.n) from unnest(k.confkey) with ordinality as u(attnum, n)
                    join pg_attribute a on a.attrelid = k.confrelid and a.attnum = u.attnum),
        'validated', k.convalidated, 'definition', pg_get_constraintdef(k.oid)) order by fn.nspname, f.relname, k.conname), '[]')
     from pg_constraint k join pg_class f on f.oid = k.conrelid join pg_namespace fn on fn.oid = f.relnamespace
       join pg_class t on t.oid = k.confrelid join pg_namespace tn on tn.oid = t.relnamespace
     where k.contype = 'f' and k.conparentid = 0 and c.oid in (k.conrelid, k.confrelid)) as "foreignKeys"
  from unnest($1::text[], $2::text[]) with ordinality as w(schema, name, n)
    join pg_namespace n on n.nspname = w.schema join pg_class c on c.relnamespace = n.oid and c.relname = w.name
  order by w.n`;

/** In the order of `names`; those without a relation are missing. Errors: those of a query, `lock_timeout`. */
export async function readTableFacts(side: Side, names: readonly RelationName[]): Promise<TableFacts[]> {
  return side.transaction(async (client) => {
    await client.query(`select set_config('lock_timeout', $1, true)`, [LOCK_TIMEOUT]);
    const { rows } = await client.query<TableFacts>(factsSql, [
      names.map(({ schema }) => schema),
      names.map(({ name }) => name),
    ]);
    return rows;
  }, ONE_SNAPSHOT);
}

/** Those of the tables that have a row; all of them must be readable. Errors: those of a query, `lock_timeout`. */
export async function tablesWithRows(side: Side, tables: readonly RelationName[]): Promise<RelationName[]> {
  return side.transaction(async (client) => {
    await client.query(`select set_config('lock_timeout', $1, true)`, [LOCK_TIMEOUT]);
    const found: RelationName[] = [];
    for (let from = 0; from < tables.length; from += BATCH) {
      const batch = tables.slice(from, from + BATCH);
      const { rows } = await client.query<{ n: number }>(
        batch
          .map((table, n) => `select ${n} as n where exists (select from only ${identRelation(table)})`)
          .join(' union all '),
      );
      found.push(...batch.filter((_, at) => rows.some(({ n }) => n === at)));
    }
    return found;
  }, READ_ONLY);
}

/** Whether we may keep triggers and foreign keys from firing, by trying. */
export async function maySilenceTriggers(side: Side): Promise<boolean> {
  try {
    await side.query(`select set_config('session_replication_role', 'replica', true)`);
    return true;
  } catch (error) {
    if (fromPostgres(error).code !== 'insufficient_privilege') throw error;
    return false;
  }
}

/** Equal for equal databases of one running server, whatever names it is reached by. */
export async function databaseIdentity(side: Side): Promise<string> {
  const { rows } = await side.query<{ identity: string }>(
    `select pg_postmaster_start_time()::text || ' ' || oid as identity from pg_database where datname = current_database()`,
  );
  return rows[0]?.identity ?? side.role;
}
