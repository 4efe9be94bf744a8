// Splitting a dump and renaming in its text, without a server: only names change, and every name that must.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { MAX_IDENTIFIER_BYTES, suffixedName, type RelationName } from '../../src/model/relation.ts';
import { ident, identRelation, literal } from '../../src/postgres/sql.ts';
import { keyIndexesOf, phaseOf } from '../../src/schema/phases.ts';
import { Renaming } from '../../src/schema/rename.ts';
import { splitDump, type DumpEntry } from '../../src/schema/split.ts';

interface GivenEntry {
  readonly kind: string;
  readonly sql: string;
  readonly tag?: string;
}

/** A dump as pg_dump --verbose writes it. */
function dumpOf(entries: readonly GivenEntry[]): string {
  const head = `\\restrict abc\n\n-- Dumped by pg_dump\n\nSET transaction_timeout = 0;\nSELECT pg_catalog.set_config('search_path', '', false);\n\n`;
  const body = entries.map(
    ({ kind, sql, tag = 'x' }, n) =>
      `--\n-- TOC entry ${n + 1} (class 1259 OID ${n + 100})\n-- Dependencies: ${n} 7\n-- Name: ${tag}; Type: ${kind}; Schema: s; Owner: -\n--\n\n${sql};\n\n\n`,
  );
  return `${head}${body.join('')}-- Completed on 2026-01-01\n\n\\unrestrict abc\n\n`;
}

async function renamed(
  sql: string,
  suffix: string,
  relations: readonly RelationName[],
  kind = 'TABLE',
): Promise<string> {
  const [entry] = await splitDump(dumpOf([{ kind, sql }]));
  const statistics = relations.filter(({ name }) => name.startsWith('stat'));
  const renaming = new Renaming(suffix, relations, statistics);
  return (entry?.statements ?? []).map((statement) => renaming.text(statement)).join(';\n');
}

const s = (...names: string[]): RelationName[] => names.map((name) => ({ schema: 's', name }));

