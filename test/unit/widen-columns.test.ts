import { expect, test } from 'vitest';
import { widens } from '../../src/sync/widen-columns.ts';

test.each([
  ['smallint', 'integer', true],
  ['smallint', 'bigint', true],
  ['integer', 'bigint', true],
  ['bigint', 'integer', false],
  ['integer', 'integer', false],
  ['integer', 'numeric', false],
  ['integer', 'text', false],
  ['character varying(5)', 'character varying(6)', true],
  ['character varying(5)', 'character varying', true],
  ['character varying(5)', 'text', true],
  ['character varying', 'text', true],
  ['character varying', 'character varying(5)', false],
  ['character varying(10)', 'character varying(9)', false],
  ['character(5)', 'character(6)', false],
  ['text', 'character varying(9)', false],
  ['numeric(6,2)', 'numeric(7,2)', true],
  ['numeric(6,2)', 'numeric', true],
  ['numeric(6,2)', 'numeric(8,3)', false],
  ['numeric(6,2)', 'numeric(6,2)', false],
  ['numeric', 'numeric(6,2)', false],
  ['numeric(4,-2)', 'numeric(6,-2)', true],
  ['bit varying(3)', 'bit varying(4)', true],
  ['bit varying(3)', 'character varying(4)', false],
  ['bit(3)', 'bit(4)', false],
  ['real', 'double precision', false],
  ['timestamp without time zone', 'timestamp with time zone', false],
  ['character varying(5)[]', 'character varying(6)[]', false],
  ['public.numeric(6,2)', 'public.numeric(7,2)', false],
])('%s is widened by %s: %s', (from, to, expected) => {
  expect(widens(from, to)).toBe(expected);
});
