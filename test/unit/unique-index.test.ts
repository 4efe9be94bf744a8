// Primary keys and unique constraints as pg_dump prints them, taken apart into an index and a constraint.
import { expect, test } from 'vitest';
import { takeApart } from '../../src/schema/unique-index.ts';

const add = (table: string, constraint: string): string =>
  `ALTER TABLE ONLY ${table}\n    ADD CONSTRAINT ${constraint}`;
const options = `WITH (fillfactor='70', deduplicate_items=off)`;

test.each([
  [
    add('public.t', 't_pkey PRIMARY KEY (id)'),
    'CREATE UNIQUE INDEX t_pkey ON public.t USING btree (id)',
    'ALTER TABLE ONLY public.t ADD CONSTRAINT t_pkey PRIMARY KEY USING INDEX t_pkey',
  ],
  [
    add('s."a.b"', `"p ""k""" PRIMARY KEY (id, "x, (y)") INCLUDE (note) ${options}`),
    `CREATE UNIQUE INDEX "p ""k""" ON s."a.b" USING btree (id, "x, (y)") INCLUDE (note) ${options}`,
    'ALTER TABLE ONLY s."a.b" ADD CONSTRAINT "p ""k""" PRIMARY KEY USING INDEX "p ""k"""',
  ],
  [
    add('public.t', 't_u UNIQUE NULLS NOT DISTINCT (a) INCLUDE (b)'),
    'CREATE UNIQUE INDEX t_u ON public.t USING btree (a) INCLUDE (b) NULLS NOT DISTINCT',
    'ALTER TABLE ONLY public.t ADD CONSTRAINT t_u UNIQUE USING INDEX t_u',
  ],
])('%s', (sql, index, constraint) => {
  expect(takeApart(sql)).toEqual({ index, constraint });
});

test.each([
  add('public.t', 't_u UNIQUE (a) DEFERRABLE'),
  add('public.t', 't_pkey PRIMARY KEY (id) DEFERRABLE INITIALLY DEFERRED'),
  add('public.t', 't_pkey PRIMARY KEY (id, span WITHOUT OVERLAPS)'),
  add('public.t', 't_x EXCLUDE USING gist (span WITH &&)'),
  add('public.t', 't_fk FOREIGN KEY (id) REFERENCES public.u(id)'),
  add('public.t', 't_c CHECK ((id > 0))'),
  'ALTER TABLE public.t CLUSTER ON t_pkey',
  'CREATE UNIQUE INDEX t_u ON public.t USING btree (u)',
])('%s stays as it is', (sql) => expect(takeApart(sql)).toBeNull());