test.each([
  [
    'CREATE TABLE s.t (\n    a integer CONSTRAINT nn NOT NULL,\n    CONSTRAINT c CHECK ((a > 0))\n)',
    'CREATE TABLE s."t_n" (\n    a integer CONSTRAINT "nn_n" NOT NULL,\n    CONSTRAINT "c_n" CHECK ((a > 0))\n)',
  ],
  [
    'CREATE TABLE s.u (\n    a s.t,\n    b s.t[]\n)\nINHERITS (s.t)',
    'CREATE TABLE s.u (\n    a s."t_n",\n    b s."t_n"[]\n)\nINHERITS (s."t_n")',
  ],
  [
    "ALTER TABLE ONLY s.t ALTER COLUMN a SET DEFAULT nextval('s.q'::regclass)",
    `ALTER TABLE ONLY s."t_n" ALTER COLUMN a SET DEFAULT nextval('"s"."q_n"'::regclass)`,
  ],
  [
    "ALTER TABLE ONLY s.t ALTER COLUMN a SET DEFAULT nextval(('s.q'::text)::regclass)",
    `ALTER TABLE ONLY s."t_n" ALTER COLUMN a SET DEFAULT nextval(('"s"."q_n"'::text)::regclass)`,
  ],
  [
    'ALTER TABLE s.t ALTER COLUMN a ADD GENERATED ALWAYS AS IDENTITY (\n    SEQUENCE NAME s.q\n    START WITH 1\n)',
    'ALTER TABLE s."t_n" ALTER COLUMN a ADD GENERATED ALWAYS AS IDENTITY (\n    SEQUENCE NAME s."q_n"\n    START WITH 1\n)',
  ],
  ['ALTER SEQUENCE s.q OWNED BY s.t.a', 'ALTER SEQUENCE s."q_n" OWNED BY s."t_n".a'],
  [
    'ALTER TABLE ONLY s.t\n    ADD CONSTRAINT i PRIMARY KEY (a)',
    'ALTER TABLE ONLY s."t_n"\n    ADD CONSTRAINT "i_n" PRIMARY KEY (a)',
  ],
  [
    'ALTER TABLE ONLY s.t\n    ADD CONSTRAINT fk FOREIGN KEY (a) REFERENCES s.u(b)',
    'ALTER TABLE ONLY s."t_n"\n    ADD CONSTRAINT "fk_n" FOREIGN KEY (a) REFERENCES s.u(b)',
  ],
  [
    'ALTER TABLE ONLY s.t REPLICA IDENTITY USING INDEX i',
    'ALTER TABLE ONLY s."t_n" REPLICA IDENTITY USING INDEX "i_n"',
  ],
  ['ALTER TABLE s.t CLUSTER ON i', 'ALTER TABLE s."t_n" CLUSTER ON "i_n"'],
  [
    "ALTER TABLE ONLY s.t ATTACH PARTITION s.p FOR VALUES IN ('s.t')",
    'ALTER TABLE ONLY s."t_n" ATTACH PARTITION s."p_n" FOR VALUES IN (\'s.t\')',
  ],
  ['ALTER INDEX s.i ATTACH PARTITION s.i', 'ALTER INDEX s."i_n" ATTACH PARTITION s."i_n"'],
  ['ALTER INDEX s.i ALTER COLUMN 1 SET STATISTICS 5', 'ALTER INDEX s."i_n" ALTER COLUMN 1 SET STATISTICS 5'],
  [
    'CREATE UNIQUE INDEX i ON ONLY s.t USING btree (((t.* IS NULL)), t)',
    'CREATE UNIQUE INDEX "i_n" ON ONLY s."t_n" USING btree ((("t_n".* IS NULL)), t)',
  ],
  ['CREATE STATISTICS s.stat ON a, b FROM s.t', 'CREATE STATISTICS s."stat_n" ON a, b FROM s."t_n"'],
  ['ALTER STATISTICS s.stat SET STATISTICS 5', 'ALTER STATISTICS s."stat_n" SET STATISTICS 5'],
  ["COMMENT ON TABLE s.t IS 's.t'", `COMMENT ON TABLE s."t_n" IS 's.t'`],
  ["COMMENT ON COLUMN s.t.t IS 'x'", `COMMENT ON COLUMN s."t_n".t IS 'x'`],
  ["COMMENT ON CONSTRAINT c ON s.t IS 'x'", `COMMENT ON CONSTRAINT "c_n" ON s."t_n" IS 'x'`],
  ["COMMENT ON TRIGGER t ON s.t IS 'x'", `COMMENT ON TRIGGER t ON s."t_n" IS 'x'`],
  ["COMMENT ON STATISTICS s.stat IS 'x'", `COMMENT ON STATISTICS s."stat_n" IS 'x'`],
  [
    'CREATE TRIGGER t AFTER INSERT ON s.t FOR EACH ROW WHEN ((new.a > 0)) EXECUTE FUNCTION s.t()',
    'CREATE TRIGGER t AFTER INSERT ON s."t_n" FOR EACH ROW WHEN ((new.a > 0)) EXECUTE FUNCTION s.t()',
  ],
  [
    'CREATE POLICY p ON s.t USING ((EXISTS ( SELECT 1 FROM s.p WHERE (p.a = t.a))))',
    'CREATE POLICY p ON s."t_n" USING ((EXISTS ( SELECT 1 FROM s."p_n" AS "p" WHERE (p.a = "t_n".a))))',
  ],
  [
    'CREATE POLICY p ON s.t USING ((EXISTS ( SELECT 1 FROM s.t t_1 WHERE (t_1.a = t.a))))',
    'CREATE POLICY p ON s."t_n" USING ((EXISTS ( SELECT 1 FROM s."t_n" t_1 WHERE (t_1.a = "t_n".a))))',
  ],
  [
    'CREATE RULE r AS ON DELETE TO s.t DO INSTEAD UPDATE s.t SET a = 0 WHERE (t.a = old.a)',
    'CREATE RULE r AS ON DELETE TO s."t_n" DO INSTEAD UPDATE s."t_n" AS "t" SET a = 0 WHERE (t.a = old.a)',
  ],
  [
    'CREATE RULE r AS ON INSERT TO s.t DO INSERT INTO s.p (a) VALUES (new.a)',
    'CREATE RULE r AS ON INSERT TO s."t_n" DO INSERT INTO s."p_n" AS "p" (a) VALUES (new.a)',
  ],
  [
    'CREATE FUNCTION s.t(r s.t) RETURNS SETOF s.t\n    LANGUAGE sql\n    AS $$ select s.t $$',
    'CREATE FUNCTION s.t(r s."t_n") RETURNS SETOF s."t_n"\n    LANGUAGE sql\n    AS $$ select s.t $$',
  ],
])('%s', async (sql, expected) => {
  expect(await renamed(sql, '_n', s('t', 'p', 'q', 'i', 'stat'))).toBe(expected);
  expect(await renamed(sql, '', s('t', 'p', 'q', 'i', 'stat'))).toBe(sql);
  expect(await renamed(sql, '_n', [])).toBe(sql);
});

