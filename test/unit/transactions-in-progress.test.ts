// Transactions that are sent before they have committed, as a server sends them: what is given of them is what a server gives
// of the same transactions when they have committed.
import { mkdtempSync, readdirSync, readlinkSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it, onTestFinished } from 'vitest';
import { bigintToLsn } from '../../src/model/lsn.ts';
import { Lease } from '../../src/postgres/lease.ts';
import type { PgoutputMessage } from '../../src/postgres/pgoutput-messages.ts';
import { SentRolledBack } from '../../src/postgres/sent-rolled-back.ts';
import { SpillFailed, SpillFile } from '../../src/postgres/spill-file.ts';
import { TransactionsInProgress } from '../../src/postgres/transactions-in-progress.ts';
import type { Gulp } from '../../src/postgres/wal-walker.ts';
import { encode, encodeStreamed, gulpOf, keepaliveMessage } from '../support/pgoutput-messages.ts';

const KILOBYTE = 1024;

function makeFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'dts-spill-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return join(folder, 'spill');
}

function gather(memoryBytes?: number, folder = makeFolder()): TransactionsInProgress {
  const made = new TransactionsInProgress({
    folder,
    wasRolledBack: () => Promise.resolve(false),
    ...(memoryBytes === undefined ? {} : { memoryBytes }),
  });
  onTestFinished(() => made.close());
  return made;
}

const insert = (text: string): PgoutputMessage => ({ tag: 'insert', relationId: 1, new: [text] });
const start = (xid: number, first: boolean): Buffer => encode({ tag: 'stream-start', xid, first });
const stop = encode({ tag: 'stream-stop' });
const abort = (xid: number, subXid: number): Buffer =>
  encode({ tag: 'stream-abort', xid, subXid, abortLsn: null, abortTime: null });
const part = (xid: number, first: boolean, ...messages: readonly Buffer[]): Buffer[] => [
  start(xid, first),
  ...messages,
  stop,
];
const commit = (xid: number, at: bigint): Buffer =>
  encode({
    tag: 'stream-commit',
    xid,
    commitLsn: bigintToLsn(at),
    endLsn: bigintToLsn(at + 8n),
    commitTime: 0n,
  });
/** The same transaction when it is sent at its commit. */
const whole = (xid: number, at: bigint, ...messages: readonly PgoutputMessage[]): Buffer[] => [
  encode({ tag: 'begin', commitLsn: bigintToLsn(at), commitTime: 0n, xid }),
  ...messages.map(encode),
  encode({ tag: 'commit', commitLsn: bigintToLsn(at), endLsn: bigintToLsn(at + 8n), commitTime: 0n }),
];

/** Messages of what is given, as text. */
async function given(from: TransactionsInProgress, gulps: readonly Gulp[]): Promise<string[]> {
  const messages: string[] = [];
  for await (const { buffer, bounds, lease } of from.whole(gulps)) {
    for (let i = 0; i < bounds.length; i += 2)
      messages.push(buffer.toString('latin1', bounds[i], bounds[i + 1]));
    lease?.release();
  }
  return messages;
}
const textOf = (messages: readonly Buffer[]): string[] => messages.map((each) => each.toString('latin1'));

/** Sizes of the files of the folder that this process has open, and which have no name any more. */
function openFiles(folder: string): number[] {
  const fds = '/proc/self/fd';
  return readdirSync(fds).flatMap((fd) => {
    try {
      const path = join(fds, fd);
      return readlinkSync(path).startsWith(folder) ? [statSync(path).size] : [];
    } catch {
      return []; // the one that read the list
    }
  });
}

interface Running {
  readonly xid: number;
  sent: boolean;
  readonly written: PgoutputMessage[];
  /** Ids of the transaction and of the sub-transactions that are open in each other. */
  readonly levels: number[];
}

/** A server that runs transactions, each with sub-transactions, and sends every change at once. */
class Server {
  readonly sent: Buffer[] = [];
  readonly expected: Buffer[] = [];
  #lsn = 0x1000n;
  #xid: number;
  #words = 0;
  readonly #open: Running[] = [];

  constructor(firstXid: number) {
    this.#xid = firstXid;
  }

  get running(): number {
    return this.#open.length;
  }

  begin(): void {
    const xid = this.#nextXid();
    this.#open.push({ xid, sent: false, written: [], levels: [xid] });
  }

