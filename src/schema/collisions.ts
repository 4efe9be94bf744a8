// Used by plan.ts: names that fall together under the suffix, found before anything is written. Tables, indexes and
// sequences get the suffix, while views, types and what belongs to them keep their names: table `a` with `_2` and view
// `a_2` cannot both be. Relations share one name space of their schema (pg_class), and types another one (pg_type), in
// which every table and view has its row type, too. Pure.
import type { Finding } from '../model/finding.ts';
import { relationKey, type RelationName } from '../model/relation.ts';
import type { Renaming } from './rename.ts';
import type { DumpEntry } from './split.ts';

type NameSpace = 'relation' | 'type';

interface Claim {
  readonly source: RelationName;
  readonly spaces: readonly NameSpace[];
}

const both: readonly NameSpace[] = ['relation', 'type'];

export function collisionFindings(entries: readonly DumpEntry[], renaming: Renaming): Finding[] {
  const claimed = new Map<string, Set<string>>();
  const told = new Map<string, Set<string>>();
  for (const { source, spaces } of entries.flatMap(claimsOf)) {
    const target = relationKey(renaming.relation(source));
    for (const space of spaces) {
      const claimants = claimed.get(`${space} ${target}`) ?? new Set();
      claimed.set(`${space} ${target}`, claimants.add(relationKey(source)));
      if (claimants.size > 1) told.set(target, claimants);
    }
  }
  return [...told].map(([target, claimants]) => ({
    code: 'suffix_collision',
    severity: 'blocking',
    object: target,
    message: `${[...claimants].join(' and ')} would both be ${target} on the target`,
    remedy: 'choose another table_suffix',
  }));
}

function claimsOf({ kind, schema, tag, statements }: DumpEntry): Claim[] {
  const named = (spaces: readonly NameSpace[]): Claim[] => [
    { source: { schema: schema ?? '', name: tag }, spaces },
  ];
  switch (kind) {
    case 'VIEW':
    case 'MATERIALIZED VIEW':
    case 'FOREIGN TABLE':
      return named(both);
    case 'DOMAIN':
      return named(['type']);
    case 'TYPE':
      // a composite type is a relation as well
      return named(/^CREATE TYPE .* AS \(/.test(statements[0]?.text ?? '') ? both : ['type']);
    default:
      return statements.flatMap(({ deed, takes }) =>
        takes.map((source): Claim => ({ source, spaces: deed === 'create table' ? both : ['relation'] })),
      );
  }
}