// Any characters but NUL, up to PostgreSQL's 63 bytes: quotes, dots, spaces, emoji, SQL keywords.
const name = fc
  .string({ unit: 'grapheme', minLength: 1, maxLength: 40 })
  .filter((text) => !/[\0\n\r]/.test(text) && Buffer.byteLength(text) <= MAX_IDENTIFIER_BYTES);
const suffix = fc.constantFrom('_migrated', '2', '_Ü.ß', ' x', '_$');

test('names of any spelling are replaced where they stand, and nowhere else', async () => {
  await fc.assert(
    fc.asyncProperty(name, name, name, name, suffix, async (schema, table, index, column, tail) => {
      const t = { schema, name: table };
      const i = { schema, name: index };
      const before = [
        `ALTER TABLE ONLY ${identRelation(t)}\n    ADD CONSTRAINT ${ident(index)} PRIMARY KEY (${ident(column)})`,
        `COMMENT ON COLUMN ${identRelation(t)}.${ident(column)} IS ${literal(identRelation(t)).trim()}`,
        `ALTER INDEX ${identRelation(i)} ATTACH PARTITION ${identRelation(i)}`,
      ].join(';\n');
      const [t2, i2] = [t, i].map(({ name: old }) => ident(suffixedName(old, tail)));
      const after = [
        `ALTER TABLE ONLY ${ident(schema)}.${t2}\n    ADD CONSTRAINT ${i2} PRIMARY KEY (${ident(column)})`,
        `COMMENT ON COLUMN ${ident(schema)}.${t2}.${ident(column)} IS ${literal(identRelation(t)).trim()}`,
        `ALTER INDEX ${ident(schema)}.${i2} ATTACH PARTITION ${ident(schema)}.${i2}`,
      ].join(';\n');
      expect(await renamed(before, tail, [t, i])).toBe(after);
    }),
    { numRuns: 300 },
  );
});

test('text that looks like the dump around it stays inside its statement', async () => {
  const trap = `--\n-- TOC entry 9 (class 1259 OID 9)\n-- Name: trap; Type: TABLE; Schema: s; Owner: -\n--\n\n\\restrict x\nselect 1;\n`;
  const given = [
    {
      kind: 'FUNCTION',
      sql: `CREATE FUNCTION s.f() RETURNS integer\n    LANGUAGE plpgsql\n    AS $$\n${trap}$$`,
    },
    {
      kind: 'FUNCTION',
      sql: `CREATE FUNCTION s.g() RETURNS integer\n    LANGUAGE sql\n    BEGIN ATOMIC\n SELECT 1;\n SELECT 2;\nEND`,
    },
    { kind: 'COMMENT', sql: `COMMENT ON TABLE s.t IS 'ü\n${trap}'` },
    {
      kind: 'TABLE',
      sql: 'CREATE TABLE s.t (\n    a integer\n)',
      tag: 'odd; Type: VIEW; Schema: no; Owner: me',
    },
  ];
  // repeated so that pieces for the parser end everywhere, also inside of the traps
  const many = Array.from({ length: 400 }, () => given).flat();
  const padded = many.map((entry) => ({ ...entry, sql: entry.sql.replace('ü', 'ü'.repeat(700)) }));
  const entries = await splitDump(dumpOf(padded));
  expect(
    entries.map(({ kind, statements }) => `${kind} ${statements.map(({ text }) => text).join('|')}`),
  ).toEqual(padded.map(({ kind, sql }) => `${kind} ${sql}`));
  expect(entries[3]).toMatchObject({
    tag: 'odd; Type: VIEW; Schema: no; Owner: me',
    schema: 's',
    dumpId: 4,
    dependencies: [3, 7],
  });
});

