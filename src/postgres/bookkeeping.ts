// Our tables on the target, in schema `dts`: what must be committed together with the rows. Made when a task starts to
// write, removed when it ends; the schema goes with the last task. All tasks of a target share it, so creation and
// removal run under one advisory lock.
import type { PoolClient } from 'pg';
import { MigrationError } from '../model/errors.ts';
import type { TaskScope } from './task-scope.ts';
import { PATIENT } from './transaction-options.ts';

/** Key of `pg_advisory_xact_lock`: the ASCII codes of 'dts'. */
const DTS_ADVISORY_LOCK = 0x647473;

const tables = `
  create schema if not exists dts;
  create table if not exists dts.task (
    task_id text primary key, incarnation text not null, created_at timestamptz not null default now());
  create table if not exists dts.statement (
    task_id text not null references dts.task on delete cascade, n int not null, object text not null,
    creates_schema text, creates_name text, done_at timestamptz not null default now(), primary key (task_id, n));
  create table if not exists dts.part (
    task_id text not null references dts.task on delete cascade, slot_incarnation text not null, relation text not null,
    part int not null, range text, pg_snapshot text not null, horizon_lsn pg_lsn not null, rows bigint not null,
    bytes bigint not null, epoch int not null, done_at timestamptz not null default now(),
    primary key (task_id, slot_incarnation, relation, part));
  create table if not exists dts.progress (
    task_id text primary key references dts.task on delete cascade, slot_incarnation text not null,
    applied_lsn pg_lsn not null, acked_lsn pg_lsn not null, marker text, marker_lsn pg_lsn,
    tracking boolean not null default false, updated_at timestamptz not null default now(),
    holds int not null default 0);
  create table if not exists dts.held_table (
    task_id text not null references dts.task on delete cascade, relation text not null, state text not null,
    applied_lsn pg_lsn not null, primary key (task_id, relation));
  create table if not exists dts.held_change (
    task_id text not null references dts.task on delete cascade, n bigint generated always as identity,
    relation text not null, last_commit pg_lsn not null, messages bytea not null, primary key (task_id, relation, n));
  create table if not exists dts.changed (
    task_id text not null references dts.task on delete cascade, n bigint generated always as identity,
    relation text not null, keys text, primary key (task_id, n));
  create table if not exists dts.large_object (
    task_id text not null references dts.task on delete cascade, oid oid not null, primary key (task_id, oid));`;

/**
 * For whoever reads our tables, and for another task's DDL. Without it one reader who stays would hold up this task for
 * ever, and through the advisory lock every other task of the server.
 */
const LOCK_TIMEOUT = '10s';

/** Takes the lock that serialises DDL on schema `dts`; released at the end of the transaction. Errors: `lock_timeout`. */
export async function lockBookkeeping(client: PoolClient): Promise<void> {
  await client.query(`select set_config('lock_timeout', $1, true)`, [LOCK_TIMEOUT]);
  await client.query('select pg_advisory_xact_lock($1)', [DTS_ADVISORY_LOCK]);
}

/** Makes the tables where they are missing and registers the task. Idempotent. */
export async function ensureBookkeeping(scope: TaskScope): Promise<void> {
  await scope.target.transaction(async (client) => {
    await lockBookkeeping(client);
    await client.query(tables);
    await addLaterColumns(client);
    await client.query('insert into dts.task (task_id, incarnation) values ($1, $2) on conflict do nothing', [
      scope.taskId,
      scope.incarnation,
    ]);
    const { rows } = await client.query<{ incarnation: string }>(
      'select incarnation from dts.task where task_id = $1',
      [scope.taskId],
    );
    if (rows[0]?.incarnation !== scope.incarnation) {
      throw new MigrationError('target_conflict', `target: another migration uses the id ${scope.taskId}`, {
        hint: `choose another id, or, if that migration is gone: delete from dts.task where task_id = '${scope.taskId}'`,
      });
    }
  });
}

/** What a version before made without. */
const HAS_HOLDS = `select exists (select from pg_attribute where attrelid = to_regclass('dts.progress') and attname = 'holds') as present`;

async function addLaterColumns(client: PoolClient): Promise<void> {
  const { rows } = await client.query<{ present: boolean }>(HAS_HOLDS);
  // looked at first: ALTER TABLE locks out every task of the target, even where it has nothing to do
  if (rows[0]?.present !== true)
    await client.query('alter table dts.progress add column if not exists holds int not null default 0');
}

/** For a task whose tables in schema `dts` were made by an earlier version. Tables that are gone are not made again. */
export async function upgradeBookkeeping(scope: TaskScope): Promise<void> {
  const { rows } = await scope.target.query<{ present: boolean }>(HAS_HOLDS);
  if (rows[0]?.present === true) return;
  await scope.target.transaction(async (client) => {
    await lockBookkeeping(client);
    const found = await client.query<{ made: boolean }>(
      `select to_regclass('dts.progress') is not null as made`,
    );
    if (found.rows[0]?.made !== true) return;
    await client.query(tables);
    await addLaterColumns(client);
  });
}

/** Removes the task's rows, and schema `dts` when no task is left in it. Idempotent. */
export async function removeBookkeeping(scope: TaskScope): Promise<void> {
  await scope.target.transaction(async (client) => {
    await lockBookkeeping(client);
    const { rows } = await client.query<{ present: boolean }>(
      `select to_regclass('dts.task') is not null as present`,
    );
    if (!rows[0]?.present) return;
    await client.query('delete from dts.task where task_id = $1 and incarnation = $2', [
      scope.taskId,
      scope.incarnation,
    ]);
    const left = await client.query('select 1 from dts.task limit 1');
    if (left.rowCount !== 0) return;
    await client.query(
      `drop table if exists dts.statement, dts.part, dts.progress, dts.changed, dts.held_table, dts.held_change,
         dts.large_object, dts.task`,
    );
    await dropSchemaIfEmpty(client);
  }, PATIENT); // of a copy beside the stream, any number of changes may be set aside
}

/** Drops schema `dts` unless something else of ours (a fence, when source and target are one database) is in it. */
export async function dropSchemaIfEmpty(client: PoolClient): Promise<void> {
  await client.query(`do $$
    begin
      drop schema if exists dts restrict;
    exception when dependent_objects_still_exist then null;
    end $$`);
}
