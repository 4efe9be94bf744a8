// One decoded change on its way to the applier: the copies' filter decides what of it is left, and a change that is left as
// it came may still join the set of its table. Called by replay.ts for what the short way does not take, and again, in
// source order, for a batch whose sets failed.
import { MigrationError } from '../model/errors.ts';
import {
  UNCHANGED,
  type ChangeMessage,
  type TruncateMessage,
  type Tuple,
} from '../postgres/pgoutput-messages.ts';
import type { TaskScope } from '../postgres/task-scope.ts';
import type { Applier } from './apply.ts';
import type { OpenTransaction } from './batch.ts';
import type { CopyFilter } from './filter.ts';
import { truncateMessage } from './held-changes.ts';
import { readAgain } from './reread.ts';
import type { RelationMap, StreamedTable } from './relations.ts';

/** Tags of pgoutput: a message, and what its tuple is. */
export const DELETE = 0x44;
export const NEW_TUPLE = 0x4e;
export const KEY_TUPLE = 0x4b;

/** The message of a change as it came. */
export interface RawChange {
  readonly buffer: Buffer;
  readonly start: number;
  readonly end: number;
}

type RowMessage = Exclude<ChangeMessage, TruncateMessage>;

/** Without the values of columns that are not carried. */
function onlyKept(message: RowMessage, kept: readonly number[]): RowMessage {
  const pick = (row: Tuple): Tuple => kept.map((at) => row[at] ?? null);
  switch (message.tag) {
    case 'insert':
      return { ...message, new: pick(message.new) };
    case 'update':
      return { ...message, new: pick(message.new), old: message.old && pick(message.old) };
    case 'delete':
      return { ...message, old: pick(message.old) };
  }
}

export class ChangeWriter {
  readonly #scope: TaskScope;
  readonly #applier: Applier;
  readonly #relations: RelationMap;
  readonly #filter: CopyFilter;

  constructor(parts: {
    readonly scope: TaskScope;
    readonly applier: Applier;
    readonly relations: RelationMap;
    readonly filter: CopyFilter;
  }) {
    this.#scope = parts.scope;
    this.#applier = parts.applier;
    this.#relations = parts.relations;
    this.#filter = parts.filter;
  }

  /** Gives the change to the applier; false when there is nothing to apply. `raw`: it may be taken into a set as it came. */
  async write(message: ChangeMessage, transaction: OpenTransaction, raw: RawChange | null): Promise<boolean> {
    if (message.tag === 'truncate') return this.#truncate(message, transaction);
    const relation = this.#relations.get(message.relationId);
    if (relation.kind === 'marker') {
      const id = message.tag === 'insert' ? message.new[0] : null;
      if (typeof id === 'string') transaction.markerId = id;
      return false;
    }
    if (relation.kind === 'held')
      throw new MigrationError('internal', `${relation.key}: a change that is to be set aside`);
    const { table } = relation;
    const change = table.kept === null ? message : onlyKept(message, table.kept);
    return transaction.filtered
      ? this.#filtered(change, table, transaction, raw)
      : this.#apply(change, table, transaction, raw);
  }

  #apply(
    message: RowMessage,
    table: StreamedTable,
    transaction: OpenTransaction,
    raw: RawChange | null,
  ): true | Promise<true> {
    if (raw !== null && this.#coalesce(raw, table)) return true;
    switch (message.tag) {
      case 'insert':
        // an update that brings the row into a row filter is sent as an insert without the TOAST values that it did not touch
        if (message.new.includes(UNCHANGED)) return this.#readAgain(table, message.new, transaction);
        this.#applier.insert(table, message.new, transaction);
        break;
      case 'update':
        this.#applier.update(table, message, transaction);
        break;
      case 'delete':
        this.#applier.delete(table, message, transaction);
        break;
    }
    return true;
  }

  /** Whether the message itself, as it came, was taken into the set of its table. */
  #coalesce({ buffer, start, end }: RawChange, table: StreamedTable): boolean {
    const tag = buffer[start] ?? 0;
    if (buffer[start + 5] !== (tag === DELETE ? KEY_TUPLE : NEW_TUPLE)) return false;
    return this.#applier.take(table, tag, buffer, start + 6, end);
  }

  /** Applies what the copies have not seen; false when they have seen everything. */
  async #filtered(
    message: RowMessage,
    table: StreamedTable,
    transaction: OpenTransaction,
    raw: RawChange | null,
  ): Promise<boolean> {
    if (message.tag !== 'update') {
      const row = message.tag === 'insert' ? message.new : message.old;
      return !this.#filter.sawRow(table, row, transaction) && this.#apply(message, table, transaction, raw);
    }
    const { relationId, old, oldKind } = message;
    switch (this.#filter.update(table, old, message.new, transaction)) {
      case 'skip':
        return false;
      case 'apply':
        return this.#apply(message, table, transaction, raw);
      case 'delete-old':
        if (old === null || oldKind === 'none')
          throw new MigrationError('internal', `${table.key}: a key move without the old key`);
        return this.#apply({ tag: 'delete', relationId, oldKind, old }, table, transaction, null);
      case 'insert-new': {
        const row = message.new.map((value, at) =>
          value === UNCHANGED && oldKind === 'full' ? (old?.[at] ?? null) : value,
        );
        if (row.includes(UNCHANGED)) return this.#readAgain(table, row, transaction);
        return this.#apply({ tag: 'insert', relationId, new: row }, table, transaction, null);
      }
    }
  }

  async #readAgain(table: StreamedTable, row: Tuple, transaction: OpenTransaction): Promise<true> {
    const {
      row: found,
      part,
      marker,
    } = await readAgain(this.#scope, table, row, transaction, this.#scope.signal);
    if (found !== null) this.#applier.insert(table, found, transaction);
    this.#applier.writePart(table, marker, transaction);
    this.#filter.addRow(part);
    // what the read has seen beyond this change, the rest of this transaction included, is left out from here on
    transaction.filtered = true;
    return true;
  }

  /** False when every copy has seen it. */
  #truncate(message: TruncateMessage, transaction: OpenTransaction): boolean {
    const tables: StreamedTable[] = [];
    let emptied = false;
    for (const relationId of message.relationIds) {
      const relation = this.#relations.get(relationId);
      if (relation.kind === 'marker') continue;
      if (relation.kind === 'held') {
        const options = (message.cascade ? 1 : 0) | (message.restartIdentity ? 2 : 0);
        this.#applier.hold(relation, truncateMessage(relationId, options), transaction);
        emptied = true;
        continue;
      }
      const { table } = relation;
      const verdict = transaction.filtered
        ? this.#filter.truncate(table.key, transaction)
        : { kind: 'apply' as const };
      if (verdict.kind === 'apply') tables.push(table);
      if (verdict.kind !== 'some') continue;
      this.#applier.deleteParts(table, verdict, transaction);
      emptied = true;
    }
    if (tables.length > 0) this.#applier.truncate(tables, message.restartIdentity, transaction);
    return emptied || tables.length > 0;
  }
}
