// Checks of run.ts: who else is at work. On the source, slot creation waits for every write transaction that is running,
// WAL that the slot holds is limited by a setting, and a subscription's apply worker meets no fence but row triggers. On the
// target, a transaction that stays open slows down what is applied.
import type { Finding } from '../model/finding.ts';
import type { TaskOptions } from '../model/task-options.ts';
import { ident, literal } from '../postgres/sql.ts';
import type { OldSnapshot } from '../postgres/old-snapshots.ts';
import { subscriptionsWriting } from '../postgres/subscriptions.ts';
import { onlyRow, type Ask } from './ask.ts';

export interface Activity {
  readonly transactions: readonly {
    readonly pid: number;
    readonly user: string | null;
    readonly seconds: number;
    readonly query: string;
  }[];
  /** Of any database of the server. */
  readonly prepared: readonly { readonly gid: string; readonly database: string; readonly seconds: number }[];
  /** `max_slot_wal_keep_size` as shown; -1 is no limit. */
  readonly keepSize: string;
  /** Subscriptions that write selected tables, disabled ones too. */
  readonly subscriptions: readonly string[];
}

/** Younger transactions end by themselves before anyone reads about them. */
const LONG_SECONDS = 30;

export async function readActivity(ask: Ask, oids: readonly number[]): Promise<Activity> {
  const transactions = await ask<{ pid: number; user: string | null; seconds: number; query: string }>(
    `select pid, usename::text as "user", extract(epoch from now() - xact_start)::int as seconds, left(query, 100) as query
     from pg_stat_activity where backend_xid is not null and pid <> pg_backend_pid()
       and xact_start < now() - make_interval(secs => $1) order by xact_start limit 20`,
    [LONG_SECONDS],
  );
  // of every database: a slot waits for all transactions of the server (SnapBuildWaitSnapshot in snapbuild.c)
  const prepared = await ask<{ gid: string; database: string; seconds: number }>(
    `select gid, database::text, extract(epoch from now() - prepared)::int as seconds from pg_prepared_xacts
     order by prepared limit 20`,
  );
  const { keepSize } = onlyRow(
    await ask<{ keepSize: string }>(`select current_setting('max_slot_wal_keep_size') as "keepSize"`),
  );
  const subscriptions = await subscriptionsWriting(ask, oids);
  return { transactions, prepared, keepSize, subscriptions };
}

export function assessActivity(activity: Activity, fence: TaskOptions['fence'] = 'triggers'): Finding[] {
  return [
    ...activity.transactions.map(
      ({ pid, user, seconds, query }): Finding => ({
        code: 'long_transaction',
        severity: 'warning',
        object: `pid ${pid}`,
        message: `source: a write transaction of ${user ?? 'an internal process'} has run for ${seconds} s (${query}); creating the slot waits for it`,
        remedy: `end it, or: select pg_terminate_backend(${pid})`,
      }),
    ),
    ...activity.prepared.map(
      ({ gid, database, seconds }): Finding => ({
        code: 'prepared_transaction',
        severity: 'warning',
        object: gid,
        message: `source: the prepared transaction ${gid} in database ${database} has waited for ${seconds} s; creating the slot waits for it, and the cutover if it wrote selected tables`,
        remedy: `commit prepared ${literal(gid)}, or: rollback prepared ${literal(gid)}`,
      }),
    ),
    ...(activity.keepSize === '-1'
      ? []
      : [
          {
            code: 'slot_wal_limited',
            severity: 'warning',
            object: 'max_slot_wal_keep_size',
            message: `source: max_slot_wal_keep_size is ${activity.keepSize}: a task that falls further behind loses its slot`,
            remedy:
              'keep pauses short, or: alter system set max_slot_wal_keep_size = -1; select pg_reload_conf()',
          } satisfies Finding,
        ]),
    ...activity.subscriptions.map(
      (name): Finding => ({
        code: 'subscription_writes_tables',
        severity: fence === 'triggers' ? 'warning' : 'blocking',
        object: name,
        ...(fence === 'triggers'
          ? {
              message: `source: the subscription ${name} writes selected tables: the write stop refuses its rows, its worker tries again and again, and its publisher keeps the WAL`,
              remedy: `before the cutover: alter subscription ${ident(name)} disable`,
            }
          : {
              message: `source: the subscription ${name} writes selected tables; its apply worker passes the fence ${fence}`,
              remedy: `set options.fence to triggers, or: drop subscription ${ident(name)}`,
            }),
      }),
    ),
  ];
}

/** `oldest`: of the target's sessions, the one that holds back the most (postgres/old-snapshots.ts). */
export function assessOldSnapshot(oldest: OldSnapshot | null): Finding[] {
  if (oldest === null) return [];
  const { pid, user, seconds, query } = oldest;
  return [
    {
      code: 'target_long_transaction',
      severity: 'warning',
      object: `pid ${pid}`,
      message: `target: a transaction of ${user} has been open for ${seconds} s (${query}); while it is, old versions of rows stay, and updates of the same rows are applied up to ten times slower`,
      remedy: `end it, or: select pg_terminate_backend(${pid})`,
    },
  ];
}
