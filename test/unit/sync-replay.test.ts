// The replay loop without servers: what becomes a batch, what only moves the position, what is left out.
import { describe, expect, it } from 'vitest';
import { MigrationError } from '../../src/model/errors.ts';
import type { Lsn } from '../../src/model/lsn.ts';
import { parsePgSnapshot } from '../../src/model/pg-snapshot.ts';
import { Lease } from '../../src/postgres/lease.ts';
import type { PgoutputMessage } from '../../src/postgres/pgoutput-messages.ts';
import type { TaskScope } from '../../src/postgres/task-scope.ts';
import type { Applier, BatchEnd } from '../../src/sync/apply.ts';
import { CopyFilter } from '../../src/sync/filter.ts';
import type { RelationMap, StreamedTable } from '../../src/sync/relations.ts';
import { newFigures } from '../../src/sync/replay-figures.ts';
import { Replay } from '../../src/sync/replay.ts';
import { encode, gulpOf, keepaliveMessage } from '../support/pgoutput-messages.ts';

const table = { kept: null, key: 'public.t' } as StreamedTable;
const message = (sent: PgoutputMessage): Buffer => encode(sent);
const keepalive = (walEnd: Lsn, replyRequested = false): Buffer => keepaliveMessage(walEnd, replyRequested);
const begin = (commitLsn: Lsn, xid = 1): Buffer => message({ tag: 'begin', commitLsn, commitTime: 0n, xid });
const commit = (endLsn: Lsn): Buffer => message({ tag: 'commit', commitLsn: endLsn, endLsn, commitTime: 0n });
const insert = (id: string): Buffer => message({ tag: 'insert', relationId: 1, new: [id] });
const marker = (id: string, prefix = 'dts/task', transactional = true): Buffer =>
  message({ tag: 'message', transactional, lsn: '0/1', prefix, content: Buffer.from(id) });

/**
 * Runs the chunks one take() each and returns what happened, in order. The target refuses the first `refused` batches at
 * their end, and changes in the middle of the first `refusedWithin`. `tellsLeases`: also when a chunk's memory is let go.
 */
async function replay(
  chunks: readonly (readonly Buffer[])[],
  appliedLsn: Lsn = '0/100',
  refused = 0,
  refusedWithin = 0,
  tellsLeases = false,
): Promise<string[]> {
  const log: string[] = [];
  const ended = new Error('nothing more');
  let applied = appliedLsn;
  let open = false;
  let left = refused;
  let within = refusedWithin;
  const queue = [...chunks];
  const stream = {
    take: () => {
      const items = queue.shift();
      const number = chunks.length - queue.length;
      const lease = new Lease(() => void (tellsLeases && log.push(`chunk ${number} let go`)));
      if (items) return Promise.resolve([{ ...gulpOf(items), lease }]);
      // What is under way ends first.
      return new Promise<never[]>((resolve, reject) =>
        setTimeout(() => (open ? resolve([]) : reject(ended)), 1),
      );
    },
    poke: () => undefined,
    drained: true,
    ended: false,
    acknowledge: (lsn: Lsn) => void log.push(`ack ${lsn}`),
  };
  const applier = {
    get isOpen() {
      return open;
    },
    get appliedLsn() {
      return applied;
    },
    pendingBytes: 0,
    send: () => void (open = true),
    take: () => false,
    insert: (_table: StreamedTable, row: readonly string[]) => {
      open = true;
      log.push(`insert ${row[0]}`);
    },
    truncate: (tables: readonly StreamedTable[]) => {
      open = true;
      log.push(`truncate ${tables.map((each) => each.key).join(' ')}`);
    },
    throttle: () =>
      within-- > 0 ? Promise.reject(new MigrationError('sql_failed', 'target: refused')) : Promise.resolve(),
    push: () => undefined,
    rollback: () => {
      log.push('rollback');
      return Promise.resolve();
    },
    beginInOrder: () => undefined,
    endInOrder: () => Promise.resolve(),
    finish: (end: BatchEnd) => {
      if (left-- > 0) return Promise.reject(new MigrationError('sql_failed', 'target: refused'));
      log.push(`commit ${end.position}${end.marker ? ` marker ${end.marker.id} ${end.marker.lsn}` : ''}`);
      applied = end.position;
      open = false;
      return Promise.resolve(true);
    },
  };
  const parts = [
    {
      relation: 'public.t',
      part: 0,
      range: null,
      pgSnapshot: parsePgSnapshot('10:20:'),
      horizonLsn: '0/1000',
    },
  ];
  const loop = new Replay({
    scope: {
      taskId: 'task',
      failpoint: () => undefined,
      log: { info: () => undefined },
    } as unknown as TaskScope,
    feed: stream,
    applier: applier as unknown as Applier,
    relations: { get: () => ({ kind: 'table', table }) } as unknown as RelationMap,
    filter: new CopyFilter(parts),
    figures: newFigures(),
    onStored: () => undefined,
  });
  await loop.run().catch((error: unknown) => {
    if (error !== ended) throw error;
  });
  return log;
}

