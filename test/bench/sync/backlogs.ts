// The backlogs of the sync bench: tables with rows on both sides, and what is then written to the source while nobody
// applies it. Every one ends with a row in `mark`: whoever has it has everything before it.

export interface Backlog {
  readonly name: string;
  readonly title: string;
  /** Run on both sides. */
  tables(scale: number): readonly string[];
  /** Run on the source. */
  write(scale: number): readonly string[];
  /** Changes of rows that `write` makes, at this scale. */
  changes(scale: number): number;
}

export const accounts = (rows: number): string[] => [
  'create table accounts (id int primary key, n int not null, owner text, at timestamptz)',
  `insert into accounts select g, 0, md5(g::text), '2024-01-01' from generate_series(1, ${rows}) g`,
];
const loop = (times: number, body: string): string =>
  `do $$ begin for i in 1..${times} loop ${body} commit; end loop; end $$`;
const share = (of: number, scale: number): number => Math.max(100, Math.round(of * scale));

export const backlogs: readonly Backlog[] = [
  {
    name: 'A',
    title: 'small transactions of 4 changes',
    tables: () => [
      ...accounts(100_000),
      'create table history (id int primary key, account int not null, n int, note text)',
    ],
    write: (scale) => [
      loop(
        share(200_000, scale),
        `update accounts set n = n + 1, at = '2024-01-02' where id = 1 + (i::bigint * 7919) % 100000;
         update accounts set n = n - 1 where id = 1 + (i::bigint * 104729) % 100000;
         insert into history values (i, i % 100000, i, 'a note of some length');
         update history set n = -i where id = i;`,
      ),
    ],
    changes: (scale) => share(200_000, scale) * 4,
  },
  {
    name: 'B',
    title: 'inserts in transactions of 1,000',
    tables: () => accounts(0),
    write: (scale) => [
      loop(
        share(2_000, scale),
        `insert into accounts select i * 1000 + g, g, md5(g::text), '2024-01-01' from generate_series(0, 999) g;`,
      ),
    ],
    changes: (scale) => share(2_000, scale) * 1_000,
  },
  {
    name: 'C',
    title: 'updates of 100 hot rows, 10 a transaction',
    tables: () => accounts(100),
    write: (scale) => [
      loop(
        share(40_000, scale),
        `update accounts set n = n + 1 where id between 1 + (i % 10) * 10 and 10 + (i % 10) * 10;`,
      ),
    ],
    changes: (scale) => share(40_000, scale) * 10,
  },
  {
    name: 'D',
    title: 'one transaction',
    tables: () => accounts(0),
    write: (scale) => [
      `insert into accounts select g, g, md5(g::text), '2024-01-01' from generate_series(1, ${share(2_000_000, scale)}) g`,
    ],
    changes: (scale) => share(2_000_000, scale),
  },
  {
    name: 'E',
    title: 'mixed, with large out-of-line values',
    tables: () => [
      'create table document (id int primary key, title text, tags text[], body text)',
      'alter table document alter body set storage external',
      `insert into document select g, 'title', array['a', 'b'], repeat(md5(g::text), 250) from generate_series(1, 5000) g`,
    ],
    write: (scale) => [
      loop(
        share(200_000, scale),
        `insert into document values (10000 + i, 'new ' || i, array['x', i::text], repeat(md5(i::text), case when i % 4 = 0 then 250 else 3 end));
         update document set title = 'title ' || i where id = 1 + i % 5000;
         update document set tags = array['y'] where id = 10000 + i - i % 3;
         if i % 5 = 0 then delete from document where id = 10000 + i - 4; end if;`,
      ),
    ],
    changes: (scale) => Math.round(share(200_000, scale) * 3.2),
  },
];
