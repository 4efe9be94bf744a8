// Opens the connections of a cutover before it stops writes: the steps under the fence take them, one after the other.
// Called by the runtime around armFence and the end of the write stop.
import type { TaskScope } from '../postgres/task-scope.ts';

/** `query` uses so many at the same time. */
const POOLED = 4;

/** Of the comparison and of the certificate's snapshots; on the target also of the rehearsal and the statements. */
export async function warmUp({ source, target, spec }: TaskScope): Promise<void> {
  await Promise.all([
    source.warm({ plain: 2, replication: 0, pooled: POOLED }),
    target.warm({ plain: 4, replication: spec.options.reverse ? 1 : 0, pooled: POOLED }),
  ]);
}

/** Closes those that nobody took. */
export async function coolDown({ source, target }: Pick<TaskScope, 'source' | 'target'>): Promise<void> {
  await Promise.all([source.cool(), target.cool()]);
}
