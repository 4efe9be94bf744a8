// From a statechart value to the one word of the API.
import type { StateValue } from 'xstate';
import { taskStates, type TaskState } from '../src/model/task-state.ts';

const known: ReadonlySet<string> = new Set(taskStates);

/** The top-level state; inside `replicating` the state of its flow region. */
export function taskStateOf(value: StateValue): TaskState {
  const top = typeof value === 'string' ? value : (Object.keys(value)[0] ?? '');
  if (known.has(top)) return top as TaskState;
  if (typeof value !== 'string' && top === 'replicating') {
    const flow = (value['replicating'] as Record<string, StateValue | undefined>)['flow'];
    if (flow !== undefined) return taskStateOf(flow);
  }
  throw new RangeError(`no task state: ${JSON.stringify(value)}`);
}
