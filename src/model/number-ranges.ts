// Sets of whole numbers as ascending ranges: what is mostly a run stays short however long it gets. Pure, JSON.

/** First and last, both in it. */
export type NumberRange = readonly [first: number, last: number];

export function withNumbers(ranges: readonly NumberRange[], numbers: readonly number[]): NumberRange[] {
  const all: NumberRange[] = [...ranges, ...numbers.map((n): NumberRange => [n, n])];
  const merged: [number, number][] = [];
  for (const [first, last] of all.sort((a, b) => a[0] - b[0])) {
    const previous = merged.at(-1);
    if (previous && first <= previous[1] + 1) previous[1] = Math.max(previous[1], last);
    else merged.push([first, last]);
  }
  return merged;
}
