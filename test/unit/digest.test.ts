// The digest's pure half: one number from two sums, and the statement that makes them.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { combineDigest, digestSql } from '../../src/validate/digest.ts';

test('the digest of no rows is zero', () => {
  expect(combineDigest(null, null)).toBe('0');
});

test('both sums count, each modulo 2^64', () => {
  const sum = fc.bigInt({ min: -(2n ** 90n), max: 2n ** 90n });
  fc.assert(
    fc.property(sum, sum, sum, sum, (a, b, c, d) => {
      const same = (a - c) % 2n ** 64n === 0n && (b - d) % 2n ** 64n === 0n;
      const left = combineDigest(a.toString(), b.toString());
      expect(left === combineDigest(c.toString(), d.toString())).toBe(same);
      expect(left).toBe(combineDigest((a + 2n ** 64n).toString(), b.toString()));
      expect(BigInt(left) < 2n ** 128n && BigInt(left) >= 0n).toBe(true);
    }),
  );
  expect(combineDigest('1', '2')).not.toBe(combineDigest('2', '1'));
});

test('the statement quotes names and reads the named columns of that table only', () => {
  const sql = digestSql({ schema: 'Sp ace', name: 'T"q' }, [{ name: 'a"b' }, { name: 'Order' }], false);
  expect(sql).toContain('row(t."a""b", t."Order")::text');
  expect(sql).toContain('from only "Sp ace"."T""q" as t');
  expect(sql).not.toContain('convert_to');
});

test('servers of different encodings hash the UTF-8 spelling', () => {
  expect(digestSql({ schema: 's', name: 't' }, [{ name: 'a' }], true)).toContain(
    `encode(convert_to(row(t."a")::text, 'UTF8'), 'escape')`,
  );
});
