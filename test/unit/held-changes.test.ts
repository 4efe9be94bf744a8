// What is set aside of a table is a stream of its own: whatever chunks it leaves in, it reads as the transactions that came.
import { describe, expect, test } from 'vitest';
import { decodePgoutput } from '../../src/postgres/pgoutput.ts';
import { OpenTransaction } from '../../src/sync/batch.ts';
import { boundsOf, HeldChanges, truncateMessage, type HeldChunk } from '../../src/sync/held-changes.ts';

const relation = { key: 'public.t', description: Buffer.from('Rt') };
const other = { key: 'public.u', description: Buffer.from('Ru') };
const change = (text: string): Buffer => Buffer.from(`I${text}`);
const transaction = (commit: bigint, xid = 7): OpenTransaction => new OpenTransaction(commit, xid, false);

function read(chunks: readonly HeldChunk[]): string[] {
  return chunks.flatMap(({ messages }) => {
    const bounds = boundsOf(messages);
    return Array.from({ length: bounds.length / 2 }, (_, n) => {
      const message = messages.subarray(bounds[2 * n], bounds[2 * n + 1]);
      const tag = message.toString('latin1', 0, 1);
      if (tag !== 'B' && tag !== 'C') return message.toString();
      const decoded = decodePgoutput(message);
      if (decoded.tag === 'begin') return `begin ${decoded.commitLsn} ${decoded.xid}`;
      return decoded.tag === 'commit' ? `commit ${decoded.commitLsn} ${decoded.endLsn}` : decoded.tag;
    });
  });
}

describe('changes that are set aside', () => {
  test('each table has its own transactions, described in every chunk', () => {
    const held = new HeldChanges();
    held.add(relation, change('1'), transaction(0x10n, 3));
    held.add(other, change('2'), transaction(0x10n, 3));
    held.add(relation, change('3'), transaction(0x20n, 4));
    const [first, second, ...rest] = held.take(true);
    expect(rest).toEqual([]);
    expect(first).toMatchObject({ relation: 'public.t', lastCommit: '0/20' });
    expect(read(first ? [first] : [])).toEqual([
      'begin 0/10 3',
      'Rt',
      'I1',
      'commit 0/10 0/11',
      'begin 0/20 4',
      'I3',
      'commit 0/20 0/21',
    ]);
    expect(read(second ? [second] : [])).toEqual(['begin 0/10 3', 'Ru', 'I2', 'commit 0/10 0/11']);
    held.add(relation, change('4'), transaction(0x30n, 5));
    expect(read(held.take(true))).toEqual(['begin 0/30 5', 'Rt', 'I4', 'commit 0/30 0/31']);
    expect(held.take(true)).toEqual([]);
  });

  test('a transaction that leaves in several chunks stays one', () => {
    const held = new HeldChanges();
    const large = transaction(0x10n);
    const chunks: HeldChunk[] = [];
    held.add(relation, change('1'), large);
    chunks.push(...held.take(false));
    held.add(relation, change('2'), large);
    chunks.push(...held.take(false));
    held.add(relation, change('3'), transaction(0x20n, 8));
    chunks.push(...held.take(true));
    expect(read(chunks)).toEqual([
      'begin 0/10 7',
      'Rt',
      'I1',
      'begin 0/10 7', // the chunk before may be gone when this one is read
      'Rt',
      'I2',
      'begin 0/10 7',
      'commit 0/10 0/11',
      'begin 0/20 8',
      'Rt',
      'I3',
      'commit 0/20 0/21',
    ]);
    expect(chunks.map(({ lastCommit }) => lastCommit)).toEqual(['0/10', '0/10', '0/20']);
  });

  test('a transaction whose end came with nothing else is ended', () => {
    const held = new HeldChanges();
    held.add(relation, change('1'), transaction(0x10n));
    held.take(false);
    expect(read(held.take(true))).toEqual(['begin 0/10 7', 'commit 0/10 0/11']);
  });

  test('a batch that is sent again goes on with its transaction by position', () => {
    const held = new HeldChanges();
    held.add(relation, change('1'), transaction(0x10n));
    held.add(relation, change('2'), transaction(0x10n));
    expect(read(held.take(true))).toEqual(['begin 0/10 7', 'Rt', 'I1', 'I2', 'commit 0/10 0/11']);
  });

  test('columns that change are described where they do', () => {
    const held = new HeldChanges();
    const one = transaction(0x10n);
    held.add(relation, change('1'), one);
    held.add({ key: relation.key, description: Buffer.from('Rwide') }, change('2'), one);
    expect(read(held.take(true))).toEqual(['begin 0/10 7', 'Rt', 'I1', 'Rwide', 'I2', 'commit 0/10 0/11']);
  });

  test('a truncate of several tables is one of this table alone', () => {
    expect(decodePgoutput(truncateMessage(4711, 3))).toEqual({
      tag: 'truncate',
      relationIds: [4711],
      cascade: true,
      restartIdentity: true,
    });
  });

  test('what is not whole is not read', () => {
    expect(() => boundsOf(Buffer.from([0, 0, 0, 9, 1]))).toThrow('not readable');
    expect(() => boundsOf(Buffer.from([0, 0]))).toThrow('not readable');
  });
});