  write(which: number, bytes: number, times: number): void {
    const transaction = this.#at(which);
    if (!transaction) return;
    const { levels, written } = transaction;
    const xid = levels.at(-1) ?? 0;
    const messages: PgoutputMessage[] = [];
    for (let i = 0; i < times; i++) messages.push(insert(`${this.#words++} ${'x'.repeat(bytes)}`));
    written.push(...messages);
    this.sent.push(
      ...part(transaction.xid, !transaction.sent, ...messages.map((each) => encodeStreamed(each, xid))),
    );
    transaction.sent = true;
  }

  savepoint(which: number): void {
    this.#at(which)?.levels.push(this.#nextXid());
  }

  release(which: number): void {
    const levels = this.#at(which)?.levels ?? [];
    if (levels.length > 1) levels.pop();
  }

  end(which: number, commits: boolean): void {
    const transaction = this.#at(which);
    if (!transaction) return;
    this.#open.splice(this.#open.indexOf(transaction), 1);
    if (!transaction.sent) return;
    const { xid, written } = transaction;
    this.#lsn += 16n;
    if (!commits) {
      this.sent.push(abort(xid, xid));
      return;
    }
    this.sent.push(commit(xid, this.#lsn));
    this.expected.push(...whole(xid, this.#lsn, ...written));
  }

  /** One that is small enough to come when it has committed. */
  small(): void {
    this.#lsn += 16n;
    const messages = whole(this.#nextXid(), this.#lsn, insert(`small ${this.#words++}`));
    this.sent.push(...messages);
    this.expected.push(...messages);
  }

  keepalive(): void {
    const message = keepaliveMessage(bigintToLsn(this.#lsn + 8n), false);
    this.sent.push(message);
    this.expected.push(message);
  }

  #at(which: number): Running | undefined {
    return this.#open[which % Math.max(1, this.#open.length)];
  }

  #nextXid(): number {
    const xid = this.#xid;
    this.#xid = (this.#xid + 1) >>> 0;
    return xid;
  }
}

const which = fc.nat(5);
const step = fc.oneof(
  { weight: 2, arbitrary: fc.constant((server: Server) => server.begin()) },
  {
    weight: 8,
    arbitrary: fc
      .tuple(which, fc.constantFrom(3, 500, 40 * KILOBYTE, 700 * KILOBYTE), fc.integer({ min: 1, max: 4 }))
      .map(
        ([at, bytes, times]) =>
          (server: Server) =>
            server.write(at, bytes, times),
      ),
  },
  { weight: 4, arbitrary: which.map((at) => (server: Server) => server.savepoint(at)) },
  { weight: 2, arbitrary: which.map((at) => (server: Server) => server.release(at)) },
  {
    weight: 2,
    arbitrary: fc.tuple(which, fc.boolean()).map(
      ([at, commits]) =>
        (server: Server) =>
          server.end(at, commits),
    ),
  },
  { weight: 1, arbitrary: fc.constant((server: Server) => server.small()) },
  { weight: 1, arbitrary: fc.constant((server: Server) => server.keepalive()) },
);

/** In gulps of so many messages each, in turn. */
function cut(messages: readonly Buffer[], sizes: readonly number[]): Gulp[] {
  const gulps: Gulp[] = [];
  for (let at = 0, n = 0; at < messages.length; n++) {
    const size = sizes[n % sizes.length] ?? 1;
    gulps.push(gulpOf(messages.slice(at, at + size)));
    at += size;
  }
  return gulps;
}

describe('transactions in progress', () => {
  it('are given in the order of their commits, without those that were rolled back, wherever they lay meanwhile', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(step, { minLength: 5, maxLength: 60 }),
        fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1, maxLength: 5 }),
        fc.constantFrom(0, 200 * KILOBYTE, 100 * KILOBYTE * KILOBYTE),
        fc.constantFrom(700, 2 ** 32 - 5),
        async (steps, sizes, memoryBytes, firstXid) => {
          const server = new Server(firstXid);
          for (const each of steps) each(server);
          while (server.running > 0) server.end(0, true);
          const gatherer = gather(memoryBytes);
          const messages = await given(gatherer, cut(server.sent, sizes));
          expect(messages).toEqual(textOf(server.expected));
          expect(gatherer.figures).toEqual({ transactions: 0, bytes: 0, spilledBytes: 0 });
        },
      ),
      { numRuns: 150 },
    );
  });

  it('lie in files without a name beyond a limit, which are gone with them', async () => {
    const folder = makeFolder();
    const gatherer = gather(100 * KILOBYTE, folder);
    const large = insert('y'.repeat(90 * KILOBYTE));
    const rows = (xid: number): Buffer[] =>
      part(xid, true, encodeStreamed(large, xid), encodeStreamed(large, xid));
    expect(await given(gatherer, [gulpOf(rows(7)), gulpOf(rows(8))])).toEqual([]);
    const { transactions, bytes, spilledBytes } = gatherer.figures;
    expect(transactions).toBe(2);
    expect(bytes).toBeGreaterThan(4 * 90 * KILOBYTE);
    expect(spilledBytes).toBe(bytes);
    expect(readdirSync(folder)).toEqual([]);
    expect(openFiles(folder).reduce((sum, size) => sum + size, 0)).toBe(bytes);
    expect(openFiles(folder)).toHaveLength(2);
    expect(await given(gatherer, [gulpOf([abort(7, 7), commit(8, 64n)])])).toEqual(
      textOf(whole(8, 64n, large, large)),
    );
    expect(gatherer.figures).toEqual({ transactions: 0, bytes: 0, spilledBytes: 0 });
    expect(openFiles(folder)).toEqual([]);
    await given(gatherer, [gulpOf(rows(9))]);
    expect(openFiles(folder)).toHaveLength(1);
    await gatherer.close();
    expect(openFiles(folder)).toEqual([]);
  });

  it.each([
    ['part', (row: Buffer) => [...part(7, false, row), ...whole(4, 64n), commit(7, 0x200n)]],
    ['commit', () => [commit(7, 0x200n)]],
  ])('end with the next %s of one whose sub-transaction was rolled back', async (_, next) => {
    const gatherer = gather();
    const small = (xid: number): Buffer[] => whole(xid, BigInt(16 * xid), insert(`small ${xid}`));
    const row = encodeStreamed(insert('row'), 8);
    const gulps = gatherer.whole([
      gulpOf([...part(7, true, row), ...small(2)]),
      gulpOf([abort(7, 8), ...small(3), ...next(row), ...small(9)]),
    ]);
    const seen: string[] = [];
    const looking = (async () => {
      for await (const { buffer, bounds } of gulps)
        for (let i = 0; i < bounds.length; i += 2)
          seen.push(buffer.toString('latin1', bounds[i], bounds[i + 1]));
    })();
    await expect(looking).rejects.toBeInstanceOf(SentRolledBack);
    expect(seen).toEqual(textOf([...small(2), ...small(3)]));
    await expect(given(gatherer, [gulpOf(small(10))])).rejects.toBeInstanceOf(SentRolledBack);
  });

  it('are forgotten when they are rolled back, sub-transactions first; their id may come again', async () => {
    const gatherer = gather();
    const row = insert('row');
    await given(gatherer, [gulpOf([...part(7, true, encodeStreamed(row, 8)), abort(7, 8), abort(7, 7)])]);
    expect(gatherer.figures).toEqual({ transactions: 0, bytes: 0, spilledBytes: 0 });
    expect(
      await given(gatherer, [gulpOf([...part(7, true, encodeStreamed(row, 7)), commit(7, 64n)])]),
    ).toEqual(textOf(whole(7, 64n, row)));
  });

  it('leave no gulp in memory for the little that lies between them', async () => {
    const released: string[] = [];
    const lent = (name: string, messages: readonly Buffer[]): Gulp => ({
      ...gulpOf(messages),
      lease: new Lease(() => void released.push(name)),
    });
    const small = whole(3, 64n, insert('small'));
    const row = encodeStreamed(insert('x'.repeat(KILOBYTE)), 7);
    const gulps = [
      lent('mostly a part', [...part(7, true, row), ...small]),
      lent('half', [...small, ...small]),
    ];
    const taken: Gulp[] = [];
    for await (const gulp of gather().whole(gulps)) taken.push(gulp);
    expect(released).toEqual(['mostly a part']);
    expect(taken[0]?.buffer.length).toBeLessThan(200);
    expect(taken[1]?.buffer).toBe(gulps[1]?.buffer);
    expect(await given(gather(), [gulpOf([...part(7, true, row), ...small])])).toEqual(textOf(small));
  });

  it('keep the memory of what lies between them until it is let go', async () => {
    const released: string[] = [];
    const lent = (name: string, messages: readonly Buffer[]): Gulp => ({
      ...gulpOf(messages),
      lease: new Lease(() => void released.push(name)),
    });
    const gatherer = gather();
    const small = whole(3, 64n, insert('small'));
    const row = encodeStreamed(insert('row'), 7);
    const gulps = gatherer.whole([
      lent('only a part', part(7, true, row)),
      lent('both', [...part(7, false, row), ...small, ...part(7, false, row), ...small]),
      lent('untouched', small),
    ]);
    const taken: Gulp[] = [];
    for await (const gulp of gulps) taken.push(gulp);
    expect(released).toEqual(['only a part']);
    expect(taken.map(({ bounds }) => bounds.length / 2)).toEqual([3, 3, 3]);
    taken[0]?.lease?.release();
    expect(released).toEqual(['only a part']);
    taken[1]?.lease?.release();
    taken[2]?.lease?.release();
    expect(released).toEqual(['only a part', 'both', 'untouched']);
  });

  it('are an error where the server says what it cannot mean', async () => {
    const row = encodeStreamed(insert('row'), 7);
    const cases: readonly [readonly Buffer[], RegExp][] = [
      [[commit(7, 64n)], /commit of the transaction 7/],
      [[stop], /stream-stop outside of a part/],
      [part(7, false, row), /another part of the transaction 7/],
      [[...part(7, true, row), ...part(7, true, row)], /the first part of the transaction 7/],
      [[start(7, true), start(8, true)], /stream-start within a part/],
      [[start(7, true), commit(7, 64n)], /stream-commit within a part/],
      [[start(7, true), ...whole(8, 64n)], /begin within a part/],
      [[start(7, true), row.subarray(0, 4)], /malformed/],
      [[start(7, true), Buffer.from('?')], /malformed/],
    ];
    for (const [messages, words] of cases)
      await expect(given(gather(), [gulpOf(messages)])).rejects.toMatchObject({
        code: 'internal',
        message: expect.stringMatching(words) as string,
      });
    // of what was never sent nothing is to be forgotten
    expect(await given(gather(), [gulpOf([abort(7, 7), abort(8, 9)])])).toEqual([]);
  });

  it('are not given on when one of their sub-transactions was rolled back without a word', async () => {
    const asked: (readonly number[])[] = [];
    let rolledBack = 0;
    const gatherer = new TransactionsInProgress({
      folder: makeFolder(),
      wasRolledBack: (xids) => {
        asked.push(xids);
        return Promise.resolve(xids.includes(rolledBack));
      },
    });
    onTestFinished(() => gatherer.close());
    const row = (xid: number, bytes = 3): Buffer => encodeStreamed(insert('x'.repeat(bytes)), xid);
    await given(gatherer, [gulpOf([...part(5, true, row(5)), commit(5, 16n)])]);
    expect(asked).toEqual([]); // it had none
    const large = row(7, 70 * KILOBYTE);
    const sent = [
      row(7),
      row(8),
      row(8),
      row(7),
      row(9),
      row(8),
      large,
      row(9),
      row(10),
      row(7),
      large,
      row(10),
    ];
    await given(gatherer, [gulpOf([...part(7, true, ...sent), commit(7, 64n)])]);
    expect(asked).toEqual([[8, 9], [10]]); // each once
    rolledBack = 12;
    const failing = given(gatherer, [gulpOf([...part(11, true, row(11), row(12)), commit(11, 0x80n)])]);
    await expect(failing).rejects.toBeInstanceOf(SentRolledBack);
  });

  it('are given no further once something is wrong, or nobody wants them', async () => {
    const row = encodeStreamed(insert('row'), 7);
    const failed = gather();
    await expect(given(failed, [gulpOf([stop])])).rejects.toThrow(/out of place/);
    await expect(given(failed, [gulpOf(whole(3, 64n))])).rejects.toThrow(/out of place/);
    const folder = makeFolder();
    const closed = gather(0, folder);
    await given(closed, [gulpOf([start(7, true), row])]);
    const going = closed.whole([
      gulpOf([row, keepaliveMessage('0/50', false), row, stop, ...part(8, true, row)]),
    ]);
    expect((await going.next()).done).toBe(false);
    await closed.close();
    await expect(going.next()).rejects.toMatchObject({ code: 'aborted' });
    await expect(given(closed, [gulpOf(part(9, true, row))])).rejects.toMatchObject({ code: 'aborted' });
    expect(openFiles(folder)).toEqual([]);
  });

  it('say which folder refuses them', async () => {
    const folder = makeFolder();
    writeFileSync(folder, 'a file');
    const gatherer = gather(0, folder);
    const failure = given(gatherer, [gulpOf(part(7, true, encodeStreamed(insert('row'), 7)))]);
    await expect(failure).rejects.toBeInstanceOf(SpillFailed);
    await expect(failure).rejects.toThrow(folder);
  });

  it('leave the disk of the store room', async () => {
    const folder = makeFolder();
    const file = new SpillFile(folder, Number.MAX_SAFE_INTEGER);
    await expect(file.write(Buffer.from('row'), 0)).rejects.toThrow(/would be left free/);
    await file.close();
    expect(openFiles(folder)).toEqual([]);
    await expect(file.write(Buffer.from('row'), 0)).rejects.toBeInstanceOf(SpillFailed);
  });
});