describe('the replay', () => {
  it('stores the position of an idle stream at once for whoever asks, and of no other message', async () => {
    const asked = (prefix: string): Promise<string[]> =>
      replay([[begin('0/100'), marker('', prefix), commit('0/200'), keepalive('0/200')], []]);
    expect(await asked('dts/task/position')).toEqual(['commit 0/200', 'ack 0/200']);
    expect(await asked('dts/other/position')).toEqual([]);
  });

  it('commits many source transactions at once and acknowledges after the commit', async () => {
    const items = [
      begin('0/2000'),
      insert('1'),
      commit('0/2010'),
      begin('0/2020'),
      insert('2'),
      commit('0/2030'),
    ];
    expect(await replay([items])).toEqual(['insert 1', 'insert 2', 'commit 0/2030', 'ack 0/2030']);
  });

  const soon = [
    [begin('0/2000'), insert('1'), commit('0/2010')],
    [begin('0/2020'), insert('2'), commit('0/2030')],
    [begin('0/2040'), insert('3'), commit('0/2050')],
  ] as const;

  it('lets what comes alone leave at once, and what is committed soon behind it share a target transaction', async () => {
    expect(await replay(soon)).toEqual([
      'insert 1',
      'commit 0/2010',
      'ack 0/2010',
      'insert 2',
      'insert 3',
      'commit 0/2050',
      'ack 0/2050',
    ]);
  });

  it('waits for nothing more when the server asks for a reply', async () => {
    const [one, two, three] = soon;
    const log = await replay([one, [...two, keepalive('0/2030', true)], three]);
    expect(log.slice(3)).toEqual([
      'insert 2',
      'commit 0/2030',
      'ack 0/2030',
      'insert 3',
      'commit 0/2050',
      'ack 0/2050',
    ]);
  });

  it('never commits inside a source transaction, nor takes a keepalive there for progress', async () => {
    const chunks = [
      [begin('0/2000'), insert('1'), keepalive('0/3000', true)],
      [insert('2'), commit('0/2010')],
    ];
    expect(await replay(chunks)).toEqual(['insert 1', 'insert 2', 'commit 0/2010', 'ack 0/2010']);
  });

  it('lets go of what it has read once the target has committed the last of it, and not before', async () => {
    const chunks = [
      [begin('0/2000'), insert('1'), commit('0/2010'), begin('0/2020'), insert('2')],
      [insert('3'), commit('0/2030')],
      [begin('0/2040'), marker('m'), commit('0/2050'), begin('0/2060'), insert('4'), commit('0/2070')],
    ];
    const told = (refused: number): Promise<string[]> => replay(chunks, '0/100', refused, 0, true);
    const rest = [
      'commit 0/2050 marker m 0/2050',
      'ack 0/2050',
      'insert 4',
      'commit 0/2070',
      'chunk 3 let go',
    ];
    const first = ['insert 1', 'insert 2', 'insert 3'];
    expect(await told(0)).toEqual([
      ...first,
      'commit 0/2030',
      'chunk 1 let go',
      'chunk 2 let go',
      'ack 0/2030',
      ...rest,
      'ack 0/2070',
    ]);
    // what is sent again may be sent once more: it is nobody else's
    expect(await told(1)).toEqual([
      ...first,
      'rollback',
      ...first,
      'commit 0/2030',
      'ack 0/2030',
      ...rest,
      'ack 0/2070',
    ]);
  });

  it('lets go at once of what it will not look at again', async () => {
    // a batch with changes that the copies are asked for is read again when it fails, not sent again
    const chunks = [[begin('0/500', 20), insert('1')], [insert('2')], [insert('3'), commit('0/510')]];
    expect(await replay(chunks, '0/100', 0, 0, true)).toEqual([
      'insert 1',
      'chunk 1 let go',
      'insert 2',
      'chunk 2 let go',
      'insert 3',
      'commit 0/510',
      'ack 0/510',
      'chunk 3 let go',
    ]);
  });

  it('goes no further with a feed that gives a transaction twice', async () => {
    const given = [begin('0/2000'), insert('1'), commit('0/2010')];
    await expect(replay([given, [keepalive('0/2008')], given])).rejects.toMatchObject({
      code: 'connection_failed',
      message: expect.stringContaining('0/2000') as string,
    });
  });

  it('leaves out a transaction that is on the target already', async () => {
    const items = [
      begin('0/2000'),
      insert('1'),
      commit('0/2010'),
      begin('0/2020'),
      insert('2'),
      commit('0/2030'),
    ];
    expect(await replay([items], '0/2010')).toEqual(['insert 2', 'commit 0/2030', 'ack 0/2030']);
  });

  it('leaves out the rest of such a transaction, too, when a batch is sent again in source order', async () => {
    const chunks = [
      [begin('0/2000'), insert('1')],
      [insert('2'), commit('0/2010'), begin('0/2020'), insert('3'), commit('0/2030')],
      [begin('0/2040'), insert('4'), commit('0/2050')],
    ];
    expect(await replay(chunks, '0/2010', 1)).toEqual([
      'insert 3',
      'rollback',
      'insert 3',
      'commit 0/2030',
      'ack 0/2030',
      'insert 4',
      'commit 0/2050',
      'ack 0/2050',
    ]);
  });

  it('does not wait for a read that ends between two transactions', async () => {
    const chunks = [
      [begin('0/2000'), insert('1'), commit('0/2010'), begin('0/2020'), insert('2')],
      [commit('0/2030'), begin('0/2040'), insert('3')],
      [commit('0/2050')],
    ];
    expect(await replay(chunks)).toEqual([
      'insert 1',
      'insert 2',
      'commit 0/2030',
      'ack 0/2030',
      'insert 3',
      'commit 0/2050',
      'ack 0/2050',
    ]);
  });

  it('sends a batch again, although an empty transaction in it is older than the copies', async () => {
    const items = [begin('0/500'), commit('0/510'), begin('0/2000'), insert('1'), commit('0/2010')];
    expect(await replay([items], '0/100', 1)).toEqual([
      'insert 1',
      'rollback',
      'insert 1',
      'commit 0/2010',
      'ack 0/2010',
    ]);
  });

  it('stays in one target transaction where a chunk begins the transaction that it goes on with once more', async () => {
    const chunks = [
      [begin('0/2000'), insert('1')],
      [begin('0/2000'), insert('2'), commit('0/2010')],
    ];
    const once = ['insert 1', 'insert 2', 'commit 0/2010', 'ack 0/2010'];
    expect(await replay(chunks)).toEqual(once);
    // the first change is sent again in source order, which the repeated beginning must not end
    expect(await replay(chunks, '0/100', 0, 1)).toEqual(['insert 1', 'rollback', ...once]);
  });

  it('applies a marker at once, with the end of its commit and everything before it', async () => {
    const items = [begin('0/2000'), insert('1'), commit('0/2010')];
    const later = [
      begin('0/2020'),
      marker('m'),
      commit('0/2030'),
      begin('0/2040'),
      insert('2'),
      commit('0/2050'),
    ];
    expect(await replay([[...items, ...later]])).toEqual([
      'insert 1',
      'commit 0/2030 marker m 0/2030',
      'ack 0/2030',
      'insert 2',
      'commit 0/2050',
      'ack 0/2050',
    ]);
  });

  it('ignores messages of others and what is not transactional', async () => {
    const foreign = [begin('0/2000'), marker('m', 'dts/other'), commit('0/2010')];
    const heartbeat = [marker('', 'dts/task/heartbeat', false), marker('x', 'dts/task', false)];
    expect(await replay([foreign, heartbeat])).toEqual([]);
  });

  it('skips what the copy saw, and only moves the position for it', async () => {
    const seen = [begin('0/500', 9), insert('seen'), commit('0/510')];
    const truncated = [
      begin('0/520', 9),
      message({ tag: 'truncate', relationIds: [1], cascade: false, restartIdentity: false }),
      commit('0/530'),
    ];
    const running = [begin('0/540', 20), insert('unseen'), commit('0/550')];
    const behind = [begin('0/1000', 9), insert('behind'), commit('0/1010')];
    expect(await replay([[...seen, ...truncated], running, behind])).toEqual([
      'insert unseen',
      'commit 0/550',
      'ack 0/550',
      'insert behind',
      'commit 0/1010',
      'ack 0/1010',
    ]);
  });

  it('stores an idle position at once when the server asks for a reply: it may be shutting down', async () => {
    expect(await replay([[keepalive('0/3000')], [keepalive('0/3000', true)]])).toEqual([
      'commit 0/3000',
      'ack 0/3000',
    ]);
  });
});
