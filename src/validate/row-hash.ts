// 64 bits of a row, where both sides hash it there and then: by the types' own hash functions, one fed with the result of the
// last as its seed, at less than the cost of hash_record_extended. Pure; range-sql.ts builds its statements with it.
//
// Two rows must have the same hash only if their values are the same to the last bit. So what these functions leave out
// is put in again:
//
//   NULL             strict functions: a flag for each column, hashed first. Also of columns that are NOT NULL: that
//                    may be dropped meanwhile, and a NULL hash would drop the row from the sum
//   bigint           hashint8extended folds the halves (−1 is 4294967295): the upper half is hashed, too
//   numeric(p, s)    hash_numeric_extended ignores the sign, and gives its seed for NaN and the seed less 1 for 0: the
//                    sign is hashed behind it. It ignores the scale, too, so numeric without one is among the sent
//   text, varchar    under collation "C": equal bytes, not what a nondeterministic collation calls equal
//   date             hashed as its day; infinities as integers beyond every day
//
// hash_record_extended would not do: it adds the hashes of the columns up, so that a sum over rows does not see values that
// changed places between two of them. Here each hash depends on all columns before it.
import type { PlannedColumn } from '../model/schema-plan.ts';
import { ident } from '../postgres/sql.ts';
import { rowText } from './digest.ts';

/**
 * What of a row is hashed when both sides are compared there and then; certificates have the text, which anybody can
 * compute again. `values`: each column by its type, see above. `recoded`: see rowText.
 */
export type RowForm = 'values' | 'text' | 'recoded';

/** The hash of `value` under `seed`; neither is evaluated twice where that is dear. */
type Hash = (value: string, seed: string) => string;

const by =
  (hash: string, zero: string): Hash =>
  (value, seed) =>
    `${hash}(coalesce(${value}, ${zero}), ${seed})`;

/** Types whose hash functions are the same on 13 to 18, as format_type writes them. */
const hashes: readonly (readonly [RegExp, Hash])[] = [
  [/^smallint$/, by('hashint2extended', '0::smallint')],
  [/^integer$/, by('hashint4extended', '0')],
  [
    /^bigint$/,
    (value, seed) => by('hashint8extended', '0')(value, by('hashint8extended', '0')(`${value} >> 32`, seed)),
  ],
  [/^oid$/, by('hashoidextended', '0::oid')],
  [/^boolean$/, (value, seed) => `hashint4extended(case when ${value} then 1 else 0 end, ${seed})`],
  [
    /^(text|character varying(\(\d+\))?)$/,
    (value, seed) => by('hashtextextended', `''`)(`${value} collate "C"`, seed),
  ],
  [/^uuid$/, by('uuid_hash_extended', `'00000000-0000-0000-0000-000000000000'::uuid`)],
  [
    /^numeric\(\d+,\d+\)$/,
    (value, seed) =>
      `hashint4extended(case when ${value} < 0 then 1 else 0 end, ${by('hash_numeric_extended', '0')(value, seed)})`,
  ],
  [
    /^date$/,
    (value, seed) =>
      `hashint4extended(case when isfinite(${value}) then ${value} - date '2000-01-01'
        when ${value} > date '2000-01-01' then 2147483647 else -2147483648 end, ${seed})`,
  ],
];

/**
 * Built-in types whose send functions give the same bytes on 13 to 18, equal exactly when their texts are; hashed as one
 * bytea (in an array: bytea alone has no hash function before 18). Not among them: floats and what is made of them (a NaN
 * has many bit patterns and one text), arrays (array_send tells whether there is room for a NULL), and whatever sends the
 * OID of a user's type: domains, enums, composites, ranges. Those are hashed as texts.
 */
const sentTypes = new RegExp(
  `^(${[
    'bytea|name|"char"|pg_lsn|money|jsonb?|inet|cidr|macaddr8?|bpchar',
    String.raw`numeric(\(\d+,-\d+\))?`,
    String.raw`(character|bit( varying)?)(\(\d+\))?`,
    String.raw`time(stamp)?(\(\d\))? with(out)? time zone`,
    String.raw`interval( [a-z ]+)?(\(\d\))?`,
  ].join('|')})$`,
);

/** A call for each, one in the other: of more the parser's stack has not enough. */
const MOST_COLUMNS = 400;

/** Columns of one integer of flags. */
const FLAGS = 31;

const valueOf = ({ name }: Pick<PlannedColumn, 'name'>): string => `t.${ident(name)}`;

/** The expression, of a row of `t`; never null. */
export function rowHash(columns: readonly Pick<PlannedColumn, 'name' | 'type'>[], form: RowForm): string {
  if (form !== 'values' || columns.length > MOST_COLUMNS)
    return `hashtextextended(${rowText(columns, form === 'recoded')}, 1)`;
  const hashed: { readonly value: string; readonly hash: Hash }[] = [];
  const others: (typeof columns)[number][] = [];
  for (const column of columns) {
    const known = hashes.find(([pattern]) => pattern.test(column.type));
    if (known) hashed.push({ value: valueOf(column), hash: known[1] });
    else others.push(column);
  }
  let seed = '1';
  for (let from = 0; from < hashed.length; from += FLAGS) {
    const flags = hashed
      .slice(from, from + FLAGS)
      .map(({ value }, n) => `case when ${value} is null then ${2 ** n} else 0 end`);
    seed = `hashint4extended(${flags.join(' + ')}, ${seed})`;
  }
  for (const { value, hash } of hashed) seed = hash(value, seed);
  if (others.length === 0) return seed;
  const sent = others.filter(({ type }) => sentTypes.test(type)).map(valueOf);
  const texts = others.filter(({ type }) => !sentTypes.test(type));
  const values = texts.length === 0 ? sent : [...sent, rowText(texts, false)];
  return `hash_array_extended(array[record_send(row(${values.join(', ')}))], ${seed})`;
}