test('settings of psql are dropped, and a table access method is remembered', async () => {
  const entries = await splitDump(
    dumpOf([
      {
        kind: 'TABLE',
        sql: 'CREATE TABLE s.a (\n    a integer\n);\n\nSET default_table_access_method = columnar',
      },
      { kind: 'TABLE', sql: 'CREATE TABLE s.b (\n    a integer\n)' },
    ]),
  );
  expect(entries.map(({ accessMethod, statements }) => [accessMethod, statements.length])).toEqual([
    [null, 1],
    ['columnar', 1],
  ]);
});

test('a statement runs when its rows allow it', async () => {
  const given: [kind: string, sql: string, phase: string | null][] = [
    ['TABLE', 'CREATE TABLE s.t (\n    a integer\n)', 'pre-data'],
    ['TABLE', 'ALTER TABLE ONLY s.t FORCE ROW LEVEL SECURITY', 'final'],
    ['TABLE', 'ALTER TABLE ONLY s.t REPLICA IDENTITY FULL', 'pre-data'],
    ['CHECK CONSTRAINT', 'ALTER TABLE s.t ADD CONSTRAINT c CHECK ((a > 0))', 'pre-data'],
    ['CHECK CONSTRAINT', 'ALTER TABLE s.t ADD CONSTRAINT d CHECK ((a > 0)) NOT VALID', 'final'],
    ['CHECK CONSTRAINT', 'ALTER TABLE s.t ADD CONSTRAINT e NOT NULL a NOT VALID', 'final'],
    ['CONSTRAINT', 'ALTER TABLE ONLY s.t ADD CONSTRAINT pk PRIMARY KEY (a)', 'key'],
    ['CONSTRAINT', 'ALTER TABLE ONLY s.t ADD CONSTRAINT u UNIQUE (a)', 'index'],
    [
      'CONSTRAINT',
      'ALTER TABLE ONLY s.t ADD CONSTRAINT v UNIQUE (a);\nALTER TABLE ONLY s.t REPLICA IDENTITY USING INDEX v',
      'key',
    ],
    ['INDEX', 'CREATE INDEX i ON s.t USING btree (a)', 'index'],
    [
      'INDEX',
      'CREATE UNIQUE INDEX j ON s.t USING btree (a);\nALTER TABLE s.t REPLICA IDENTITY USING INDEX j',
      'key',
    ],
    ['INDEX ATTACH', 'ALTER INDEX s.pk ATTACH PARTITION s.j', 'key'],
    ['INDEX ATTACH', 'ALTER INDEX s.i ATTACH PARTITION s.j', 'index'],
    [
      'FK CONSTRAINT',
      'ALTER TABLE ONLY s.t ADD CONSTRAINT fk FOREIGN KEY (a) REFERENCES s.t(a)',
      'foreign-key',
    ],
    ['TRIGGER', 'CREATE TRIGGER t AFTER INSERT ON s.t FOR EACH ROW EXECUTE FUNCTION s.f()', 'final'],
    ['SOMETHING NEW', 'CREATE TABLE s.t (\n    a integer\n)', null],
  ];
  const entries = await splitDump(dumpOf(given.map(([kind, sql]) => ({ kind, sql }))));
  const keys = keyIndexesOf(entries);
  const phases = (entry: DumpEntry, mayBeNotValid: boolean): (string | null)[] =>
    entry.statements.map((statement) => phaseOf(entry, statement, keys, mayBeNotValid));
  expect(entries.map((entry) => [...new Set(phases(entry, true))])).toEqual(
    given.map(([, , phase]) => [phase]),
  );
  const foreignKey = entries.find(({ kind }) => kind === 'FK CONSTRAINT');
  expect(foreignKey && phases(foreignKey, false)).toEqual(['final']);
});
